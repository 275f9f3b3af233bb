"""Programs as processes of their own, with what they took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toc_cli.errors import TocError

PEAK = """
import atexit, resource, runpy, sys
mark = sys.argv.pop()
@atexit.register
def _():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        with open("/proc/self/status") as status:
            peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    with open(mark, "w") as file:
        file.write(str(peak))
"""
"""Where a process says its own peak: what the system counts for a child starts with its parent's."""


@dataclass(frozen=True)
class Used:
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak: int
    """Bytes."""
    said: str
    """Its standard output."""


def run_python(program: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Used:
    """Run a program of Python in a process. BenchFailed where it does not end well."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as told:
        mark = os.path.join(folder, "peak")
        words = [sys.executable, "-c", PEAK + program, *arguments, mark]
        began = time.perf_counter()
        given = os.environ | dict(environment or {})
        with subprocess.Popen(words, env=given, stdout=subprocess.PIPE, stderr=told, text=True) as child:
            assert child.stdout is not None
            said = child.stdout.read()
            _, status, used = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            told.seek(0)
            raise BenchFailed(f"A measured program ended with {child.returncode}: {told.read()[-2000:].strip()}")
        with open(mark) as file:
            peak = int(file.read())
    return Used(seconds, used.ru_utime + used.ru_stime, peak, said)


def run_toc(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Used:
    """Run a command line of `toc` in a process."""
    return run_python("runpy.run_module('toc_cli', run_name='__main__')", words, environment)


class BenchFailed(TocError):
    """What was to be measured failed."""
