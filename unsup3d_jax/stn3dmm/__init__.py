"""3D morphable models as spatial transformers (Bas et al., ICCV Workshops 2017)."""
