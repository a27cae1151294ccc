"""Makes the file that `sampling.load` reads: of an unsup3d run, or of the open faces.

    python -m unsup3d_jax.gan2shape.statistics FILE.json --run WORKDIR
    python -m unsup3d_jax.gan2shape.statistics FILE.json --open_faces natural

The first reads V and L of a finished unsup3d run over its own training images, as the
authors do. The second takes the distribution that the open faces are drawn from: it is
what a perfect run would find.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configuration import Keys, of_run, record_beside
from unsup3d_jax.data import load
from unsup3d_jax.data.batches import eval_batches
from unsup3d_jax.data.open_face import dataset, scene
from unsup3d_jax.data.open_face.model import Draws
from unsup3d_jax.engine import checkpoint
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import sampling
from unsup3d_jax.nets import networks

# Views and lights in the units of raw 1: see `configs/gan2shape/default.py`.
_ROTATION, _TRANSLATION = np.radians(60.0), 0.1


def raw_of_true(
    view: Float[np.ndarray, "n 6"], light: Float[np.ndarray, "n 5"]
) -> tuple[Float[np.ndarray, "n 6"], Float[np.ndarray, "n 4"]]:
    """What V and L would have to say: the inverse of `formation.heads`.

    Args:
        view: rotation (radians), translation (scene units; z is left out).
        light: ambient, diffuse, unit direction.
    """
    translation = view[:, 3:5] / _TRANSLATION
    raw_view = np.concatenate(
        [view[:, :3] / _ROTATION, translation, np.zeros((len(view), 1))], axis=1
    )
    strengths = 2.0 * light[:, :2] - 1.0
    direction = light[:, 2:4] / light[:, 4:5]
    return raw_view, np.concatenate([strengths, direction], axis=1)


def of_open_faces(pose: str, count: int) -> dict[str, Any]:
    """Moments of the views and lights that open faces are drawn with.

    Of the first draw of each; some, which do not fit into the image, are drawn again.
    """
    seeds = dataset.split_seeds("train", count=count)
    draws = Draws(seeds, "pose", scene.POSE_ATTEMPTS * scene.POSE_DRAWS)
    view, _ = scene.sample_pose(draws, pose)
    return sampling.moments(*raw_of_true(view, scene.sample_light(seeds)))


def of_unsup3d_run(workdir: Path, limit: int = 0) -> tuple[dict[str, Any], int]:
    """Moments of what the networks of an unsup3d run say of its training images.

    Args:
        limit: only the first so many images; 0: all.

    Returns:
        As `sampling.moments`, and the step of the checkpoint.

    Raises:
        UserError: if it is no such run, or its images are not there.
    """
    record = record_beside(workdir)
    if record is None:
        raise UserError(f"--run: {workdir} holds no config.json of a run.")
    keys = Keys(default.get_config, default.RANGES, default.YOUNGER)
    config = of_run(record, {"unsup3d": keys})
    if config.model.shading != "lambert":
        raise UserError(f"--run: {workdir} has no light (model.shading=map).")
    found, step = checkpoint.load_parts(workdir)
    views, lights = [], []
    for view, light in _outputs(config, found["params"], limit):
        views.append(view)
        lights.append(light)
    return sampling.moments(np.concatenate(views), np.concatenate(lights)), step


def _outputs(
    config: ConfigDict, params: Any, limit: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Raw views and lights, in the units of this method, batch by batch."""
    width = config.model.encoder_width
    reach = config.view
    scale = np.array(
        [np.radians(reach.rotation_max_deg) / _ROTATION] * 3
        + [reach.translation_xy_max / _TRANSLATION] * 2
        + [0.0]
    )
    limits = config.light
    strengths = (
        (limits.ambient_min, limits.ambient_max),
        (limits.diffuse_min, limits.diffuse_max),
    )

    @jax.jit
    def read(params: Any, image: jax.Array) -> tuple[Any, Any]:
        signed = 2.0 * image - 1.0
        return tuple(
            networks.Encoder(outputs, width).apply({"params": params[name]}, signed)
            for name, outputs in (("view", 6), ("light", 4))
        )  # pyright: ignore[reportReturnType]

    data, done = load.load_split(config, "train"), 0
    for batch, real in eval_batches(data, config.eval.batch_size):
        view, light = (
            np.asarray(x, np.float64)[:real]
            for x in read(params, jnp.asarray(batch.image))
        )
        for i, (low, high) in enumerate(strengths):
            found = low + (1.0 + light[:, i]) / 2.0 * (high - low)
            light[:, i] = 2.0 * found - 1.0
        yield view * scale, light
        done += real
        if limit and done >= limit:
            return


def main() -> None:
    """Writes the file; see above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path)
    source.add_argument("--open_faces", choices=("natural", "mixed"))
    parser.add_argument("--count", type=int, default=0)
    args = parser.parse_args()
    provenance: dict[str, Any]
    try:
        if args.run is not None:
            found, step = of_unsup3d_run(args.run, args.count)
            provenance = {"unsup3d_run": args.run.name, "step": step, "split": "train"}
        else:
            count = args.count or 2000
            found = of_open_faces(args.open_faces, count)
            provenance = {"open_faces": args.open_faces, "split": "train"}
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    sampling.write(args.file, found, provenance)
    print(f"{args.file}: {found['images']} images")


if __name__ == "__main__":
    main()
