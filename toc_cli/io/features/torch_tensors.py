"""Tensors of a torch file: one, a list of them, or a dictionary from id to tensor; read without running anything."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.checkpoint.strided import Strided
from toc_cli.io.checkpoint.torch_file import only_objects, read_tree
from toc_cli.io.checkpoint.tree import leaves
from toc_cli.io.features.raw import widen
from toc_cli.io.features.source import ArrayRows, ArraySource, Opened, Reader, Source
from toc_cli.io.head import Head
from toc_cli.io.names import printable


class TensorSource(Source):
    """A tensor of the file."""

    def __init__(self, path: Path, array: Strided) -> None:
        self.path, self.array, self.shape = path, array, array.shape
        self.stored = np.dtype("u2" if array.stored == "bfloat16" else array.stored)
        self.dtype = np.dtype(np.float32) if array.stored == "bfloat16" else self.stored

    def reader(self, axis: int, opened: Opened) -> Reader:
        if self._rows_lie_whole(axis):
            return TensorRows(self, axis)
        span = self.numbers(self.array.offset, self.array.span)
        view = np.lib.stride_tricks.as_strided(span, self.shape, [step * span.itemsize for step in self.array.stride])
        return ArrayRows(ArraySource(view), axis)

    def storage(self, axis: int) -> tuple[tuple[int, ...], int]:
        return (1,), 0 if self._rows_lie_whole(axis) else self.array.span * self.dtype.itemsize

    def _rows_lie_whole(self, axis: int) -> bool:
        return self.array.contiguous and axis == max(0, len(self.shape) - 1)

    def numbers(self, first: int, count: int) -> np.ndarray:
        """`count` numbers of the storage, in native order, bfloat16 widened. InputError where the file became shorter."""
        size = BYTES[self.array.stored]
        data = self.array.storage.read(first * size, count * size)
        if len(data) < count * size:
            raise InputError(f"{printable(self.path)} became shorter while it was read.")
        numbers = np.frombuffer(data, self.stored)
        if self.array.storage.swapped:
            numbers = numbers.byteswap()
        if self.stored == self.dtype:
            return numbers
        wide = np.empty(count, np.float32)
        widen(numbers, wide)
        return wide


class TensorRows(Reader):
    """Rows that lie one after the other."""

    def __init__(self, source: TensorSource, axis: int) -> None:
        super().__init__(source.shape, axis)
        self._source = source

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        first = self._source.array.offset + start * self.width
        out[...] = self._source.numbers(first, (stop - start) * self.width).reshape(out.shape)


def torch_sources(path: Path) -> dict[str, Source]:
    """The number tensors of a torch file, by their keys joined with slashes ("" for a lone tensor)."""
    return tensors_of(Head(path))


def tensors_of(head: Head) -> dict[str, Source]:
    """`torch_sources` of a file that may lie inside of another."""
    tree, foreign = read_tree(head)
    arrays = [("/".join(map(str, place)), leaf) for place, leaf in leaves(tree) if isinstance(leaf, Strided)]
    if foreign and not arrays:
        raise only_objects(head.shown, foreign[0])
    found: dict[str, Source] = {}
    for key, array in arrays:
        plain = array.stored == "bfloat16" or (array.stored in BYTES and array.stored in np.sctypeDict)
        if not plain:
            continue
        if key in found:
            raise InputError(f"{head.shown} has two tensors of the name {printable(key)!r}.")
        if math.prod(array.shape) * BYTES[array.stored] > max(head.size, 1 << 24):
            raise InputError(f"{head.shown} claims a tensor of shape {array.shape}, more than the whole file holds.")
        found[key] = TensorSource(head.path, array)
    return found
