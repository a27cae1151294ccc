"""Each image's latent: found by inversion, once, and kept in the workdir."""

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.data.dataset import digest_of
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.packing import checksums
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.files import replacing
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.gan2shape import offset
from unsup3d_jax.gan2shape.generator_projection import Own
from unsup3d_jax.nets import stylegan2_inversion as inversion
from unsup3d_jax.nets.lpips import Lpips
from unsup3d_jax.nets.stylegan2 import StyleGan
from unsup3d_jax.nets.stylegan2_files import load_stylegan2, read_latent
from unsup3d_jax.nets.stylegan2_inversion import InversionOptions, Inverted, Weights

SHIPPED = "open_faces"
FILE = "latents.npz"
# Raised when the same images and generator get other latents than before.
_FORMAT = 1


def load_generator(config: ConfigDict) -> StyleGan:
    """The GAN that projection.generator names, on the device.

    Raises:
        UserError: if it cannot be read, or is of another size than it can be used at.
    """
    named = config.projection.generator or SHIPPED
    gan = jax.device_put(load_stylegan2(named))
    if config.projection.crop > gan.options.image_size:
        raise UserError(
            f"projection.crop={config.projection.crop}: the pictures of {named} have "
            f"{gan.options.image_size} pixels a side; take at most so many."
        )
    return gan


@dataclasses.dataclass(frozen=True)
class _Shown:
    """The generator's picture of a latent as everything here sees it; hashable."""

    size: int
    crop: int

    def __call__(
        self, weights: Weights, w: Float[Array, "b s"]
    ) -> Float[Array, "b h w 3"]:
        crop = self.crop or None
        return offset.project(weights.gan, w, jnp.zeros_like(w), self.size, crop)


def invert(
    config: ConfigDict,
    gan: StyleGan,
    lpips: Lpips | None,
    images: Float[AnyArray, "n h w 3"],
    masks: Float[AnyArray, "n h w"],
) -> Inverted:
    """Searches the latents of images, by what the masks leave of them.

    Backgrounds are none of the object's, and a generator may know none like them.

    Args:
        lpips: what pictures are compared with beside their pixels; None: the
            discriminator's features.
        images: in [0, 1].
        masks: of the objects, 0 to 1.
    """
    model = inversion.DISCRIMINATOR if lpips is None else inversion.LPIPS
    shown = _Shown(config.data.image_size, config.projection.crop)
    model = dataclasses.replace(model, generate=shown)
    signed = 2.0 * jnp.asarray(images) - 1.0
    return inversion.invert(
        jax.random.key(config.seed),
        Weights(gan, lpips),
        signed,
        model,
        _options(config),
        mask=masks,
    )


def _options(config: ConfigDict) -> InversionOptions:
    section = config.invert
    return InversionOptions(
        samples=section.samples,
        chunk=min(128, section.samples),
        steps=section.steps,
        learning_rate=section.learning_rate,
        feature=section.feature,
        mean=section.mean,
    )


def find(
    config: ConfigDict,
    gan: StyleGan,
    lpips: Lpips | None,
    images: Float[np.ndarray, "n h w 3"],
    masks: Float[np.ndarray, "n h w"],
    workdir: Path,
) -> Own:
    """Latents of a run's images: those of its file, or of a search that makes it.

    Raises:
        UserError: if the file cannot be written.
    """
    arrays = {"gan": gan, "lpips": lpips, "images": images, "masks": masks}
    made = digest_of(
        _FORMAT,
        checksums(jax.device_get(arrays)),
        repr(_options(config)),
        config.seed,
        config.projection.crop,
    )
    path = workdir / FILE
    w = _stored(path, made, len(images))
    if w is None:
        found = jax.device_get(invert(config, gan, lpips, images, masks))
        say(
            f"latents of {len(images)} images: rms error on the object "
            f"{found.error.mean():.3f} of pictures in [-1, 1]; nearest of "
            f"{config.invert.samples} samples {found.nearest_error.mean():.3f}, their "
            f"mean picture {found.mean_error.mean():.3f}."
        )
        w = np.asarray(found.w)
        errors: dict[str, Any] = {
            "error": found.error,
            "nearest_error": found.nearest_error,
            "mean_error": found.mean_error,
        }
        with writing(path), replacing(path) as file:
            np.savez_compressed(file, w=w, made=np.array(json.dumps(made)), **errors)
    return own_of(config, gan, w)


def read(
    folder: Path, names: Sequence[str], gan: StyleGan
) -> Float[np.ndarray, "n style"]:
    """The latents of images that have them: <folder>/<name>.pt.

    Raises:
        UserError: if one is not there or is no latent of this generator.
    """
    files = [folder.expanduser() / Path(name).with_suffix(".pt") for name in names]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"projection.latents: {file} does not exist; each image needs one, or "
                'set it to "" to have them searched.'
            )
    return np.stack([read_latent(file, gan.options.style) for file in files])


def own_of(config: ConfigDict, gan: StyleGan, w: Float[np.ndarray, "n style"]) -> Own:
    """What the projection knows of images with these latents."""
    shown = jax.jit(_Shown(config.data.image_size, config.projection.crop))
    own = jnp.asarray(w)
    if config.broken.latents:  # a control: each image gets another one's
        own = jnp.roll(own, 1, axis=0)
    return Own(w=own, picture=shown(Weights(gan), own))


def _stored(path: Path, made: Any, count: int) -> np.ndarray | None:
    """The latents of a file that was made of the same; None: there is none."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            same = json.loads(str(stored["made"])) == made
            w = np.asarray(stored["w"], np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return w if same and len(w) == count else None
