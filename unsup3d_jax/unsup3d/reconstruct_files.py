"""Mode `reconstruct`: photos in, one folder of shapes, pictures, videos each out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.engine import photo_folders
from unsup3d_jax.engine.photo_job import (
    Picture,
    Remark,
    Result,
    Work,
    photos_to_folders,
)
from unsup3d_jax.formation.types import AnyArray, Factors, Reconstruction
from unsup3d_jax.unsup3d import belief, export, model, panel
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config
from unsup3d_jax.unsup3d.outputs import OUTPUTS

# Photos written at a time: PNGs and archives are compressed, and the disk waited for,
# without the interpreter.
_WORKERS = 4


class Found(NamedTuple):
    """What is found in one photo, on the host.

    Attributes:
        factors, reconstruction: without a batch axis.
        turned: for the panel, which is one of a batch of one; None: it is not wanted.
        believed: of `belief.numbers`.
    """

    factors: Factors
    reconstruction: Reconstruction
    turned: panel.Turned | None
    believed: dict[str, Any]


def reconstruct_folder(
    config: ConfigDict,
    params: dict,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = 16,
    view_range: Float[Array, ""] | None = None,
    usual: belief.Usual | None = None,
    outputs: Sequence[str] = OUTPUTS,
) -> Result:
    """Decomposes a photo, or all photos of a folder, and exports each.

    Args:
        config: of the run that made the parameters.
        params: of `model.init_params`.
        source, output, batch_size: see `photos_to_folders`.
        view_range: see `model.decompose`.
        usual: what photos are compared with, to tell how far theirs is to be believed.
        outputs: what is written of each, some of `OUTPUTS`.

    Raises:
        UserError: see `photos_to_folders`.
    """
    options = options_from_config(config)
    whole = config.export.whole_surface
    without = unlearnt(config)
    share = None if view_range is None else float(view_range)

    def find(images: Float[np.ndarray, "b h w 3"]) -> Callable[[int], Found]:
        # All at once: to ask the device for each map of each photo takes longer.
        found = decompose(params, images, options, view_range)
        turned = None
        if "panel" in outputs:
            image = found[1].canonical.image
            turned = panel.turned_views(image, found[0].canon_depth, options)
        (factors, reconstruction), turned = jax.device_get((found, turned))
        measured = belief.measure(reconstruction, images)

        def of(i: int) -> Found:
            one, its = jax.tree.map(lambda a: a[i], (factors, reconstruction))
            around = jax.tree.map(lambda a: a[:, i : i + 1], turned)
            return Found(one, its, around, belief.numbers(measured[i], usual))

        return of

    def write(folder: Path, images: list[Picture], found: Found) -> Mapping[str, Any]:
        more = export.export(
            folder,
            images[0],
            dataclasses.replace(found.factors, **dict.fromkeys(without)),
            found.reconstruction,
            options,
            whole_surface=whole,
            belief=belief.as_array(found.believed),
            outputs=outputs,
            turned=found.turned,
        )
        return {**more, "belief": found.believed}

    # What is known of others decides what is said of each.
    known: list[Any] = [] if usual is None else [usual.as_json()]
    known += [] if set(outputs) == set(OUTPUTS) else [sorted(outputs)]
    work = Work(
        made=photo_folders.made_from(params, options, share, whole, without, *known),
        sizes=(options.networks.image_size,),
        find=find,
        write=write,
        remark=remark,
        workers=_WORKERS,
    )
    # How CelebA is cut depends on the layout it lies in: its files are as any others.
    own = config.data.name == "celeba"
    return photos_to_folders(
        source,
        output,
        work,
        crop=(0,) if own else config.data.crop,
        data_path="" if own else config.data.path,
        batch_size=batch_size,
    )


def unlearnt(config: ConfigDict) -> list[str]:
    """The confidence maps of losses that were off: they still are as initialised."""
    loss, names = config.loss, []
    no_flip = loss.flip == 0 and loss.flip_start == 0
    if no_flip:
        names += ["conf_sigma_flip", "conf_sigma_perceptual_flip"]
    if loss.perceptual == 0:
        names += ["conf_sigma_perceptual", "conf_sigma_perceptual_flip"]
    return sorted(set(names))


def remark(record: Mapping[str, Any]) -> Remark:
    """What a photo's record says of how far it may be believed."""
    found = record.get("belief")
    if not isinstance(found, Mapping):  # of an earlier version
        return Remark({})
    columns = {name: found.get(name) for name in (*belief.MEASURES, "doubt")}
    columns["doubtful"] = found.get("doubtful")
    text = f"error {found['error']:.3f}, coverage {found['coverage']:.0%}"
    if found["doubt"] is None:
        return Remark(columns, text)
    text += f", doubt {found['doubt']:.0f} %"
    if not found["doubtful"]:
        return Remark(columns, text)
    warning = (
        f"explained worse than {found['doubt']:.0f} % of the photos that the model was "
        f"validated with (error {found['error']:.3f}, usually "
        f"{found['usual_error']:.3f}; coverage {found['coverage']:.0%}): do not trust "
        "its shape."
    )
    return Remark(columns, text, warning)


@functools.partial(jax.jit, static_argnames="options")
def decompose(
    params: dict,
    images: Float[AnyArray, "b h w 3"],
    options: ModelOptions,
    view_range: Float[Array, ""] | None,
) -> tuple[Factors, Reconstruction]:
    """Everything about images in [0, 1]; view_range: see `model.decompose`."""
    images = jnp.asarray(images)
    factors = model.decompose(params, images, options, view_range=view_range)
    return factors, model.reconstruct(factors, options)
