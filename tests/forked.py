"""Run the program many times without importing torch each time: a server process forks a child for each command line.

`Forks().run(arguments, cwd)` gives exit code, stderr, seconds and peak memory; a crash of the child is a negative code.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import FAULTS


@dataclass(frozen=True)
class Ended:
    code: int
    """Exit code; minus the signal that ended it, that of the clock where it ran past its time."""
    out: str
    err: str
    seconds: float
    """Of processor time."""
    peak: int
    """Peak resident bytes, those of the imported libraries included."""


class Forks:
    """A server, closed by `close`."""

    def __init__(self, limit: float = 10) -> None:
        environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._limit = limit
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def run(self, arguments: list[object], cwd: Path, fault: tuple[str, int] | None = None) -> Ended:
        """`fault`: a row of `faults.FAULTS` and its number, armed before the program runs."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"arguments": [str(a) for a in arguments], "cwd": str(cwd), "limit": self._limit, "fault": fault}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        with self._server:  # closes both ends, and waits
            pass


def _serve() -> None:
    import toc_cli.commands.inspect
    import toc_cli.pipeline
    import toc_cli.report  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_forked(**request)) + "\n")
        answers.flush()


def _forked(arguments: list[str], cwd: str, limit: float, fault: list[Any] | None) -> dict[str, object]:
    pipes = {name: os.pipe() for name in ("out", "err")}  # no files: a limit on their size is one of the faults
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(cwd)
        for (_, end), descriptor in zip(pipes.values(), (1, 2), strict=True):
            os.dup2(end, descriptor)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 (of the child's own ends)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 1))
        signal.alarm(12 * int(limit))
        sys.argv = ["toc", *arguments]
        code = 4
        try:
            from toc_cli.commands import main

            if fault:
                FAULTS[fault[0]](fault[1])
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # an end that takes nothing: what the program said of it counts
                    stream.flush()
            os._exit(code)
    for _, end in pipes.values():
        os.close(end)
    with ThreadPoolExecutor(2) as readers:
        texts = dict(zip(pipes, readers.map(_drained, [end for end, _ in pipes.values()]), strict=True))
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, **texts, "seconds": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}


def _drained(end: int) -> str:
    with os.fdopen(end, errors="replace") as pipe:
        return pipe.read()


if __name__ == "__main__":
    _serve()
