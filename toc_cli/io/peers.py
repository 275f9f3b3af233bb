"""The processes that `torchrun` starts together: met within a bounded time, and named where one is gone."""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from toc_cli.errors import TocError

JOIN = 15.0
"""Seconds in which every process has to come."""
BEAT = 1.0
SILENT = 4.0
"""Seconds between two signs of life, and after how many without one a process is gone."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = "Start them with torchrun, or unset WORLD_SIZE."


def announced(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and number of processes that the environment announces; (0, 1) where it announces none.

    Raises TocError where some of the variables are missing, empty or no numbers that fit.
    """
    size = environment.get("WORLD_SIZE")
    if size is None or size.strip() == "1":
        return 0, 1
    missing = [name for name in VARIABLES if not environment.get(name, "").strip()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise TocError(
            f"WORLD_SIZE={size} announces several processes, but {', '.join(missing)} {verb} not set.", TORCHRUN
        )
    try:
        rank, world, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    except ValueError:
        rank, world, port = -1, 0, 0
    if not (0 <= rank < world and 0 < port < 1 << 16):
        said = ", ".join(f"{name}={environment[name][:40]}" for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        raise TocError(f"{said} announce no process that can be.", TORCHRUN)
    return rank, world


class Peers:
    """The other processes of this run. `join` meets them; `watched` turns the loss of one into a sentence that names it."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._store: Any = None
        self._left = threading.Event()

    def join(self, backend: str, patience: float = JOIN) -> None:
        """Meet every other process within `patience` seconds and form the process group. TocError that names who is missing."""
        import torch.distributed as dist

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        until = time.monotonic() + patience
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not serves and not _answers(host, port, until):
            raise self._missing([0], patience)
        try:
            store: Any = dist.TCPStore(
                host, port, self.world, serves, timedelta(seconds=patience), wait_for_workers=False
            )
        except RuntimeError as error:
            raise TocError(f"Rank {self.rank} cannot use {self.address}: {_line(error)}.", "Free the port.") from error
        self._store = dist.PrefixStore(f"toc/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._store.set(f"here/{self.rank}", "1")
        while absent := self._absent():
            if time.monotonic() > until:
                raise self._missing(absent, patience)
            time.sleep(0.05)
        alive = threading.Thread(target=self._beat, name="alive", daemon=True)
        alive.start()
        atexit.register(self._leave, alive)
        with self.watched():
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.world)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around what waits for the others: where that fails because one is gone, TocError names it."""
        try:
            yield
        except RuntimeError as error:
            gone = self._silent()
            if not gone:
                raise
            raise TocError(
                f"{_ranks(gone)} of {self.world} ended before the others; nothing was left half-written.",
                "What it said, or the system's log of killed processes, tells why.",
            ) from error

    def _absent(self) -> list[int]:
        try:
            return [rank for rank in range(self.world) if not self._store.check([f"here/{rank}"])]
        except RuntimeError:
            return [0]

    def _missing(self, ranks: list[int], patience: float) -> TocError:
        return TocError(
            f"{_ranks(ranks)} of {self.world} did not come to {self.address} within {patience:g} seconds.",
            "Start all processes together, with torchrun.",
        )

    def _beat(self) -> None:
        """A sign of life in the store, until it or this process ends."""
        try:
            while not self._left.is_set():
                self._store.add(f"alive/{self.rank}", 1)
                self._left.wait(BEAT)
        except RuntimeError:
            return

    def _leave(self, alive: threading.Thread) -> None:
        """Before the interpreter ends: a thread that it meets inside the store's C++ would abort the process."""
        self._left.set()
        alive.join(SILENT)

    def _silent(self) -> list[int]:
        """The ranks that give no sign of life while we wait for one; rank 0 where the store went with it."""
        others = [rank for rank in range(self.world) if rank != self.rank]
        try:
            before = {rank: self._store.add(f"alive/{rank}", 0) for rank in others}
            time.sleep(SILENT)
            return [rank for rank in others if self._store.add(f"alive/{rank}", 0) == before[rank]]
        except RuntimeError:
            return [0]


def _answers(host: str, port: int, until: float) -> bool:
    """Whether something listens there before the time `until`."""
    while True:
        try:
            socket.create_connection((host, port), timeout=2).close()
            return True
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)


def _ranks(ranks: list[int]) -> str:
    named = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"Rank {named}" if len(ranks) == 1 else f"Ranks {named}"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200].rstrip(".")
