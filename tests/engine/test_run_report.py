"""When a run's page is written, of what, and that it is no matter to the run."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_task
from PIL import Image

from unsup3d_jax.engine import recorder, run_report
from unsup3d_jax.engine.log import RunLog
from unsup3d_jax.engine.run_report import Page, Watched
from unsup3d_jax.engine.task import Identity
from unsup3d_jax.engine.workdir import claim_workdir
from unsup3d_jax.show.run_page import page


def lines(*steps):
    return [{"step": s, "split": "train", "total": 1.0 / s} for s in steps]


def text(some):
    return "".join(json.dumps(x) + "\n" for x in some)


def painted(workdir, step, size=4):
    path = workdir / "pictures" / f"{step}.png"
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(step)
    Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(path)


def total(run):
    return run.curves.curves["train", "total"].points(100)


def test_the_page_of_a_run_that_goes_on_is_that_of_its_workdir(tmp_path):
    mine = Page(tmp_path)
    log = RunLog(tmp_path, steps=9, batch_size=1, tensorboard=False, hears=mine.add)
    mine.begin(log.start(None))
    painted(tmp_path, 2)
    for line in lines(1, 2, 3):
        log.line({**line, "odd": np.float32(1 / 3), "bad": float("nan")})
    mine.write(at_once=True)
    found = (tmp_path / page.FILE).read_text()
    assert found == page.document(Watched(tmp_path).run())[0]
    assert '"total"' in found and '"pictures":[2]' in found
    assert not list(tmp_path.glob("*.part"))


def test_a_page_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / page.FILE).mkdir()
    said = []
    mine = Page(tmp_path, said.append)
    for _ in range(3):
        mine.write(at_once=True)
    (line,) = said
    assert line.startswith("warning: no page ") and page.FILE in line


def test_writing_takes_a_hundredth_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_report.time, "monotonic", lambda: now[0])
    written = []

    def write(path, text):
        written.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(run_report, "write_atomically", write)
    mine = Page(tmp_path)
    for _ in range(100):
        mine.write()
        now[0] += 10.0
    assert len(written) == 5 and written[1] - written[0] >= 200.0
    mine.write(at_once=True)
    assert len(written) == 6


def test_of_a_log_only_what_is_new_is_read(tmp_path):
    log = tmp_path / "metrics.jsonl"
    watched = Watched(tmp_path)
    assert watched.run().curves.step == 0
    log.write_text(text(lines(1, 2)) + '{"step": 3, "spl')
    assert [s for s, _ in total(watched.run())] == [1, 2]
    seen = watched._offset
    with log.open("a") as file:
        file.write('it": "train", "total": 5}\nno line\n[1]\n' + text(lines(4)))
    run = watched.run()
    assert [s for s, _ in total(run)] == [1, 2, 3, 4] and watched._offset > seen
    # A run that went back: a shorter file of the same name.
    new = tmp_path / "new"
    new.write_text(
        text([*lines(1), {"step": 1, "split": "event", "event": "rollback"}])
    )
    os.replace(new, log)
    run = watched.run()
    assert [s for s, _ in total(run)] == [1]
    assert [x.kind for x in run.curves.events] == ["rollback"]


def test_what_changes_is_seen_without_reading(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text(lines(1)))
    watched = Watched(tmp_path)
    before = watched.signature()
    assert watched.signature() == before
    painted(tmp_path, 1)
    after = watched.signature()
    assert after != before
    run_report.keep_table(tmp_path, "test", "a table")
    assert watched.signature() != after
    assert watched.run().tables == {"test": "a table\n"}
    assert "a table" in (tmp_path / page.FILE).read_text()


def test_pictures_of_steps_that_were_taken_back_are_not_shown(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text(lines(1, 20)))
    for step in (5, 20, 30):
        painted(tmp_path, step)
    for name in ("x.png", "²5.png", "-5.png", "5.jpg", f"{'9' * 30}.png"):
        (tmp_path / "pictures" / name).touch()
    run = Watched(tmp_path).run()
    assert list(run.pictures) == [5, 20]
    assert run.embedded is not None and run.embedded[0] == 20


@pytest.mark.parametrize(("size", "kind"), [(16, b"\x89PNG"), (250, b"\xff\xd8")])
def test_the_newest_picture_travels_with_the_page(tmp_path, size, kind):
    painted(tmp_path, 7, size)
    step, data = Watched(tmp_path).run().embedded
    assert step == 7 and data.startswith(kind)
    assert len(data) <= run_report.MOST_EMBEDDED


def test_a_picture_that_is_too_large_or_broken_does_not(tmp_path, monkeypatch):
    painted(tmp_path, 7, 250)
    monkeypatch.setattr(run_report, "MOST_EMBEDDED", 20_000)
    assert Watched(tmp_path).run().embedded is None
    (tmp_path / "pictures" / "8.png").write_bytes(b"\x89PNG" + bytes(200_000))
    run = Watched(tmp_path).run()
    assert list(run.pictures) == [7, 8] and run.embedded is None


def test_only_pictures_of_steps_are_given_away(tmp_path, monkeypatch):
    painted(tmp_path, 800)
    assert run_report.picture(tmp_path, "800").startswith(b"\x89PNG")
    os.mkfifo(tmp_path / "pictures" / "5.png")  # which would be read for ever
    for name in ("801", "5", "../800", "²", "", "-1", "8" * 5000):
        assert run_report.picture(tmp_path, name) is None
    monkeypatch.setattr(run_report, "MOST_PICTURE", 10)
    assert run_report.picture(tmp_path, "800") is None


def test_a_workdir_of_anything_has_a_page(tmp_path):
    run_report.write(tmp_path)
    assert "Nothing has been logged yet" in (tmp_path / page.FILE).read_text()
    (tmp_path / "config.json").write_text('{"config": {"train": 5, "name": 3}}')
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n" + text(lines(1)).encode())
    run = Watched(tmp_path).run()
    assert run.steps is None and run.name == tmp_path.name and run.curves.step == 1


def test_a_run_that_is_resumed_says_and_logs_no_warning_twice(tmp_path, capfd):
    config = tiny_task.config()
    task = tiny_task.task(config, warnings=lambda line, past: ["flat depth: it is."])

    def one(step, before):
        log = RunLog(tmp_path, steps=12, batch_size=8, tensorboard=False)
        it = recorder.Recorder(config, task, log, before)
        it.push(step, {"finite": jnp.ones(()), "total": jnp.ones(())}, ahead=0)

    one(2, [])
    there = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
    (event,) = [x for x in there if x["split"] == "event"]
    assert event == {"step": 2, "split": "event", "event": "warning",
                     "reason": "flat depth: it is."}  # fmt: skip
    one(4, there)
    there = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
    assert [x["split"] for x in there] == ["train", "event", "train"]
    assert capfd.readouterr().err.count("flat depth") == 1


def test_config_json_knows_the_defaults_of_what_was_changed(tmp_path):
    config = tiny_task.config()
    identity = Identity(defaults=lambda: tiny_task.config(steps=99))
    claim_workdir(tmp_path, config, [], identity)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["defaults"] == {"train.steps": 99}
    assert record["begun"].endswith(" UTC")
    # Begun anew while nothing is trained; afterwards it stays.
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record | {"begun": "2001-01-01 00:00 UTC"}))
    claim_workdir(tmp_path, config, [], identity)
    assert json.loads(path.read_text())["begun"] == "2001-01-01 00:00 UTC"
