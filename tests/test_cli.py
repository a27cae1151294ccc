"""The command line from outside: what it accepts, refuses, and prints."""

import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from unsup3d_jax import cli, configuration, flags
from unsup3d_jax.configuration import Keys
from unsup3d_jax.engine import scored
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import rotnet
from unsup3d_jax.experiments.tables import run as table_run
from unsup3d_jax.unsup3d.modes import KEYS

ROOT = Path(__file__).resolve().parent.parent
TABLE = str(ROOT / "configs" / "tables" / "table2.py")
FOLDER = str(ROOT / "configs" / "folder.py")


def _parse(*given):
    return flags.parse(["main.py", *given], cli.METHODS)


def test_overrides_take_the_type_of_the_key():
    args = _parse(
        f"--config={FOLDER}",
        "--config.train.steps=1e3",
        "--config.train.learning_rate=1",
        "--config.data.flip=false",
        "--config.data.crop=(1, 2,30,40)",
        "--config.eval.baselines=constant,'average'",
        "--config.data.path",
        "a=b",
    )
    config = args.config
    assert config.train.steps == 1000 and isinstance(config.train.steps, int)
    assert config.train.learning_rate == 1.0
    assert isinstance(config.train.learning_rate, float)
    assert config.data.flip is False
    assert config.data.crop == (1, 2, 30, 40)
    assert config.eval.baselines == ("constant", "average")
    assert config.data.path == "a=b"
    assert config.is_locked
    assert args.mode == "train" and args.workdir == Path("runs/folder")


def test_an_empty_tuple_and_a_workdir():
    args = _parse(
        f"--config={FOLDER}", "--config.eval.baselines=()", "--workdir=/tmp/x"
    )
    assert args.config.eval.baselines == () and args.workdir == Path("/tmp/x")


@pytest.mark.parametrize(
    "given, words",
    [
        (["--mode=foo"], "expected one of train, eval"),
        ([f"--config={FOLDER}", "--checkpoint=x"], "belongs to --mode=eval or"),
        ([f"--config={FOLDER}", "--input=x"], "belongs to --mode=reconstruct or"),
        ([f"--config={FOLDER}", "--config.method=other"], "one method"),
        ([f"--config={FOLDER}", "--mode=tables"], "tables.name must be one of table2"),
        ([f"--config={TABLE}", "--config.tables.scale=huge"], "tables.scale must be"),
        ([f"--config={TABLE}", "--config.tables.seeds=0"], "from 1 to 1000."),
        ([f"--config={TABLE}", f"--config.seed={2**32 - 1}"], "at most 4294967293 for"),
        ([f"--config={TABLE}", "--config.tables.rows=ours,mine"], "'mine' is no row"),
        ([], "--config=NAME is missing"),
        (["--config=nowhere.py"], "no file nowhere.py"),
        (["--config=x/folder.py"], "did you mean folder or folder_small? There are"),
        (["--config=celbea"], "did you mean celeba? There are also cars,"),
        (["--config=gan2shape"], "did you mean gan2shape/default or gan2shape/faces"),
        (["--config=gan_faces"], "did you mean gan2shape/gan_faces or faces or"),
        (["--config=shared"], "no config has this name"),
        (["--config=xyz"], "no config has this name; There are cars,"),
        ([f"--config={FOLDER}", "--config.train.stepz=3"], "'train.steps'"),
        ([f"--config={FOLDER}", "--config.nothing=3"], "no such key"),
        ([f"--config={FOLDER}", "--config.seed.x=3"], "no such key"),
        ([f"--config={FOLDER}", "--config.train=3"], "is a section"),
        ([f"--config={FOLDER}", "--config.train.steps=many"], "an integer"),
        ([f"--config={FOLDER}", "--config.train.steps=1.5"], "an integer"),
        ([f"--config={FOLDER}", "--config.train.steps=inf"], "an integer"),
        ([f"--config={FOLDER}", "--config.train.learning_rate=x"], "a number"),
        ([f"--config={FOLDER}", "--config.data.flip=maybe"], "true or false"),
        ([f"--config={FOLDER}", "--config.data.crop=1,b"], "a tuple"),
        ([f"--config={FOLDER}", "--config.train.steps"], "unknown argument"),
        ([f"--config={FOLDER}", "--frobnicate"], "unknown argument"),
        ([f"--config={FOLDER}"], "data.path"),
        ([f"--config={FOLDER}", "--config.data.path=/no/such"], "/no/such"),
        ([f"--config={FOLDER}", "--config.train.schedule=up"], "train.schedule"),
        (
            [f"--config={FOLDER}", "--config.train.init_from=nowhere"],
            "train.init_from: no checkpoint at nowhere",
        ),
        (
            [f"--config={FOLDER}", "--config.train.init_from=nowhere", "--dry_run"],
            "train.init_from: no checkpoint at nowhere",
        ),
        ([f"--config={FOLDER}", "--mode=eval", "--workdir=/no/such"], "no checkpoint"),
        ([f"--config={FOLDER}", "--mode=reconstruct"], "--input"),
        ([f"--config={FOLDER}", "--mode=rotnet", f"--output={ROOT}"], "is a folder"),
        ([f"--config={FOLDER}", "--port=0"], "--port belongs to --mode=serve"),
        ([f"--config={FOLDER}", "--mode=serve", "--port=65536"], "0 to 65535"),
        ([f"--config={FOLDER}", "--mode=serve", "--port=x"], "0 to 65535"),
        ([f"--config={FOLDER}", "--profile=5"], "FIRST,LAST"),
        ([f"--config={FOLDER}", "--profile=5,4"], "FIRST <= LAST"),
        ([f"--config={FOLDER}", "--mode=eval", "--dry_run"], "belongs to --mode=train"),
        ([f"--config={FOLDER}", "--processes=2"], "go together"),
        (
            [
                f"--config={FOLDER}",
                "--coordinator=a:1",
                "--processes=2",
                "--process=2",
            ],
            "0 <= --process < --processes",
        ),
        (
            [
                f"--config={FOLDER}",
                "--coordinator=a:1",
                f"--processes={10**30}",
                "--process=2",
            ],
            "< --processes <= 65536",
        ),
        ([f"--config={FOLDER}", "--profile=²,³"], "FIRST,LAST"),
        ([f"--config={FOLDER}", f"--profile=1,{'9' * 5000}"], "FIRST,LAST"),
        *(
            (
                [
                    f"--config={FOLDER}",
                    f"--coordinator={address}",
                    "--processes=2",
                    "--process=0",
                ],
                "a port from 1 to 65535",
            )
            for address in ("a:-1", "a:70000", "a:http", "a:", ":80", "a")
        ),
        ([f"--config={FOLDER}", "--workdir=gs://bucket/run"], "mount a bucket"),
        ([f"--config={FOLDER}", "--config.data.path=s3:/b/x"], "config.data.path=s3"),
        (
            [f"--config={FOLDER}", "--mode=reconstruct", "--input=/no", "--output=x"],
            "/no does not exist",
        ),
    ],
)
def test_whatever_is_wrong_is_one_line_and_status_2(given, words, capsys):
    if f"--config={TABLE}" in given:
        given = [*given, "--mode=tables"]
    status = cli.main(["main.py", *given])
    out, err = capsys.readouterr()
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert words in err and out == ""


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def get_config(): return 3", "no ConfigDict"),
        (
            "from configs import default\n"
            "def get_config():\n"
            "    c = default.get_config()\n"
            "    c.train.stepz = 3\n"
            "    return c\n",
            "unknown key 'train.stepz'",
        ),
        ("import configs_of_mine", "No module named 'configs_of_mine'\n"),
        (  # as where there is no checkout
            "raise ModuleNotFoundError('No module', name='configs')",
            "No module; write `from unsup3d_jax.configs import ...`.\n",
        ),
        (
            "from configs import default\n"
            "def get_config():\n"
            "    c = default.get_config()\n"
            "    c.method = 'painting'\n"
            "    return c\n",
            "method 'painting', expected one of unsup3d",
        ),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path, text, words, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert cli.main(["main.py", f"--config={path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err and "mine.py" in err


@pytest.mark.parametrize(
    "given, file",
    [
        ("celeba", "celeba.py"),
        ("gan2shape/faces", "gan2shape/faces.py"),
        ("configs/celeba.py", "celeba.py"),
        ("./configs/gan2shape/faces.py", "gan2shape/faces.py"),
        ("configs/celeba", "celeba.py"),
    ],
)
def test_a_config_is_found_by_its_name_from_anywhere(
    given, file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "celeba").mkdir()  # of the same name, but no file
    found = configuration.find(given, flags.CONFIG_FOLDER)
    assert found == flags.CONFIG_FOLDER / file
    name = Path(file).stem
    assert _parse(f"--config={given}").config.name in (name, f"gan2shape_{name}")


def test_a_file_of_the_user_stands_above_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "configs" / "celeba.py"
    mine.parent.mkdir()
    text = "from unsup3d_jax.configs import celeba\nget_config = celeba.get_config\n"
    mine.write_text(text)
    assert configuration.find("configs/celeba.py", flags.CONFIG_FOLDER).samefile(mine)
    assert configuration.find(str(mine), flags.CONFIG_FOLDER) == mine
    found = configuration.find("celeba", flags.CONFIG_FOLDER)
    assert found == flags.CONFIG_FOLDER / "celeba.py"
    assert _parse("--config=configs/celeba.py").config.data.path


@pytest.mark.parametrize(
    "typed, argv, shown",
    [
        (["python3", "main.py"], ["main.py", "--a=b c"], "python3 main.py '--a=b c'"),
        (["/v/bin/python", "/x/main.py"], ["/x/main.py"], "/v/bin/python /x/main.py"),
        (["/v/bin/python", "BIN/unsup3d"], ["BIN/unsup3d", "-h"], "unsup3d -h"),
        (["/v/bin/python", "/no/unsup3d"], ["/no/unsup3d"], "/no/unsup3d"),
        (["pytest"], ["main.py"], "python main.py"),
    ],
)
def test_the_command_is_shown_as_it_was_typed(
    typed, argv, shown, tmp_path, monkeypatch, capsys
):
    script = tmp_path / "unsup3d"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = [x.replace("BIN", str(tmp_path)) for x in argv]
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", argv)
    assert flags.command() == shown
    assert f"To go on: {shown}" in (cli.ending(Interrupted("SIGTERM"))[0] or "")
    with pytest.raises(SystemExit):
        flags.parse([argv[0], "--help"], cli.METHODS)
    called = shown.removesuffix(" -h").removesuffix(" '--a=b c'")
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(f"usage: {called} [-h]")
    assert f"example: {called} --config=quickstart" in told


def test_nothing_is_written_for_a_run_that_cannot_start(tmp_path, capsys):
    workdir = tmp_path / "run"
    given = [f"--config={FOLDER}", "--config.data.path=/no/such"]
    cli.main(["main.py", *given, f"--workdir={workdir}"])
    assert not workdir.exists()


def test_main_prints_help_and_errors():
    def run(*flags):
        return subprocess.run(
            [sys.executable, "main.py", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    helped, wrong = run("--help"), run("--mode=fly")
    assert helped.returncode == 0 and "Traceback" not in helped.stderr
    for mode in cli.METHODS["unsup3d"].modes:
        assert f"  {mode} " in helped.stdout
    assert "configs" in helped.stdout and "folder" in helped.stdout
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def test_processes_and_profile_are_read():
    args = _parse(
        f"--config={FOLDER}",
        "--coordinator=a:1",
        "--processes=2",
        "--process=1",
        "--profile=3,5",
    )
    assert args.cluster == ("a:1", 2, 1) and args.profile == (3, 5)
    assert _parse(f"--config={FOLDER}").cluster is None
    assert _parse(f"--config={FOLDER}", "--distributed").cluster == (None, None, None)


def _documented() -> list[str]:
    """The flags of every call of main.py in the code blocks of our texts."""
    calls = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.S | re.M)
        for block in (text for kind, text in blocks if kind in ("", "sh", "bash")):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(r"python3? main\.py (.*?)(?:&|\||$)", line):
                    calls.append(found[1])
    return calls


def test_every_documented_command_is_understood(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    record = {"config": json.loads(json.dumps(KEYS.defaults().to_dict()))}
    (tmp_path / "config.json").write_text(json.dumps(record))
    calls = _documented()
    assert len(calls) >= 6
    for call in calls:
        call = call.replace("--config=...", "--config=configs/folder.py")
        if "--config=" not in call:  # of a run
            call = re.sub(r"--workdir=\S+", f"--workdir={tmp_path}", call)
        _parse(*shlex.split(call, comments=True))
    assert any(" --config=" not in f" {call}" for call in calls)


@pytest.mark.parametrize("mode", ["tables", "rotnet"])
def test_an_output_that_cannot_be_written_is_one_line(mode, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "x.part")

    monkeypatch.setattr(table_run, "run_table", full)
    monkeypatch.setattr(rotnet, "pretrain", full)
    given = [f"--config={TABLE}", f"--mode={mode}", "--workdir=/no/w"]
    assert cli.main(["main.py", *given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot write /no/w" in err and "(x.part)" in err


@pytest.mark.parametrize(
    "checkpoint, own",
    [
        (None, True),
        ("w", True),
        ("w/checkpoints/400", True),
        ("w/baselines/oracle", False),
        ("other", False),
    ],
)
def test_scores_of_another_checkpoint_are_told_apart(checkpoint, own):
    given = [f"--config={FOLDER}", "--mode=eval", "--workdir=w"]
    given += [f"--checkpoint={checkpoint}"] if checkpoint else []
    assert (scored.origin(_parse(*given)) is None) == own


def test_a_method_brings_its_keys_and_its_modes(tmp_path, capsys):
    """As a second one will: its own config, one mode of an old name, one of its own."""
    seen = []

    def defaults():
        config = ConfigDict({"method": "painting", "name": "x", "brush": 3})
        config.checkpoint = ConfigDict({"deadline": 1.0})
        return config

    painting = flags.Method(
        Keys(defaults, {"brush": (1, 9), "checkpoint.deadline": (0.1, 9.0)}),
        {
            "train": flags.Mode("paint", lambda args, _: seen.append(args)),
            "frame": flags.Mode("frame it", lambda args, _: None, flags=("input",)),
        },
    )
    methods = cli.METHODS | {"painting": painting}
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'method': 'painting', 'name': 'x', 'brush': 5,\n"
        "                       'checkpoint': {'deadline': 1.0}})\n"
    )
    config = f"--config={path}"
    args = flags.parse(["main.py", config, "--config.brush=7"], methods)
    assert args.config.brush == 7 and args.mode == "train"
    assert flags.parse(["main.py", config, "--mode=frame", "--input=i"], methods).input
    for given, words in (
        (["--config.train.steps=3"], "no such key"),
        (["--config.brush=10"], "config.brush=10: expected an integer from 1 to 9"),
        (["--mode=reconstruct"], "method painting of .* has train, frame"),
        (["--input=i"], "belongs to --mode=frame"),
    ):
        with pytest.raises(UserError, match=words):
            flags.parse(["main.py", config, *given], methods)
    with pytest.raises(UserError, match="method unsup3d"):
        flags.parse(["main.py", f"--config={FOLDER}", "--mode=frame"], methods)
