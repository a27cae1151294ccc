"""Photos in, folders out: what the stages found, without running them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax import cli, flags
from unsup3d_jax.configuration import changed
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.task import RunState
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import export, reconstruct_files, sampling, stages

# Compiled programs of seconds each.
pytestmark = pytest.mark.once


@pytest.fixture()
def args(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{name}.png")
    command = [
        "--mode=reconstruct",
        "--config=configs/gan2shape/faces.py",
        f"--workdir={tmp_path / 'run'}",
        f"--input={photos}",
        f"--output={tmp_path / 'out'}",
        "--config.projection.kind=none",
        "--config.stages.joint_steps=(0,0,0)",  # what ships has an encoder
        "--config.stages.groups_at_a_time=2",
    ]
    return flags.parse(["main.py", *command], cli.METHODS)


@pytest.fixture()
def runs(monkeypatch):
    """Work of every run of the stages, and whether runs finish."""
    seen = types.SimpleNamespace(works=[], done=True)

    def run(work, plan, folder, interrupts):
        seen.works.append(work)
        image = work.given.image
        n = len(image)
        # The depth of a photo is its own red channel.
        depth = 0.9 + 0.2 * image[..., 0]
        last = {
            "canon_depth": depth,
            "canon_albedo": image,
            "view": jnp.zeros((n, 1, 6)),
            "light": jnp.zeros((n, 1, 5)).at[..., 4].set(1.0),
            "depth": depth,
            "valid": jnp.ones(depth.shape, bool),
            "image": image,
        }
        record = {k: jnp.stack([jnp.zeros_like(x), x]) for k, x in last.items()}
        parts = {"params": {"encoder": {}}, "record": record}
        state = RunState(step=jnp.int32(7), key=jax.random.key(0), parts=parts)
        return state, seen.done

    monkeypatch.setattr(stages, "run", run)
    statistics = sampling.from_moments(
        {
            "view_mean": np.zeros(6),
            "view_covariance": np.eye(6),
            "light_mean": np.zeros(4),
        }
    )
    monkeypatch.setattr(sampling, "load", lambda path: statistics)

    def write(folder, image, looks, options, how, answer):
        np.save(folder / "depth.npy", looks.canon_depth)
        np.save(folder / "image.npy", image)
        assert answer is None
        return {}

    monkeypatch.setattr(export, "export", write)
    return seen


def test_each_photo_gets_its_own_shape_and_is_not_worked_on_twice(args, runs, capsys):
    result = reconstruct_files.reconstruct(args, Interrupts())
    assert [folder.name for _, folder in result.written] == ["a", "b", "c"]
    assert "photos have no true mask" in capsys.readouterr().err
    for _, folder in result.written:
        image = np.load(folder / "image.npy")
        depth = np.load(folder / "depth.npy")
        np.testing.assert_allclose(depth[0], 0.9 + 0.2 * image[..., 0], atol=1e-6)
    # Two, and then one: not a copy of it beside it.
    assert [len(work.given.image) for work in runs.works] == [2, 1]
    again = reconstruct_files.reconstruct(args, Interrupts())
    assert len(again.kept) == 3 and len(runs.works) == 2


def test_what_a_photo_draws_does_not_depend_on_its_company(args, runs):
    reconstruct_files.reconstruct(args, Interrupts())
    alone = dataclasses.replace(
        args, input=args.input / "b.png", output=args.output / "alone"
    )
    reconstruct_files.reconstruct(alone, Interrupts())
    first, last = runs.works[0], runs.works[-1]
    for beside, single in ((first.key, last.key), (first.given.key, last.given.key)):
        beside, single = jax.random.key_data(beside), jax.random.key_data(single)
        np.testing.assert_array_equal(beside[1], single[0])
        assert not np.array_equal(beside[0], single[0])


def test_an_interrupted_run_writes_nothing(args, runs):
    runs.done = False
    with pytest.raises(Interrupted):
        reconstruct_files.reconstruct(args, Interrupts())
    assert not any(p for p in args.output.iterdir() if not p.name.startswith("."))


def test_photos_begin_with_what_ships_unless_the_config_says_otherwise(
    args, monkeypatch
):
    class Seen(Exception):
        pass

    def seen(config):
        raise Seen(config.train.init_from)

    monkeypatch.setattr(reconstruct_files, "first_params", seen)
    joint = {"stages.joint_steps": (1, 1, 1)}
    for changes, place in (
        (joint, "open_faces"),
        (joint | {"train.init_from": "mine"}, "mine"),
        ({"train.init_from": "mine"}, "mine"),
        ({}, ""),
    ):
        with_them = dataclasses.replace(args, config=changed(args.config, changes))
        with pytest.raises(Seen, match=f"^{place}$"):
            reconstruct_files.reconstruct(with_them, Interrupts())


def test_what_ships_does_not_fit_another_projection(args):
    wrong = changed(args.config, {"stages.joint_steps": (1, 1, 1)})
    with pytest.raises(UserError, match=r"differ: projection.kind.*joint_steps="):
        reconstruct_files.reconstruct(
            dataclasses.replace(args, config=wrong), Interrupts()
        )


def test_photos_have_no_true_scene_and_no_masks(args):
    for changes, words in (
        ({"projection.kind": "oracle"}, "photos have no true scene"),
        ({"prior.mask": "folder"}, "take ellipse"),
        ({"projection.latents": "there"}, "searches latents"),
    ):
        wrong = dataclasses.replace(args, config=changed(args.config, changes))
        with pytest.raises(UserError, match=words):
            reconstruct_files.reconstruct(wrong, Interrupts())
