"""Whether a library (HDF5, Arrow) survives a file: a child process opens and reads it first, where checks cannot cover its data.

A crash of the library then ends the child, and is a sentence here. Nothing that the child reads is used.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from h5py._objects import phil

from toc_cli.errors import InputError
from toc_cli.io.names import printable

SECONDS = 20
"""Of processor time, whatever else the machine does, after which a file that does not end to be read is refused."""


def refuse_crash(path: Path, read: Callable[[], object], library: str = "HDF5") -> None:
    """Run `read` in a child. InputError where it does not live to the end of it; its exceptions are left to the caller.

    Does nothing where processes cannot be forked (Windows).
    """
    if not hasattr(os, "fork"):
        return
    with warnings.catch_warnings(), phil:  # no thread is inside the library while its state is copied
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            _read_and_end(read)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGPROF:
        raise InputError(f"{printable(path)} is damaged: reading it does not end.", "Copy or download it again.")
    if code < 0:
        what = f"{printable(path)} is damaged: the {library} library crashes on it (signal {-code})."
        raise InputError(what, "Copy or download it again.")


def _read_and_end(read: Callable[[], object]) -> None:
    faulthandler.disable()
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        read()
    finally:
        os._exit(0)
