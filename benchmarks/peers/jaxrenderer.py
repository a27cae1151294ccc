"""jaxrenderer (PyPI `jaxrenderer`): a rasterizing renderer in JAX, made for scenes."""

import importlib.metadata

import numpy as np

from benchmarks.peers.types import Calls, Peer, Scene, Unavailable


def load() -> Peer:
    """Raises Unavailable where it is not installed or cannot be imported."""
    import jax
    import jax.numpy as jnp

    set_option = jax.config.update

    def skip_removed(name, val):
        if name != "jax_array":  # which it sets, and JAX no longer has
            set_option(name, val)

    try:
        version = importlib.metadata.version("jaxrenderer")
        jax.config.update = skip_removed
        from renderer import Buffers, Camera
        from renderer.pipeline import render
        from renderer.shaders.depth import DepthExtraInput, DepthShader
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable("not installed") from error
    except Exception as error:  # whatever an old package meets in a newer JAX
        raise Unavailable(f"cannot be imported: {error}") from error
    finally:
        jax.config.update = set_option

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        faces = jnp.asarray(scene.faces)
        far = float(scene.background)
        camera = Camera.create(
            view=jnp.eye(4),
            projection=jnp.eye(4),
            viewport=Camera.viewport_matrix(
                lowerbound=jnp.zeros(2, int),
                dimension=jnp.array([width, height]),
                depth=jnp.array(1),
            ),
        )
        scale = jnp.array([2.0 / width, 2.0 / height, 1.0 / far])

        def one(vertices):
            # Pixels to the cube [-1, 1]^3, depth linear within it.
            cube = vertices * scale - jnp.array([1.0, 1.0, 0.0])
            empty = Buffers(zbuffer=jnp.ones((width, height)), targets=())
            drawn, _ = render(
                camera, DepthShader, empty, faces, DepthExtraInput(position=cube)
            )
            return jnp.where(drawn.T < 1.0, (2.0 * drawn.T - 1.0) * far, far)

        draw = jax.jit(lambda v: jnp.stack([one(w) for w in v]))
        vertices = jnp.asarray(scene.vertices)
        return Calls(lambda: np.asarray(draw(vertices)), None)

    return Peer(
        name="jaxrenderer",
        version=version,
        device=f"{jax.default_backend()}, XLA",
        prepare=prepare,
        differs="samples placed otherwise",
        comparable=False,
    )
