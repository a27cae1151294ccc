"""Training of a generator of images: StyleGAN2, on the engine."""
