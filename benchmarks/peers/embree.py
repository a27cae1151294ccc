"""Embree, through embreex (PyPI `embreex`): ray casting, forward only.

On screen 1/z is linear, so that rays along z through the mesh (x, y, -1/z) meet its
nearest face first. The scene is built anew in every call: the mesh moves.
"""

import importlib.metadata

import numpy as np

from benchmarks.peers.types import Calls, Peer, Scene, Unavailable


def load() -> Peer:
    """Raises Unavailable where it is not installed."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except Exception as error:
        raise Unavailable(f"not installed ({error})") from error

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        y, x = np.mgrid[:height, :width].astype(np.float32)
        inverse = -1.0 / scene.vertices[..., 2:]
        start = np.full_like(x, 2.0 * float(inverse.min()))
        origins = np.stack([x, y, start], axis=-1).reshape(-1, 3)
        along = np.tile(np.array([0, 0, 1], np.float32), (len(origins), 1))
        points = np.concatenate([scene.vertices[..., :2], inverse], axis=-1)

        def one(points):
            world = EmbreeScene()
            TriangleMesh(world, points[scene.faces])
            hit = world.run(origins, along, output=1)
            found = hit["primID"] >= 0
            level = np.where(found, start.reshape(-1) + hit["tfar"], -1.0)
            depth = np.where(found, -1.0 / level, scene.background)
            return depth.astype(np.float32).reshape(scene.size)

        return Calls(lambda: np.stack([one(p) for p in points]), None)

    return Peer(
        name="Embree",
        version=f"embreex {importlib.metadata.version('embreex')}",
        device="CPU, 1 thread",
        prepare=prepare,
        differs="forward only, scene built in every call",
    )
