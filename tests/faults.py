"""Faults that a machine can have, as data: each is armed in a forked process before the program runs (`forked.Forks.run(fault=…)`).

A fault takes a number where it can strike at several places: the size at which the disk is full, the how-manieth step it strikes at.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

STEPS = ("replace", "rename", "link", "fsync", "mkdir", "rmdir", "unlink")
"""What `os` does to a folder: between two of these a run may be killed."""


def full_disk(size: int) -> None:
    """No file grows beyond `size` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def killed(step: int) -> None:
    """SIGKILL before the how-manieth change of a folder."""
    seen = [0]

    def striking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            seen[0] += 1
            if seen[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return call

    for name in STEPS:
        setattr(os, name, striking(getattr(os, name)))


def bad_sector(step: int) -> None:
    """The how-manieth read of a file of the current folder fails with EIO."""
    here, seen = os.getcwd(), [0]
    opened = io.open

    class Sector(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            self._strike()
            return super().readinto(buffer)

        def readall(self) -> bytes:
            self._strike()
            return super().readall()

        def _strike(self) -> None:
            seen[0] += 1
            if seen[0] == step:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open_(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
        inside = isinstance(file, str | os.PathLike) and os.path.abspath(os.fspath(file)).startswith(here + os.sep)
        if not inside or set(mode) - set("rbt"):
            return opened(file, mode, buffering, *more, **named)
        raw = Sector(file, "r")
        if buffering == 0:
            return raw
        return io.BufferedReader(raw) if "b" in mode else io.TextIOWrapper(io.BufferedReader(raw), "utf-8")

    builtins.open = io.open = open_  # type: ignore[assignment]


def read_only(_: int) -> None:
    """Nothing below the current folder can be made, opened for writing or renamed."""
    opened, os_open = io.open, os.open

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]) if arguments else None)

    def open_(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        return refuse(file) if set(mode) & set("wax+") and file != os.devnull else opened(file, mode, *more, **named)

    def low(path: Any, flags: int, *more: Any, **named: Any) -> Any:
        return (
            refuse(path)
            if flags & (os.O_WRONLY | os.O_RDWR) and path != os.devnull
            else os_open(path, flags, *more, **named)
        )

    builtins.open = io.open = open_  # type: ignore[assignment]
    os.open = low  # type: ignore[assignment]
    for name in ("replace", "rename", "link", "mkdir", "symlink"):
        setattr(os, name, refuse)


def nowhere(_: int) -> None:
    """No home, no user, a locale that nobody has, a terminal of no known kind."""
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "LANG"):
        os.environ.pop(name, None)
    os.environ |= {"LC_ALL": "tlh_KL.ISO-8859-15", "TERM": "unheard-of"}
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


def no_streams(_: int) -> None:
    """Standard input is closed and standard output takes nothing (`> /dev/full`)."""
    os.close(0)
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


FAULTS: dict[str, Callable[[int], None]] = {
    "full disk": full_disk,
    "killed": killed,
    "bad sector": bad_sector,
    "read-only": read_only,
    "nowhere": nowhere,
    "no streams": no_streams,
}
