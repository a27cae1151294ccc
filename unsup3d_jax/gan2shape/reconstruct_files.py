"""Mode `reconstruct`: photos in, a folder of shape, pictures, videos each out.

There is no network to be run on a photo: its shape is what the stages find, minutes a
photo. What they have reached lies in the workdir, so that the same command goes on.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unsup3d_jax.configuration import changed
from unsup3d_jax.data.dataset import digest_of
from unsup3d_jax.engine import photo_folders
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.packing import checksums
from unsup3d_jax.engine.photo_job import Picture, Result, Work, photos_to_folders
from unsup3d_jax.engine.task import run_keys
from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import Arguments, command
from unsup3d_jax.gan2shape import export, generated, options, run, stages, subjects
from unsup3d_jax.gan2shape.export import ExportOptions
from unsup3d_jax.gan2shape.start import NAME, first_params
from unsup3d_jax.gan2shape.steps import Looks
from unsup3d_jax.gan2shape.through_generator import answer_of

# Photos have no true mask.
_MASK = "ellipse"


@dataclasses.dataclass(frozen=True)
class Found:
    """What the stages found in one photo.

    Attributes:
        looks: leading axis of 1, on the host.
        encoder: parameters of the projection's encoder.
        own: the projection's arrays of the photo.
        shared: those of all photos.
    """

    looks: Looks
    encoder: Any
    own: Any
    shared: Any


def reconstruct(args: Arguments, interrupts: Interrupts) -> Result:
    """Runs the stages on a photo, or on all photos of a folder, and exports each.

    Raises:
        UserError: see `photos_to_folders`; and for a config that photos cannot have.
        Interrupted: if it is stopped; the same command goes on.
    """
    assert args.input is not None and args.output is not None  # `flags` has checked
    config = _for_photos(args.config)
    static = options.check_config(config)
    projection, shared = generated.make(config)
    plan = run.plan_of(config, static, projection)
    start = first_params(config)
    how = ExportOptions(config.export.whole_surface, config.export.most_yaw_deg)

    def find(images: Float[np.ndarray, "b h w 3"]) -> Callable[[int], Any]:
        images = _without_filling(images)
        digest = digest_of(checksums({"images": images}))
        folder = args.workdir / "photos" / digest
        folder.mkdir(parents=True, exist_ok=True)
        names = tuple(f"photo {i}" for i in range(len(images)))
        found = subjects.of_images(config, names, images)
        found = generated.known(config, found, shared, folder)
        lot = run.Lot(slice(0, len(images)), folder)
        work = run.work_of(config, found, lot, run.common_of(config, found), start)
        work = _keyed_by_content(work, images, config.seed)
        state, done = stages.run(work, plan, folder, interrupts)
        if not done:
            say(
                f"stopped at iteration {int(state.step)} of {plan.last}; the "
                f"checkpoint is saved. To resume: {command()}"
            )
            raise Interrupted
        parts = jax.device_get(dict(state.parts))

        def of_photo(index: int) -> Found:
            # A group a photo; the record's last row is the last stage.
            looks = {k: x[-1, index] for k, x in parts["record"].items()}
            encoder = jax.tree.map(lambda x: x[index], parts["params"]["encoder"])
            own = jax.tree.map(lambda x: x[index], found.own)
            return Found(Looks(**looks), encoder, own, found.shared)

        return of_photo

    def write(folder: Path, images: list[Picture], found: Found) -> Mapping[str, Any]:
        answer = answer_of(projection, found.encoder, found.shared, found.own)
        return export.export(folder, images[0], found.looks, static, how, answer)

    made = photo_folders.made_from(
        {"start": start, "projection": shared},
        (static, plan.phases, how, projection),
        _deciding(config),
    )
    work = Work(made=made, sizes=(config.data.image_size,), find=find, write=write)
    return photos_to_folders(
        args.input,
        args.output,
        work,
        crop=(0,),
        data_path="",
        batch_size=config.stages.groups_at_a_time,
    )


def _deciding(config: Any) -> dict[str, Any]:
    """What decides the shapes beside static options and parameters; JSON-able."""
    sections = ("prior", "sampling", "stages", "loss", "invert", "projection", "broken")
    values = {name: config[name].to_dict() for name in sections}
    for key in ("groups_at_a_time", "side_by_side"):
        del values["stages"][key]
    return {"seed": config.seed, **values}


def _without_filling(
    images: Float[np.ndarray, "b h w 3"],
) -> Float[np.ndarray, "n h w 3"]:
    """A batch without the copies of the last that fill it up: minutes each."""
    count = len(images)
    while count > 1 and np.array_equal(images[count - 1], images[count - 2]):
        count -= 1
    return images[:count]


def _keyed_by_content(
    work: stages.Work, images: Float[np.ndarray, "n h w 3"], seed: int
) -> stages.Work:
    """The work with keys that depend on each photo alone, not on its place."""
    init_key, run_key = run_keys(seed)
    contents = [zlib.crc32(np.ascontiguousarray(one).data) for one in images]
    numbers = jnp.asarray(contents, jnp.uint32)
    first, then = (
        jax.vmap(lambda n, key=key: jax.random.fold_in(key, n))(numbers)
        for key in (init_key, run_key)
    )
    given = dataclasses.replace(work.given, key=then[:, None])
    return dataclasses.replace(work, key=first, given=given)


def _for_photos(config: Any) -> Any:
    """The config, as photos that nothing is known of can have it.

    Raises:
        UserError: for the oracle, and for masks in a folder.
    """
    if config.projection.kind == "oracle":
        raise UserError("projection.kind=oracle: photos have no true scene.")
    if config.prior.mask == "folder":
        raise UserError(
            "prior.mask=folder: --mode=reconstruct knows no masks; take ellipse, or "
            "--mode=train --input=PHOTOS."
        )
    if config.projection.latents:
        raise UserError(
            "projection.latents: --mode=reconstruct searches latents; leave it empty, "
            "or take --mode=train --input=PHOTOS."
        )
    changes: dict[str, Any] = {"stages.group": 1, "stages.mode": "instance"}
    changes["loss.spread"] = 0.0  # a photo alone has none
    if options.joint_stage(config) is not None:
        # A photo gets the same shape in whatever company it comes.
        changes["train.init_from"] = NAME
    if config.prior.mask == "true":
        say("photos have no true mask: the prior is a fixed ellipse in the middle.")
        changes["prior.mask"] = _MASK
    return changed(config, changes)
