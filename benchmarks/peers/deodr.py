"""DEODR (PyPI `deodr`): C++ behind Cython, float64, one image a call."""

import importlib.metadata

import numpy as np

from benchmarks.peers.types import Calls, Peer, Scene, Unavailable


def load() -> Peer:
    """Raises Unavailable where it is not installed."""
    try:
        from deodr.differentiable_renderer import Scene2D, renderScene, renderSceneB
    except ModuleNotFoundError as error:
        raise Unavailable("not installed") from error
    except Exception as error:  # such as an optional package that it needs after all
        raise Unavailable(f"cannot be loaded: {error}") from error

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        count = scene.vertices.shape[1]
        faces = np.ascontiguousarray(scene.faces, np.uint32)
        members = []
        for vertices in scene.vertices.astype(np.float64):
            # Depth is drawn as a colour, without the antialiasing of edges.
            members.append(
                Scene2D(
                    faces=faces,
                    faces_uv=faces,
                    ij=np.ascontiguousarray(vertices[:, :2]),
                    depths=np.ascontiguousarray(vertices[:, 2]),
                    textured=np.zeros(len(faces), bool),
                    uv=np.zeros((count, 2)),
                    shade=np.zeros(count),
                    colors=np.ascontiguousarray(vertices[:, 2:]),
                    shaded=np.zeros(len(faces), bool),
                    edgeflags=np.zeros((len(faces), 3), bool),
                    height=height,
                    width=width,
                    nb_colors=1,
                    texture=np.zeros((0, 0)),
                    background_color=np.array([float(scene.background)]),
                    backface_culling=True,
                    clockwise=False,
                    strict_edge=False,
                    perspective_correct=False,
                )
            )
        cotangent = scene.cotangent[..., None].astype(np.float64)

        def draw(member):
            image, nearest = np.zeros((height, width, 1)), np.zeros((height, width))
            renderScene(member, 1.0, image, nearest, check_valid=False)
            return image, nearest

        def forward():
            return np.stack([draw(member)[0][..., 0] for member in members])

        def gradient():
            images, gradients = [], []
            for member, pull in zip(members, cotangent, strict=True):
                image, nearest = draw(member)
                images.append(image[..., 0].copy())
                member.clear_gradients()
                renderSceneB(
                    member, 1.0, image, nearest, pull.copy(), check_valid=False
                )
                gradients.append(np.concatenate([member.ij_b, member.colors_b], -1))
            return np.stack(images), np.stack(gradients)

        return Calls(forward, gradient)

    return Peer(
        name="DEODR",
        version=importlib.metadata.version("deodr"),
        device="CPU, 1 thread",
        prepare=prepare,
        differs="float64; front faces only, depth linear on the screen",
    )
