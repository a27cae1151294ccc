"""Finds the camera that saw a depth map of a known mesh, by Gauss-Newton.

Six numbers and many residuals: forward mode, `jax.jacfwd`, gives all slopes in six
passes over the image. Run: python -m rasterizer.examples.camera_pose
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import grid_faces, perspective_camera, project, rasterize, rotation_matrix

SIZE = (24, 24)
Y, X = np.mgrid[-1:1:7j, -1:1:7j].astype(np.float32)
HILLS = 0.3 * np.sin(3 * X) * np.cos(2 * Y) + 0.2 * X
POINTS = np.stack([X, Y, HILLS], axis=-1).reshape(-1, 3)
FACES = grid_faces(7, 7)


def draw(pose):
    """Pose (6,): rotation vector and translation; the depth seen, 0 where none."""
    turn = rotation_matrix(pose[:3]), pose[3:]
    camera = perspective_camera(SIZE, fov_deg=25.0, pose=turn)
    found = rasterize(project(POINTS, camera), FACES, SIZE)
    return jnp.where(found.face_index >= 0, found.depth, 0.0)


@jax.jit
def step(pose, target):
    """The pose at which the error, were it linear, would be least."""
    image, slope = draw(pose), jax.jacfwd(draw)(pose)
    both = (image > 0) & (target > 0)
    error = jnp.where(both, image - target, 0.0).ravel()
    slope = jnp.where(both[..., None], slope, 0.0).reshape(-1, 6)
    return pose - jnp.linalg.lstsq(slope, error)[0]


def fit(target, pose, steps=8):
    for _ in range(steps):
        pose = step(pose, target)
    return pose


if __name__ == "__main__":
    truth = jnp.array([0.1, -0.2, 0.15, 0.03, -0.02, 4.0])
    print(truth, fit(draw(truth), jnp.array([0, 0, 0, 0, 0, 4.1])), sep="\n")
