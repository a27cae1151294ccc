"""The command line through every step, with a generator that knows nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax import cli
from unsup3d_jax.engine import checkpoint
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


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The file of one that knows nothing."""
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
    path = tmp_path_factory.mktemp("generator") / "gan.safetensors"
    write_stylegan2(path, gan, np.float32, {})
    return path


@pytest.mark.slow
def test_a_photo_goes_through_every_step_and_the_generator(generator, tmp_path):
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
        f"--config.projection.generator={generator}",
        *(f"--config.{key}={value}" for key, value in SHORT.items()),
    ]
    assert cli.main(command) == 0
    folder = tmp_path / "out" / "ball"
    names = {path.name for path in folder.iterdir()}
    for wanted in ("mesh.glb", "turntable.mp4", "rotations.png", "relighting.mp4"):
        assert wanted in names
    with np.load(folder / "factors.npz") as arrays:
        assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiles every step twice
def test_groups_begin_where_the_joint_stage_has_ended(generator, tmp_path):
    keys = SHORT | {
        "stages.joint_steps": "2,2,2",
        "stages.joint_images": 2,
        "stages.joint_others": 2,
        "stages.group": 1,
        "stages.groups_at_a_time": 1,
        "eval.max_images": 2,
        "data.count_test": 2,
        "projection.generator": generator,
    }
    command = [
        "main.py",
        "--config=configs/gan2shape/faces.py",
        f"--workdir={tmp_path}",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]
    assert cli.main(command) == 0
    joint = checkpoint.load_parts(tmp_path / "joint", ("record",))[0]["record"]
    for image in range(2):
        lot = tmp_path / "groups" / f"{image:05d}"
        own = checkpoint.load_parts(lot, ("record",))[0]["record"]
        for name in ("canon_depth", "view", "light"):
            np.testing.assert_allclose(
                own[name][0, 0, 0], joint[name][-1, 0, image], atol=1e-5, err_msg=name
            )
            assert np.abs(own[name][1] - own[name][0]).max() > 1e-4, name
