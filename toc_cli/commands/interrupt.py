"""Ctrl-C, SIGTERM and a closed terminal, each as one exception that reaches the top even where a library swallows it."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SAME_WISH = 2.0
"""Seconds in which a second signal is the first one again: cleaning up is not disturbed."""
PATIENCE = 0.7
"""Seconds that a step which Python cannot interrupt (a library's own loop) has to end in; then the process ends all the same."""


class Interrupt:
    """While it is entered, each signal raises KeyboardInterrupt in the main thread; one that is ignored (nohup) stays ignored.

    `number` is the signal that ends the program, None while none does. Outputs are renamed only when they are whole, so
    that ending at any moment leaves none half-written.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._heard = 0.0
        self._before: dict[int, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Interrupt:
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        self._ears, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        self._woken = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        signal.set_wakeup_fd(self._woken)
        os.write(self._mouth, b"\0")
        self._watcher.join()
        os.close(self._mouth)
        os.close(self._ears)
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and time.monotonic() - self._heard < SAME_WISH:
            return
        self.number, self._heard = number, time.monotonic()
        raise KeyboardInterrupt

    def _swallowed(self, unraisable: Any) -> None:
        """Python drops what is raised inside a finaliser or a weak reference's callback (h5py has many): raise it once more."""
        if self.number is None or not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._hook(unraisable)
            return
        number, self.number = self.number, None
        again = threading.Timer(0.01, _thread.interrupt_main, [number])
        again.daemon = True
        again.start()

    def _watch(self) -> None:
        """Read the numbers of signals as they come in; where this object's own handler is due and nothing ends, end."""
        while (heard := os.read(self._ears, 1)) not in (b"", b"\0"):
            number = heard[0]
            if signal.getsignal(number) == self._hear and not self._ended.wait(PATIENCE):
                with contextlib.suppress(OSError):
                    os.write(2, f"error: {sentence(number)}\n".encode())
                os._exit(128 + number)


def sentence(number: int) -> str:
    """`Stopped by Ctrl-C; …` for a signal's number."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"Stopped by {name}; nothing was left half-written."


def stopped_by(code: object) -> int | None:
    """The signal behind an exit code of the shell's kind, 128 + number; None for any other."""
    numbers = {getattr(signal, name, None) for name in NAMES} - {None}
    return code - 128 if isinstance(code, int) and code - 128 in numbers else None
