"""Method 3: 3D shape from a 2D GAN, without symmetry (Pan et al., ICLR 2021)."""
