"""Reading ahead: one thread prepares the next item while this one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Generator[Item, None, None]) -> Iterator[Item]:
    """The same items in the same order; the generator runs in one other thread, one item ahead.

    Its exceptions are raised here, and it is closed when this iterator is.
    """
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        pending = pool.submit(next, items, None)
        try:
            while (item := pending.result()) is not None:
                pending = pool.submit(next, items, None)
                yield item
        finally:
            wait([pending])
            items.close()
