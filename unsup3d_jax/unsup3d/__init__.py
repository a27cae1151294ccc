"""Method 1: the photo-geometric autoencoder of Wu et al., CVPR 2020."""
