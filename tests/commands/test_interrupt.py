"""An interrupt ends the program once, also where Python or a library swallows what it raises."""

from __future__ import annotations

import signal
import sys
import threading
import time
import weakref

import pytest

from cli import toc
from toc_cli import commands
from toc_cli.commands.interrupt import Interrupt

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_has_its_exit_code(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    monkeypatch.setattr(commands, "app", lambda **_: signal.raise_signal(number))
    done = toc("inspect", "x")
    assert done.code == 128 + number
    assert "nothing was left half-written" in done.err


def test_an_interrupt_that_a_library_made_an_error_of_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(commands, "app", app)
    assert toc("inspect", "x").code == 130


class Thing:
    pass


def test_one_that_falls_into_a_weak_callback_comes_again() -> None:
    def callback(_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        wait(0.001)

    with Interrupt() as interrupt:
        reference = weakref.ref(Thing(), callback)
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            wait(5)
        assert interrupt.number == signal.SIGINT


def test_a_second_one_does_not_disturb_the_cleaning_up() -> None:
    steps = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            steps.append("cleaned")

    with Interrupt(), pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["cleaned"]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before
    assert threading.current_thread() is threading.main_thread()
