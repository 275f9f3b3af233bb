"""An interrupt ends the program once, also where Python or a library swallows what it raises."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from cli import SCRIPT, make_checkpoint, toc
from toc_cli import commands
from toc_cli.commands.interrupt import Interrupt

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


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


SENTENCES = {
    signal.SIGINT: "error: Stopped by Ctrl-C; nothing was left half-written.\n",
    signal.SIGTERM: "error: Stopped by SIGTERM; nothing was left half-written.\n",
    signal.SIGHUP: "error: Stopped by SIGHUP; nothing was left half-written.\n",
}


@pytest.mark.skipif(not SCRIPT.exists(), reason="there is no console script beside the interpreter")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has loaded")
def test_each_signal_ends_the_console_script_at_once(tmp_path: Path) -> None:
    """While gigabytes (a hole in the disk) are read and hashed."""
    make_checkpoint(tmp_path / "model.safetensors")
    rows = 1 << 26
    with open(tmp_path / "feats.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, 24)})
        file.truncate(file.tell() + rows * 24 * 4)
    before = sorted(path.name for path in tmp_path.iterdir())
    command = [SCRIPT, "optimize", "model.safetensors", "--features", "feats.npy"]
    for number, sentence in SENTENCES.items():
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1.5)
        assert process.poll() is None, process.communicate()
        sent = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - sent < 2  # a second, and what a busy machine adds
        assert (process.returncode, out, err) == (128 + number, "", sentence)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


STUCK = """
import sys, threading
sys.argv = ["toc", "inspect", "x"]
from toc_cli import commands
from toc_cli.commands import interrupt

def app(**_):
    print("stuck", flush=True)
    try:
        threading.Event().wait(60)
    finally:
        threading.Event().wait(60)

commands.app = app
commands.main()
"""


def test_a_step_that_cannot_be_interrupted_ends_too() -> None:
    """A clean-up that hangs stands for a library that does not come back."""
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 2
    assert (process.returncode, err) == (143, SENTENCES[signal.SIGTERM])
