"""Lines of the log, and progress on a terminal and in a file."""

import io
import json
import os
import pty
import select

import pytest

from unsup3d_jax.engine import log

LINE = {"step": 10, "total": 0.25, "step_time": 0.5}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_numbers_are_written_short_and_nan_as_text(tmp_path):
    file = log.MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "split": "train", "a": 0.1, "b": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "split": "train",
        "a": 0.1,
        "b": "nan",
    }


def _line(step):
    return {"step": step, "split": "train"}


def test_truncating_drops_later_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(_line(k)) + "\n" for k in (1, 2, 3)) + '{"st')
    file = log.MetricsFile(path)
    assert file.truncate(2) == [_line(1), _line(2)]
    file.append(_line(3))
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b'{"split": "train", "total": 1.0}\n',
        b'{"step": "2", "split": "train"}\n',
        b'{"step": 2}\n',
        b"[1, 2]\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b"1" * 5_000 + b"\n",
    ],
    ids=["bytes", "no step", "text", "no split", "list", "null", "deep", "long"],
)
def test_a_damaged_line_never_stops_a_run_from_going_on(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps(_line(k)).encode() + b"\n" for k in (1, 2)]
    path.write_bytes(good[0] + damage + good[1])
    assert log.MetricsFile(path).truncate(2) == [_line(1), _line(2)]


def test_a_log_file_gets_whole_lines():
    stream = io.StringIO()
    progress = log.Progress(100, 8, stream=stream)
    progress.tick(9, lambda: 0.5)
    progress.line(LINE)
    assert stream.getvalue() == (
        "step 10/100 (10%)  loss 0.2500  16.0 images/s  eta 0:00:45\n"
    )


def test_a_terminal_line_is_redrawn_and_messages_do_not_tear_it():
    stream = Terminal()
    progress = log.Progress(100, 8, stream=stream)
    progress.line(LINE)
    progress.message("warning")
    progress.tick(20, lambda: 0.5)  # too soon after the last one
    progress.line(LINE | {"step": 40})
    progress.close()
    lines = stream.getvalue().split("\n")
    assert "step 10/100 (10%)" in lines[0] and "loss 0.2500" in lines[0]
    assert lines[0].endswith("\rwarning") and "20/100" not in stream.getvalue()
    assert "\rstep 40/100 (40%)" in lines[1] and "16.0 images/s" in lines[1]


def test_what_is_counted_may_be_something_else_than_steps():
    stream = Terminal()
    progress = log.Progress(4, 1, stream=stream, noun="photo")
    progress.tick(2, lambda: 30.0)
    progress.close()
    assert "\rphoto 2/4 (50%)" in stream.getvalue()
    assert "eta 0:01:00" in stream.getvalue()


def test_the_first_line_shows_compilation_and_no_rate():
    stream = io.StringIO()
    log.Progress(100, 8, stream=stream).line(LINE | {"step": 1}, compiled=True)
    assert "compiled in 0.5 s" in stream.getvalue()
    assert "images/s" not in stream.getvalue()


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00:00"), (3723.4, "1:02:03"), (float("inf"), "?")]
)
def test_durations(seconds, text):
    assert log.duration(seconds) == text


def test_a_terminal_that_says_it_has_no_columns_shows_the_progress(monkeypatch):
    reader, end = pty.openpty()  # 0 columns until somebody says
    with os.fdopen(end, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)  # whose size tqdm looks for
        progress = log.Progress(100, 8)
        progress.line(LINE)
        progress.close()
        stream.flush()
        shown = ""
        while "loss 0.2500" not in shown:  # a terminal gives what has come until now
            assert select.select([reader], [], [], 30)[0], shown
            shown += os.read(reader, 4096).decode()
    os.close(reader)
    assert "step 10/100 (10%)" in shown
