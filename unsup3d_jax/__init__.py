"""Unsupervised 3D shape from single images, in JAX (Wu et al., CVPR 2020)."""

from unsup3d_jax import checkout

__version__ = "0.1.0"  # the only place; pyproject.toml reads it

checkout.install()
