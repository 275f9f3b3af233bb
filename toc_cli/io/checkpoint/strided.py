"""An array that lies in a file and is not read yet: its storage, and which numbers of it in which order."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.stored_types import BYTES, torch_type

if TYPE_CHECKING:
    import torch

AXES_LIMIT = 64


@dataclass(eq=False)
class Storage:
    """A run of bytes of one type of numbers, shared by every array that is a view of it."""

    stored: str
    """Type of the numbers by name."""
    nbytes: int
    read: Callable[[int, int], bytearray]
    """(first byte, count) to the bytes; shorter where the file ends."""
    key: str
    """Equal for one storage of the file."""
    swapped: bool = False
    """Whether the bytes of each number stand in big-endian order."""
    start: int | None = None
    """Where it begins in the file; None where it is not known to lie there as it is."""

    def __setstate__(self, state: object) -> None:
        """A pickle that holds it cannot set its attributes."""
        raise pickle.UnpicklingError("the file sets attributes of a storage")


@dataclass(frozen=True, eq=False)
class Strided:
    """Numbers of a storage as an array."""

    storage: Storage
    stored: str
    offset: int
    """Numbers before the first."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: object) -> None:
        """A pickle that holds it cannot set its attributes."""
        raise pickle.UnpicklingError("the file sets attributes of a tensor")

    @property
    def span(self) -> int:
        """Numbers of the storage from the first to the last, 0 for an empty array."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def contiguous(self) -> bool:
        """Whether its numbers stand one after the other, the last axis fastest."""
        return all(n <= 1 or s == row for n, s, row in zip(self.shape, self.stride, row_major(self.shape), strict=True))

    def tensor(self) -> torch.Tensor:
        """The array, row-major, in native byte order. InputError where the file became shorter."""
        import torch

        size, dtype = BYTES[self.stored], torch_type(self.stored)
        count = math.prod(self.shape)
        if not count:
            return torch.empty(self.shape, dtype=dtype)
        data = self.storage.read(self.offset * size, self.span * size)
        if len(data) < self.span * size:
            raise InputError("Its data ends early: the file became shorter, or is damaged.")
        if self.storage.swapped:
            _swap(data, size // 2 if self.stored.startswith("complex") else size)
        numbers = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
        if self.contiguous:
            return numbers.reshape(self.shape)
        return numbers.as_strided(self.shape, self.stride).clone(memory_format=torch.contiguous_format)


def strided(storage: Storage, stored: str, offset: Any, shape: Any, stride: Any) -> Strided:
    """The array, checked against its storage. ValueError where it reaches out of it."""
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if (
        len(shape) != len(stride)
        or len(shape) > AXES_LIMIT
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
    ):
        raise ValueError("an array of impossible shape")
    found = Strided(storage, stored, offset, shape, stride)
    if found.span and (offset + found.span) * BYTES[stored] > storage.nbytes:
        raise ValueError(f"an array of shape {shape} reaches out of its storage of {storage.nbytes:,} bytes")
    return found


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in numbers, of an array whose last axis is fastest."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def column_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in numbers, of an array whose first axis is fastest (Fortran)."""
    return tuple(math.prod(shape[:i]) for i in range(len(shape)))


def file_bytes(path: Path, start: int) -> Callable[[int, int], bytearray]:
    """A `Storage.read` of a file, from the byte `start` on."""

    def read(first: int, count: int) -> bytearray:
        data = bytearray(count)
        with open(path, "rb", buffering=0) as file:
            file.seek(start + first)
            view, at = memoryview(data), 0
            while at < count and (got := file.readinto(view[at:])):
                at += got
            view.release()
        del data[at:]
        return data

    return read


def held_bytes(data: bytes | bytearray) -> Callable[[int, int], bytearray]:
    """A `Storage.read` of bytes in memory."""
    return lambda first, count: bytearray(memoryview(data)[first : first + count])


def _swap(data: bytearray, size: int) -> None:
    import numpy as np

    if size > 1:
        np.frombuffer(data, f"u{size}").byteswap(inplace=True)
