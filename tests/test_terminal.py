"""A run outlives its terminal."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from unsup3d_jax import cli, terminal
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.errors import UserError


def _writer(end: int):
    return os.fdopen(end, "w", buffering=1)


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_a_stream_that_nobody_reads_falls_silent(opened):
    reader, end = opened()
    stream = _writer(end)
    lasting = terminal.Lasting(stream)
    lasting.write("seen\n")
    assert os.read(reader, 100).strip() == b"seen"
    os.close(reader)
    for _ in range(3):
        assert lasting.write("lost\n") == 5
        lasting.flush()
    stream.close()  # its buffer is empty, and the descriptor is somebody's


def test_what_a_stream_is_shows_through():
    reader, end = pty.openpty()
    with _writer(end) as stream:
        assert terminal.Lasting(stream).isatty()
        assert terminal.Lasting(stream).encoding == stream.encoding
    os.close(reader)


def test_a_pipe_that_is_closed_changes_no_status():
    program = (
        "import sys\n"
        "from unsup3d_jax import terminal\n"
        "with terminal.lasting():\n"
        "    sys.stdin.read()\n"
        "    for k in range(5000): print('a line of a table', k)\n"
        "    print('still here', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stdout.close()  # before it writes
    _, said = process.communicate(b"")
    assert (process.returncode, said.strip()) == (0, b"still here")


@pytest.fixture
def hangup(request):
    """What a hangup does before; the tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, request.param)
    yield request.param
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("hangup", [signal.SIG_DFL], indirect=True)
def test_a_closed_terminal_is_a_signal_to_stop(hangup):
    with Interrupts() as interrupts, interrupts.deferred(lambda: True):
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.requested
    with pytest.raises(Interrupted, match="SIGHUP"), Interrupts():
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize("hangup", [signal.SIG_IGN], indirect=True)
def test_a_hangup_that_was_to_be_ignored_is_ignored(hangup):
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not interrupts.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize(
    "error, wanted, advice",
    [
        (AssertionError(), "cuda", r"install '\.\[cuda\]', or unset"),
        (
            RuntimeError("Unable to initialize\n backend"),
            "tpu",
            r"'\.\[tpu\]'.*backend",
        ),
        (RuntimeError("not in the list"), "gpus", "name cpu, cuda or tpu"),
    ],
)
def test_devices_that_are_not_there_are_one_line(monkeypatch, error, wanted, advice):
    import jax

    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", wanted)
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=f"JAX_PLATFORMS={wanted}; .*{advice}") as told:
        cli._check_platforms()
    assert "\n" not in str(told.value)
