"""Makes a mesh of a depth map, and looks at it from elsewhere.

Run: python -m rasterizer.examples.depth_to_mesh
"""

import dataclasses

import numpy as np

from .. import (
    grid_faces,
    interpolate,
    look_at,
    perspective_camera,
    project,
    rasterize,
    unproject,
    vertex_normals,
)


def to_mesh(depth, camera, *, largest_step=0.1):
    """A depth map (h, w) as points (h w, 3) of the world and faces (F, 3).

    Cells over a step in depth larger than `largest_step` times the depth are left out:
    there two surfaces lie behind one another.
    """
    height, width = depth.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pixels = np.stack([x, y, depth], axis=-1).reshape(-1, 3)
    faces = grid_faces(height, width)
    corners = np.asarray(depth).reshape(-1)[faces]
    whole = np.ptp(corners, axis=-1) < largest_step * corners.min(axis=-1)
    return unproject(pixels, camera), faces[whole]


def look(points, faces, camera, size):
    """Depth (height, width), 0 where nothing is, and shading by a light at the eye."""
    normals = vertex_normals(points, faces)
    vertices = project(points, camera)
    found = rasterize(vertices, faces, size)
    normal = interpolate(normals, faces, found)
    depth = np.where(found.face_index >= 0, found.depth, 0.0)
    return depth, np.abs(normal @ camera.rotation[2])


if __name__ == "__main__":
    y, x = np.mgrid[-1:1:33j, -1:1:33j].astype(np.float32)
    ball = np.where(
        x**2 + y**2 < 0.5, 2.6 - np.sqrt(np.maximum(0.5 - x**2 - y**2, 0)), 4
    )
    camera = perspective_camera((33, 33), fov_deg=40.0)
    points, faces = to_mesh(ball, camera)
    rotation, translation = look_at([1.0, -0.5, 0.3], [0.0, 0.0, 2.6])
    camera = dataclasses.replace(camera, rotation=rotation, translation=translation)
    _, shading = look(points, faces, camera, (33, 33))
    print("\n".join("".join(" .:-=+*#%@"[int(9 * v)] for v in row) for row in shading))
