"""A signal is never lost, wherever it strikes."""

import gc
import signal
import sys
import time

import pytest

from unsup3d_jax.engine.interrupts import Interrupted, Interrupts


def _strike(*numbers):
    for number in numbers:
        signal.raise_signal(number)
        for _ in range(100):  # where the handler may run
            pass


class _Dying:
    """Signals strike while this is deleted."""

    def __init__(self, *numbers):
        self._numbers = numbers

    def __del__(self):
        _strike(*self._numbers)


def _wait():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_del_is_raised_afterwards(number, capfd):
    hook = sys.unraisablehook
    with Interrupts() as interrupts:
        dying = _Dying(number)
        with pytest.raises(Interrupted):
            del dying
            assert interrupts.requested  # and not raised, or we were not here
            _wait()
    assert "ignored" not in capfd.readouterr().err
    assert sys.unraisablehook is hook


def test_a_signal_in_a_callback_of_the_garbage_collector_is_raised_afterwards(capfd):
    todo = [signal.SIGTERM]

    def callback(phase, info):
        if todo:
            _strike(todo.pop())

    gc.callbacks.append(callback)
    try:
        with Interrupts() as interrupts, pytest.raises(Interrupted):
            gc.collect()
            assert interrupts.requested
            _wait()
    finally:
        gc.callbacks.remove(callback)
    assert "ignored" not in capfd.readouterr().err


def test_a_second_ctrl_c_in_a_del_still_aborts():
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        with pytest.raises(Interrupted):
            _strike(signal.SIGINT)
        dying = _Dying(signal.SIGINT)
        del dying
        _wait()


def test_inside_a_step_a_lost_signal_is_a_request():
    with Interrupts() as interrupts:
        dying = _Dying(signal.SIGTERM)
        del dying
        with interrupts.deferred(lambda: True):
            time.sleep(0.2)  # it is raised again here, to no effect
            assert interrupts.requested
            with pytest.raises(Interrupted), interrupts.immediate():
                pass


def test_other_exceptions_are_printed_as_ever(capfd):
    class Failing:
        def __del__(self):
            raise ValueError("a fault of its own")

    before, seen = sys.unraisablehook, []
    sys.unraisablehook = lambda dropped: seen.append(dropped.exc_type)
    try:
        with Interrupts():
            failing = Failing()
            del failing
    finally:
        sys.unraisablehook = before
    assert seen == [ValueError]
