"""Mode `serve`: drop a photo into a page on this computer, and turn it.

Only what the viewer shows is computed: no videos, no files.
"""

import dataclasses
import secrets
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.engine import photo_server
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.photo_server import Picture, Work
from unsup3d_jax.formation.types import Factors, Reconstruction
from unsup3d_jax.show.viewer.content import Content
from unsup3d_jax.unsup3d import export, reconstruct_files
from unsup3d_jax.unsup3d.options import options_from_config

_SEEDS = 1 << 20


def serve(
    config: ConfigDict,
    params: dict,
    *,
    view_range: Float[Array, ""] | None = None,
    workdir: Path | None = None,
    port: int | None = None,
    opens_browser: bool = True,
) -> None:
    """Answers until it is interrupted; compiles everything first.

    Args:
        config: of the run that made the parameters.
        params, view_range: as of `reconstruct_files.reconstruct_folder`.
        workdir, port, opens_browser: see `photo_server.serve`.
    """
    work = work_of(config, params, view_range=view_range)
    start = time.monotonic()
    say("compiling, once")
    grey = np.full((work.size, work.size, 3), 0.5, np.float32)
    work.show(grey, work.find(grey))
    say(f"compiled in {time.monotonic() - start:.0f} s")
    photo_server.serve(work, workdir=workdir, port=port, opens_browser=opens_browser)


def work_of(
    config: ConfigDict,
    params: dict,
    *,
    view_range: Float[Array, ""] | None = None,
) -> Work:
    """What the server does with a photo, see `serve`."""
    options = options_from_config(config)
    size = options.networks.image_size
    unlearnt = dict.fromkeys(reconstruct_files.unlearnt(config))
    params = jax.device_put(params)

    def find(image: Picture) -> tuple[Factors, Reconstruction]:
        found = reconstruct_files.decompose(params, image[None], options, view_range)
        factors, reconstruction = jax.device_get(jax.tree.map(lambda a: a[0], found))
        return dataclasses.replace(factors, **unlearnt), reconstruction

    def show(image: Picture, found: tuple[Factors, Reconstruction]) -> Content:
        factors, reconstruction = found
        whole = config.export.whole_surface
        return export.viewer_content(
            "photo", image, factors, reconstruction, options, whole_surface=whole
        )

    return Work(
        title=f"unsup3d_jax: {config.name}",
        size=size,
        find=find,
        show=show,
        sample=lambda: _synthetic_face(size),
    )


def _synthetic_face(size: int) -> Picture:
    """Somebody whom no training has seen."""
    faces = open_faces.load(
        "test",
        image_size=size,
        count=1,
        seed=secrets.randbelow(_SEEDS),
        fields=("image",),
    )
    return np.asarray(faces["image"][0], np.float32) / 255.0
