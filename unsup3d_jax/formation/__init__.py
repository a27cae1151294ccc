"""Image formation, shared by the methods: camera, light, warp, losses."""
