"""Work side by side whose bits do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from toc_cli.ops.linear import one_thread

Given = TypeVar("Given")
Made = TypeVar("Made")


class Pool:
    """As many threads as torch has, each of which runs torch on one: what they compute side by side does not follow their number."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Pool:
        self._alone = one_thread()
        self._alone.__enter__()  # a thread that is new in it begins with one
        self._workers = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._workers is not None:
            self._workers.shutdown()
        self._alone.__exit__(None, None, None)

    def map(self, part: Callable[[Given], Made], items: Iterable[Given]) -> Iterable[Made]:
        """`part` of each item, in order; all items are taken at once."""
        return map(part, items) if self._workers is None else self._workers.map(part, items)

    def run(self, part: Callable[[int], None]) -> None:
        """`part(0)` … `part(threads - 1)`."""
        for _ in self.map(part, range(self.threads)):
            pass
