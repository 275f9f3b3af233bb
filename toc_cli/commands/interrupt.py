"""Ctrl-C, SIGTERM and a closed terminal, each as one exception that reaches the top even where a library swallows it."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SAME_WISH = 2.0
"""Seconds in which a second signal is the first one again: cleaning up is not disturbed."""


class Interrupt:
    """While it is entered, each signal raises KeyboardInterrupt in the main thread; one that is ignored (nohup) stays ignored.

    `number` is the signal that ends the program, None while none does.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._heard = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """The signal in the user's words."""
        return "Ctrl-C" if self.number in (None, signal.SIGINT) else signal.Signals(self.number).name

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
