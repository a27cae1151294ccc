"""A photo in, a folder out, through every step: with a generator that knows nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax import cli
from unsup3d_jax.nets import stylegan2
from unsup3d_jax.nets.stylegan2_files import write_stylegan2

SHORT = {
    "invert.steps": 5,
    "invert.samples": 32,
    "stages.count": 1,
    "stages.prior_steps": 10,
    "stages.first_steps": "3,3,3",
    "stages.collect": 2,
    "log.every": 10,
}


@pytest.mark.slow
def test_a_photo_goes_through_every_step_and_the_generator(tmp_path):
    options = stylegan2.GanOptions(
        image_size=32, channels=(8, 8, 4, 4), style=16, noise=False
    )
    keys = jax.random.split(jax.random.key(0), 3)
    gan = stylegan2.StyleGan(
        **stylegan2.init_generator(keys[0], options),
        discriminator=stylegan2.init_discriminator(keys[1], options),
        noise=stylegan2.fixed_noise(keys[2], options),
        mean_w=jnp.zeros(16),
        options=options,
    )
    write_stylegan2(tmp_path / "gan.safetensors", gan, np.float32, {})
    y, x = np.mgrid[:48, :48] / 23.5 - 1.0
    inside = ((x / 0.7) ** 2 + (y / 0.9) ** 2 < 1.0)[..., None]
    photo = np.where(inside, [220, 160, 130], [128, 128, 128]).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "ball.png")
    command = [
        "main.py",
        "--mode=reconstruct",
        "--config=configs/gan2shape/faces.py",
        f"--workdir={tmp_path / 'run'}",
        f"--input={tmp_path / 'ball.png'}",
        f"--output={tmp_path / 'out'}",
        f"--config.projection.generator={tmp_path / 'gan.safetensors'}",
        *(f"--config.{key}={value}" for key, value in SHORT.items()),
    ]
    assert cli.main(command) == 0
    folder = tmp_path / "out" / "ball"
    names = {path.name for path in folder.iterdir()}
    for wanted in ("mesh.glb", "turntable.mp4", "rotations.png", "relighting.mp4"):
        assert wanted in names
    with np.load(folder / "factors.npz") as arrays:
        assert all(np.isfinite(array).all() for array in arrays.values())
