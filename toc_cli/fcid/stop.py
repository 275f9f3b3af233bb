"""Being asked to stop: the first signal lets the running step end and the state be saved, a second one acts at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """Remembers SIGINT (Ctrl-C) or SIGTERM while it is entered; outside the main thread it hears nothing."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def act(self) -> None:
        """End as the signal asks: KeyboardInterrupt for Ctrl-C, else the shell's exit code 128 + number."""
        if self.number == signal.SIGINT or self.number is None:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)
