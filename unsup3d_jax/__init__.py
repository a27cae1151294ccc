"""Unsupervised 3D shape from single images, in JAX (Wu et al., CVPR 2020)."""
