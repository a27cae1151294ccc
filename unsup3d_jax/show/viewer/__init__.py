"""A page that turns a reconstruction: HTML, CSS and WebGL2, one file, no network.

Written out, not on a 3D library: one mesh, one light and the model's own shading are
two shaders of thirty lines. A library would put 0.7 MB into every photo's folder, and
shade differently.
"""
