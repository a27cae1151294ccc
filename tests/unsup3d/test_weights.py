"""--weights: what ships by name, a user's file, a workdir; and what is none of them."""

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path

import bust
import jax
import numpy as np
import pytest

from configs import faces
from unsup3d_jax import cli, configuration, flags
from unsup3d_jax.engine import checkpoint, half_precision
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation.scores import ImageScores
from unsup3d_jax.unsup3d import belief, modes, reconstruct_files, score, shipped, task

PHOTOS = ("--mode=reconstruct", "--input=i", "--output=o")


def parse(*given):
    return flags.parse(["main.py", *map(str, given)], cli.METHODS)


def write(path, config, **more):
    """A file of weights of this config, and its parameters: noise."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: task.initial_params(config))
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.05, s.shape).astype(np.float16), shapes
    )
    meaning = half_precision.meaning_of(config, task.IDENTITY)
    training = half_precision.training_of(config, task.IDENTITY)
    known = {"step": 7, "seed": 0, "config": training}
    half_precision.save(path, params, meaning, **known | more)
    return params


@pytest.fixture(scope="module")
def trained():
    """The config of a run that differs from every default that matters."""
    config = bust.config_of(32)
    config.name, config.data.path, config.loss.flip = "mine", "/home/me/photos", 1.0
    config.data.crop, config.train.init_from = (9,), "/home/me/other"
    return config


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "friends.npz"
    return path, write(path, trained)


def test_a_file_brings_its_config_and_its_parameters(saved, trained):
    path, params = saved
    args = parse(*PHOTOS, f"--weights={path}")
    assert (args.weights, args.checkpoint) == (path, None)
    assert args.config.is_locked and args.note == ""
    same = dict(configuration.flatten(trained.to_dict()))
    # It is called as the file is, and does not tell where its maker's photos lie.
    same |= {"name": "friends", "data.path": "", "train.init_from": ""}
    same["data.near_copies"] = args.config.data.near_copies  # changes nothing of a run
    assert configuration.flatten(args.config.to_dict()) == same
    assert "/home" not in str(configuration.about_weights(path))
    found, step = modes.load_params(args)
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_a_name_ships_and_stands_above_a_folder(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pals").mkdir()
    ours = dataclasses.replace(cli.METHODS["unsup3d"], weights={"pals": saved[0]})
    argv, methods = ["main.py", *PHOTOS], cli.METHODS | {"unsup3d": ours}
    args = flags.parse([*argv, "--weights=pals"], methods)
    assert args.weights == saved[0] and args.workdir == Path("runs") / "friends"
    with pytest.raises(UserError, match="pals holds no config.json .* there is pals"):
        flags.parse([*argv, "--weights=./pals"], methods)


def test_a_workdir_is_a_checkpoint_and_becomes_a_file(
    saved, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(score, "find_usual", lambda *_: "nobody looked.")
    wanted = jax.tree.map(lambda x: x.astype(np.float32) * 1.0001, saved[1])
    monkeypatch.setattr(checkpoint, "load_parts", lambda *_: ({"params": wanted}, 5))
    (tmp_path / "config.json").write_text(json.dumps({"config": trained.to_dict()}))
    args = parse(*PHOTOS, f"--weights={tmp_path}")
    assert (args.checkpoint, args.workdir, args.weights) == (tmp_path, tmp_path, None)
    path, step = shipped.make(tmp_path)
    assert path == tmp_path / "weights.npz" and step == 5
    assert "may be believed is not stored: nobody looked." in capsys.readouterr().err
    found, _ = modes.load_params(parse(*PHOTOS, f"--weights={path}"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        found,
        wanted,
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="holds no config.json of a run"):
        shipped.make(tmp_path / "other")


def test_what_is_usual_comes_with_them_or_is_missed_once(
    saved, trained, tmp_path, monkeypatch, capsys
):
    numbers = np.linspace(0.02, 0.08, 50, dtype=np.float32)
    usual = belief.Usual.of(ImageScores(recon_l1=numbers, valid_share=numbers), 7)
    write(tmp_path / "known.npz", trained, belief=usual.as_json())
    given = []
    monkeypatch.setattr(
        reconstruct_files,
        "reconstruct_folder",
        lambda *_, **options: given.append((options["usual"], options["outputs"])),
    )
    argv = ["main.py", "--mode=reconstruct", f"--input={tmp_path}", "--output=o"]
    for path in (tmp_path / "known.npz", saved[0]):
        assert cli.main([*argv, f"--weights={path}", "--outputs=mesh"]) == 0
    assert given == [(usual, ("mesh",)), (None, ("mesh",))]
    (line,) = capsys.readouterr().err.splitlines()
    assert "friends.npz: no photo will be doubted" in line


def test_what_ships_is_small_and_whole():
    args = parse(*PHOTOS, "--weights=faces")
    params, step = modes.load_params(args)
    assert args.weights is not None
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert args.weights.stat().st_size < 1.5e6
    assert args.weights.with_suffix(".md").is_file()
    usual = belief.find(args.weights, step)
    assert usual is not None and usual.images >= 300
    # The config that it says it was made with.
    ours, made = args.config, faces.get_config()
    assert half_precision.meaning_of(ours, task.IDENTITY) == half_precision.meaning_of(
        made, task.IDENTITY
    )


def test_other_networks_are_named(saved, tmp_path):
    path, _ = saved
    given = [*PHOTOS, f"--weights={path}", "--config.model.width=32"]
    with pytest.raises(UserError, match="these keys differ: model.width"):
        modes.load_params(parse(*given))
    # A file that says what it is not.
    other = bust.config_of(32)
    other.model.bottleneck = 32
    meaning = half_precision.meaning_of(other, task.IDENTITY)
    with np.load(path) as stored:
        arrays = {k: stored[k] for k in stored.files if k != "about"}
    params = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    training = half_precision.training_of(other, task.IDENTITY)
    liar = tmp_path / "liar.npz"
    half_precision.save(liar, params, meaning, step=1, seed=0, config=training)
    with pytest.raises(UserError, match="has shape"):
        modes.load_params(parse(*PHOTOS, f"--weights={liar}"))


def test_what_is_none_is_one_line_and_runs_nothing(saved, tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    (tmp_path / "a.npz").write_bytes(b"no archive")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "c.npz", about=np.array([Trap()], object))
    np.savez(tmp_path / "d.npz", about=np.array('{"keys": {}}'))
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("about.npy", bytes(10))
    for name in ("a.npz", "b.pth", "c.npz", "d.npz", "e.npz", "no", "."):
        given = ["main.py", *PHOTOS, f"--weights={tmp_path / name}"]
        assert cli.main(given) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "--weights" in told, told
        assert "there is faces" in told or "no file of weights" in told
    # Parameters that are objects, behind a text that is sound.
    path, _ = saved
    with np.load(path) as stored:
        about = stored["about"]
    np.savez(tmp_path / "f.npz", about=about, trap=np.array([Trap()], object))
    with pytest.raises(UserError, match="f.npz: not a readable file of weights"):
        modes.load_params(parse(*PHOTOS, f"--weights={tmp_path / 'f.npz'}"))
    assert not (tmp_path / "sprung").exists()


def test_files_of_other_methods_and_other_modes_are_refused(saved, tmp_path):
    path, _ = saved
    for mode in ("train", "data"):
        with pytest.raises(UserError, match=f"--weights belongs to .*, not {mode}"):
            parse(f"--mode={mode}", "--config=quickstart", "--weights=faces")
    with pytest.raises(UserError, match="give one"):
        parse(*PHOTOS, f"--weights={path}", f"--checkpoint={tmp_path}")
    with pytest.raises(UserError, match="of the method stn3dmm"):
        parse(*PHOTOS, f"--weights={path}", "--config=stn3dmm/open_faces")
    about = configuration.about_weights(path)
    assert about is not None
    about["config"]["method"] = "stn3dmm"
    half_precision.save(tmp_path / "stn.npz", {}, about.pop("keys"), **about)
    with pytest.raises(UserError, match="has method 'stn3dmm', expected one of uns"):
        parse(*PHOTOS, f"--weights={tmp_path / 'stn.npz'}")
