"""Mode sample: what a generator draws, as pictures in a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from PIL import Image

from unsup3d_jax.errors import writing
from unsup3d_jax.nets.stylegan2 import GanOptions
from unsup3d_jax.stylegan2 import panel
from unsup3d_jax.stylegan2.options import gan_options

TRUNCATION = 0.7  # of the second picture
_FOR_MEAN = 4096  # samples whose mean w truncation pulls to
_PEOPLE, _STEPS = 8, 8  # rows and columns of the third


def write(parts: Mapping[str, Any], config: ConfigDict, folder: Path) -> list[Path]:
    """Draws samples.png, truncated.png and between.png.

    The first holds log.picture_count samples, the second the same ones pulled to the
    mean, the third ways in w from one sample to the next, a row a pair.

    Returns:
        Their paths.

    Raises:
        UserError: if they cannot be written.
    """
    options, seed = gan_options(config), config.seed
    generator = parts["ema"]
    mean = panel.map_all(
        generator, panel.fixed_latents(options, _FOR_MEAN, seed), options
    ).mean(0)
    z = panel.fixed_latents(options, config.log.picture_count, seed)
    w = panel.map_all(generator, z, options)
    pictures = {
        "samples": w,
        "truncated": mean + TRUNCATION * (w - mean),
        "between": between(generator, options, seed),
    }
    paths = []
    for name, latents in pictures.items():
        images = panel.samples(generator, latents, options, seed=seed)
        columns = _STEPS if name == "between" else None
        path = folder / f"{name}.png"
        with writing(path, "Name another --output."):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(panel.grid(images, columns)).save(path)
        paths.append(path)
    return paths


def between(generator: Any, options: GanOptions, seed: int) -> Float[np.ndarray, "n s"]:
    """Latents on straight lines between pairs of samples, a pair after the other."""
    ends = panel.map_all(
        generator, panel.fixed_latents(options, 2 * _PEOPLE, seed), options
    )
    share = np.linspace(0.0, 1.0, _STEPS, dtype=np.float32)[None, :, None]
    lines = (1.0 - share) * ends[::2, None] + share * ends[1::2, None]
    return lines.reshape(-1, ends.shape[1])
