"""Modes that use what a run has learnt take its config, whatever --config says."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs import default
from unsup3d_jax import cli, configuration, flags
from unsup3d_jax.configuration import changed, flatten
from unsup3d_jax.engine import checkpoint, scored
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d import modes

FOLDER = f"--config={flags.CONFIG_FOLDER}/folder.py"
USING = [
    ["--mode=eval"],
    ["--mode=reconstruct", "--input=i", "--output=o"],
    ["--mode=keypoints", "--input=i"],
]


def _parse(*given):
    return flags.parse(["main.py", *map(str, given)], cli.METHODS)


def _write(workdir: Path, edit=lambda record: None, **changes) -> Path:
    """A workdir whose run was trained with changes such as model__width=32."""
    config = default.get_config()
    config.name = "mine"
    named = {key.replace("__", "."): value for key, value in changes.items()}
    record = {"config": json.loads(json.dumps(changed(config, named).to_dict()))}
    edit(record["config"])
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(record))
    return workdir


@pytest.mark.parametrize("mode", USING, ids=str)
def test_no_override_of_the_training_is_repeated(mode, tmp_path):
    run = _write(tmp_path / "run", model__width=32, data__crop=(9,), loss__flip=1.0)
    args = _parse(*mode, f"--workdir={run}", "--config.eval.max_images=5")
    config = args.config
    assert args.workdir == run and args.note == "" and config.is_locked
    assert (config.model.width, config.data.crop, config.loss.flip) == (32, (9,), 1.0)
    assert config.eval.max_images == 5 and args.given == {"eval.max_images"}
    expected = changed(
        default.get_config(),
        {"name": "mine", "model.width": 32, "data.crop": (9,), "loss.flip": 1.0,
         "eval.max_images": 5},
    )  # fmt: skip
    assert config.to_dict() == expected.to_dict()


def test_the_run_stands_above_a_config_file_which_is_said(tmp_path):
    folder = {"data__crop": (0,), "data__path": "there"}
    run = _write(tmp_path / "run", model__width=32, train__steps=7, **folder)
    args = _parse("--mode=eval", FOLDER, f"--workdir={run}", "--config.train.steps=9")
    assert args.config.model.width == 32 and args.config.train.steps == 9
    assert args.note == (
        f"the config of the run, {run}/config.json, stands above --config: data.path "
        "('there', not ''), model.width (32, not 64). Change it by --config.key=value."
    )
    same = _parse(
        "--mode=eval", FOLDER, f"--workdir={_write(tmp_path / 'b', data__crop=(0,))}"
    )
    assert same.note == ""


@pytest.mark.parametrize("name", ["folder", "other"])
def test_the_file_names_the_default_workdir(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(Path("runs") / name, model__width=32)
    given = [] if name == "folder" else [f"--config.name={name}"]
    args = _parse("--mode=eval", FOLDER, *given)
    assert args.workdir == Path("runs") / name and args.config.model.width == 32


@pytest.mark.parametrize("place", ["", "checkpoints/5"])
def test_another_runs_checkpoint_brings_its_config(place, tmp_path):
    run, other = _write(tmp_path / "run"), _write(tmp_path / "b", model__width=32)
    (other / "checkpoints" / "5").mkdir(parents=True)
    given = ["--mode=eval", f"--checkpoint={other / place}"]
    both = _parse(*given, f"--workdir={run}")
    assert both.config.model.width == 32 and both.workdir == run
    alone = _parse(*given)
    assert alone.config.model.width == 32 and alone.workdir == other
    assert scored.origin(alone) is None and scored.origin(both)


def test_a_checkpoint_of_nobody_knows_whom_takes_the_workdirs_config(tmp_path):
    run, bare = _write(tmp_path / "run", model__width=32), tmp_path / "bare"
    bare.mkdir()
    args = _parse("--mode=eval", f"--workdir={run}", f"--checkpoint={bare}")
    assert args.config.model.width == 32


def test_keys_younger_than_the_run_mean_what_was_done_then(tmp_path):
    def older(config):
        del config["method"], config["view"]["warmup_start"], config["eval"]["split"]
        config["compat"]["gone"] = 3

    path = _write(tmp_path / "run", older, model__width=32) / "config.json"
    config = configuration.of_run(path, {"unsup3d": modes.KEYS})
    assert config.method == "unsup3d" and config.model.width == 32
    assert config.view.warmup_start == default.YOUNGER["view.warmup_start"]
    assert config.eval.split == "test" and "gone" not in config.compat
    # Not the default, which may have changed since.
    then = dataclasses.replace(
        modes.KEYS, younger={"method": "unsup3d", "view.warmup_start": 0.75}
    )
    assert configuration.of_run(path, {"unsup3d": then}).view.warmup_start == 0.75


def test_an_odd_value_of_a_run_is_named_and_can_be_mended(tmp_path):
    run = _write(tmp_path / "run", data__workers=-1)
    given = ["--mode=eval", f"--workdir={run}"]
    with pytest.raises(UserError) as error:
        _parse(*given)
    assert str(error.value) == (
        f"{run}/config.json: data.workers must be an integer from 0 to 1024, got -1."
    )
    assert _parse(*given, "--config.data.workers=2").config.data.workers == 2

    def text(config):
        config["train"]["steps"] = "many"

    run = _write(tmp_path / "other", text)
    with pytest.raises(UserError, match="train.steps must be an integer .*, got many"):
        _parse("--mode=eval", f"--workdir={run}")


def test_what_is_no_config_of_a_run_is_one_line(tmp_path, capsys):
    run = _write(tmp_path / "run")
    (run / "config.json").write_text('{"config": ')
    assert cli.main(["main.py", "--mode=eval", f"--workdir={run}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "config.json is not the config of a run" in err


def test_without_a_run_the_file_is_needed(tmp_path, monkeypatch):
    for given in ([], [f"--workdir={tmp_path}"], [f"--checkpoint={tmp_path}"]):
        with pytest.raises(
            UserError, match="--config=.* is missing, and no config.json"
        ):
            _parse("--mode=eval", *given)
    # Training is of the file: a run's own config would hide what changed in it.
    run = _write(tmp_path / "run")
    with pytest.raises(UserError, match="--config=NAME is missing; --help"):
        _parse(f"--workdir={run}")
    assert _parse(FOLDER, f"--workdir={run}").config.name == "folder"


def test_a_config_json_above_a_workdir_is_somebody_elses(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    workdir = tmp_path / "runs" / "mine"
    workdir.mkdir(parents=True)
    assert configuration.record_beside(workdir) is None
    assert _parse("--mode=eval", FOLDER, f"--workdir={workdir}").config.name == "folder"


def test_a_key_that_would_make_it_another_model_is_refused(tmp_path, monkeypatch):
    run = _write(tmp_path / "run", model__width=32)
    monkeypatch.setattr(checkpoint, "load_parts", lambda *_: ({"params": {}}, 5))
    args = _parse("--mode=eval", f"--workdir={run}", "--config.model.width=16")
    with pytest.raises(UserError, match=r"model.width \(32 there, 16 now\)"):
        modes.load_params(args)


def test_another_method_is_refused(tmp_path):
    def other(config):
        config["method"] = "painting"

    run = _write(tmp_path / "run", other)
    with pytest.raises(UserError, match="has method 'painting', expected one of"):
        _parse("--mode=eval", f"--workdir={run}")
    painting = flags.Method(modes.KEYS, {})
    methods = cli.METHODS | {"painting": painting}
    with pytest.raises(UserError, match="folder.py is of the method unsup3d"):
        flags.parse(["", "--mode=eval", FOLDER, f"--workdir={run}"], methods)


def test_every_key_survives_a_config_json(tmp_path):
    """As it was: tuples, floats that JSON writes as integers, empty texts."""
    run = _write(tmp_path / "run", eval__baselines=("average",), loss__flip=1)
    found = configuration.of_run(run / "config.json", {"unsup3d": modes.KEYS})
    expected = changed(
        default.get_config(),
        {"name": "mine", "eval.baselines": ("average",), "loss.flip": 1},
    )
    for key, value in flatten(expected.to_dict()).items():
        *sections, name = key.split(".")
        a, b = found, expected
        for section in sections:
            a, b = a[section], b[section]
        assert type(a[name]) is type(b[name]) and a[name] == b[name], (key, value)
