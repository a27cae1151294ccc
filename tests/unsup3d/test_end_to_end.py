"""The program from a command line to its tables, on a few open faces."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from unsup3d_jax import cli
from unsup3d_jax.engine.checkpoint import load_parts
from unsup3d_jax.engine.workdir import newest_step
from unsup3d_jax.unsup3d import reconstruct_files

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
SMALL = (
    "--config=configs/quickstart.py",
    "--config.data.count_train=16",
    "--config.data.count_val=8",
    "--config.data.count_test=8",
    "--config.data.min_images=8",
    "--config.model.encoder_width=16",
    "--config.model.bottleneck=16",
    "--config.model.confidence_bottleneck=16",
    "--config.model.use_confidence=False",
    "--config.raster.supersample=1",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.train.optimizer=adam",
    "--config.train.warmup_steps=0",
    "--config.train.depth_start=0",
    "--config.train.depth_full=0",
    "--config.eval.batch_size=8",
    "--config.log.every=1",
    "--config.log.picture_every=0",
)


def run(workdir, *flags):
    """Ends with status 0, or fails."""
    argv = ["main.py", *SMALL, f"--workdir={workdir}", *flags]
    assert cli.main(argv) == 0


def names(text):
    """The rows of the table that was printed, the first of the two."""
    table, below = text[text.index("SIDE") :].split("\n\n", 1)
    assert "On the pixels that 'ours' is scored on" in below
    return [line.split()[0] for line in table.splitlines()[2:] if "±" in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdir of a run that is trained and scored."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run(workdir, "--config.eval.baselines=constant,average")
    return workdir


def scores_of(workdir):
    return json.loads((workdir / "eval" / "test.json").read_text())


@pytest.mark.once
def test_a_run_is_trained_scored_and_used(trained, tmp_path, capsys, monkeypatch):
    lines = [json.loads(x) for x in (trained / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    scores = scores_of(trained)
    assert scores["checkpoint_step"] == STEPS and scores["images"] == 8
    # The same command trains nothing, and prints the table again.
    run(trained, "--config.eval.baselines=constant,average")
    assert names(capsys.readouterr().out) == ["constant", "average", "ours"]
    assert scores_of(trained) == scores
    # The scores are the last line of the log, once for both.
    last = [json.loads(x) for x in (trained / "metrics.jsonl").open()][len(lines) - 1 :]
    assert [(x["step"], x["split"], x["of"]) for x in last] == [(STEPS, "eval", "test")]
    assert last[0]["side_x100"] == pytest.approx(100 * scores["side"]["mean"], rel=1e-6)

    # What is reconstructed is what was trained.
    used, photos = [], tmp_path / "photos"
    monkeypatch.setattr(
        reconstruct_files, "reconstruct_folder", lambda *found, **_: used.append(found)
    )
    os.mkdir(photos)
    out = str(tmp_path / "out")
    # No key of the training is repeated.
    given = [f"--workdir={trained}", f"--input={photos}", f"--output={out}"]
    assert cli.main(["main.py", "--mode=reconstruct", *given]) == 0
    ((config, params, *places),) = used
    assert config.data.image_size == 32
    assert [str(place) for place in places] == [str(photos), out]
    parts, _ = load_parts(trained)
    jax.tree.map(np.testing.assert_array_equal, params, parts["params"])


@pytest.mark.slow
def test_a_run_is_enlarged_by_one_more_row(trained, tmp_path, capsys):
    """The command of the README for one more row trains it, and nothing else."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    scores = scores_of(workdir)
    run(workdir, "--config.eval.baselines=constant,oracle")
    assert names(capsys.readouterr().out) == ["constant", "oracle", "ours"]
    again = scores_of(workdir)
    assert again["side"] == scores["side"] and again["view"] == scores["view"]
    oracle = again["baselines"]["oracle"]
    assert oracle["view"]["yaw"]["pearson"] == pytest.approx(1.0, abs=1e-3)
    assert newest_step(workdir / "baselines" / "oracle") == STEPS

    given = [f"--workdir={workdir}", "--config.eval.baselines=oracle"]
    assert cli.main(["main.py", "--mode=eval", *given]) == 0
    assert names(capsys.readouterr().out) == ["oracle", "ours"]


def together(workdir, *flags):
    """What two processes print that train one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "main.py", *SMALL, f"--workdir={workdir}", *flags]
    command += ["--config.eval.baselines=constant", "--processes=2"]
    command += [f"--coordinator=127.0.0.1:{port}"]
    processes = [
        subprocess.Popen(
            [*command, f"--process={index}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], texts
    assert names(texts[0]) == ["constant", "ours"] and "SIDE" not in texts[1]
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert newest_step(workdir) == STEPS
    return texts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_and_score_one_run(tmp_path):
    """As docs/clusters.md says; the second writes nothing, and reads no checkpoint."""
    together(tmp_path / "run")
    assert "training is finished" in together(tmp_path / "run")[0]
    together(tmp_path / "next", f"--config.train.init_from={tmp_path / 'run'}")
    record = json.loads((tmp_path / "next" / "init_from.json").read_text())
    assert record["step"] == STEPS
