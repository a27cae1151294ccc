"""What mode reconstruct writes of a photo, by the names that --outputs has; light."""

OUTPUTS = (
    "factors",  # factors.npz
    "maps",  # a PNG of each
    "panel",
    "symmetry",
    "mesh",  # mesh.glb
    "obj",  # with its material and texture
    "viewer",
    "turntable",
    "relight",
)
