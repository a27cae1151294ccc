"""The trained generator that ships: `weights/open_faces.safetensors`, and its making.

    python -m unsup3d_jax.stylegan2.shipped PLACE [FILE.safetensors]

takes the averaged generator and the discriminator of a workdir, or of one of its
`checkpoints/<step>` folders, in half precision. `weights/open_faces.md` is its model
card.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.configs.gan2shape import gan_default
from unsup3d_jax.configuration import Keys, of_run, record_beside
from unsup3d_jax.engine import checkpoint, packing
from unsup3d_jax.errors import UserError
from unsup3d_jax.nets.stylegan2 import StyleGan, fixed_noise, mean_latent
from unsup3d_jax.nets.stylegan2_files import read_stylegan2, write_stylegan2
from unsup3d_jax.stylegan2 import task
from unsup3d_jax.stylegan2.options import gan_options

PATH = Path(__file__).with_name("weights") / "open_faces.safetensors"
_FOR_MEAN = 65536  # samples whose mean w is stored


def gan_of(parts: Mapping[str, Any], config: ConfigDict) -> StyleGan:
    """What GAN2Shape takes: noise maps that stay, and the mean of w.

    Args:
        parts: "ema" and "discriminator" of a run of this config.
    """
    options = gan_options(config)
    ema = jax.tree.map(jnp.asarray, parts["ema"])
    noise_key, mean_key = jax.random.split(jax.random.key(config.seed))
    return StyleGan(
        mapping=ema["mapping"],
        synthesis=ema["synthesis"],
        discriminator=jax.tree.map(jnp.asarray, parts["discriminator"]),
        noise=fixed_noise(noise_key, options),
        mean_w=mean_latent(ema["mapping"], mean_key, options, _FOR_MEAN),
        options=options,
    )


def load(config: ConfigDict, path: Path = PATH) -> dict[str, Any]:
    """The shipped parameters by the names of a run's parts, float32.

    Raises:
        UserError: if the file is missing, or the config is of another generator:
            `configs/gan2shape/gan_faces_wide.py` is of this one.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; train first (--mode=train).")
    gan = read_stylegan2(path, gan_options(config))
    parts = {
        "ema": {"mapping": gan.mapping, "synthesis": gan.synthesis},
        "discriminator": gan.discriminator,
    }
    packing.check_shapes(parts, task.shapes_of_results(config), str(path))
    return parts


def main() -> None:
    """Writes the file; see above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("file", type=Path, nargs="?", default=PATH)
    args = parser.parse_args()
    record = record_beside(args.place)
    if record is None:
        raise SystemExit(f"{args.place} holds no config.json of a run.")
    keys = Keys(gan_default.get_config, gan_default.RANGES, gan_default.YOUNGER)
    config = of_run(record, {"stylegan2": keys})
    found, step = checkpoint.load_parts(args.place, task.RESULTS)
    args.file.parent.mkdir(exist_ok=True)
    about = {"step": step, "seed": config.seed, "config": config.name}
    metadata = {"about": json.dumps(about, sort_keys=True)}
    write_stylegan2(args.file, gan_of(found, config), np.float16, metadata)
    print(f"{args.file}: {args.file.stat().st_size:,} bytes, step {step}")


if __name__ == "__main__":
    main()
