"""GGUF: the header is read here; the blocks of quantised types are unpacked by the `gguf` library.

Format: magic, version u32, counts of tensors and of values u64; values (name, type u32, value); tensors (name, axes u32,
lengths u64 fastest first, type u32, offset u64); then the data at a multiple of `general.alignment`.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from toc_cli.errors import InputError, missing_extra
from toc_cli.io.checkpoint.base import TensorInfo
from toc_cli.io.checkpoint.listed import Listed
from toc_cli.io.checkpoint.strided import Storage, file_bytes, row_major, strided
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
"""Types of one number each, by the format's code."""
BLOCKS = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Types of blocks: name, numbers in a block, bytes of it."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
DEPTH_LIMIT, AXES_LIMIT = 4, 8


class GgufFile(Listed):
    """One .gguf file; a quantised tensor is read as float32."""

    container = "gguf"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._size = path.stat().st_size
        self._blocks: dict[str, tuple[int, int]] = {}
        try:
            with open(path, "rb") as file:
                self._read(file)
        except (struct.error, ValueError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"{printable(path)} is truncated or damaged: {printable(error)}.", "Copy or download it again."
            ) from None

    def _read(self, file: BinaryIO) -> None:
        _, version, tensors, values = _unpack(file, "<4sIQQ")
        if version not in (2, 3):
            raise InputError(
                f"{printable(self.path)} is GGUF of version {version & 0xFFFF or version >> 24}.", "toc reads 2 and 3."
            )
        for _ in range(values):
            name = self._text(file)
            value = self._value(file, _unpack(file, "<I")[0], 0)
            if value is not None:
                self.values[(name,)] = value
        entries = []
        for _ in range(tensors):
            name = self._text(file)
            (axes,) = _unpack(file, "<I")
            if axes > AXES_LIMIT:
                raise ValueError(f"a tensor of {axes:,} axes")
            shape = tuple(reversed(_unpack(file, f"<{axes}Q")))
            entries.append((name, shape, *_unpack(file, "<IQ")))
        alignment = self.values.get(("general.alignment",), 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ValueError("an impossible alignment")
        start = -(-file.tell() // alignment) * alignment
        for name, shape, kind, offset in entries:
            self._list(name, shape, kind, start + offset)

    def _list(self, name: str, shape: tuple[int, ...], kind: int, at: int) -> None:
        count = math.prod(shape)
        stored, per, size = (PLAIN[kind], 1, 0) if kind in PLAIN else BLOCKS.get(kind, ("", 1, 0))
        if not stored:
            return
        if per == 1:
            info = TensorInfo((), name, shape, stored)
            storage = Storage(stored, info.nbytes, file_bytes(self.path, at), name)
            nbytes = info.nbytes
            self.add((), name, strided(storage, stored, 0, shape, row_major(shape)))
        else:
            if not shape or shape[-1] % per:
                raise ValueError(f"{name}: rows of {shape[-1:]} numbers in blocks of {per}")
            nbytes = count // per * size
            self.infos[name] = TensorInfo((), name, shape, stored, packed=nbytes)
            self._blocks[name] = kind, at
        if at + nbytes > self._size:
            raise ValueError(f"{name} reaches past the end")

    def get(self, key: str) -> torch.Tensor:
        info = self.require(key)
        if key not in self._blocks:
            return super().get(key)
        try:
            import gguf
        except ImportError:
            raise missing_extra("gguf", "gguf") from None
        import numpy as np
        import torch

        kind, at = self._blocks[key]
        rows = np.frombuffer(file_bytes(self.path, at)(0, info.nbytes), np.uint8).reshape(*info.shape[:-1], -1)
        try:
            numbers = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind))
        except (NotImplementedError, ValueError) as error:
            where = f"{printable(self.path)}: {printable(key)}"
            raise InputError(f"{where} of type {info.stored} cannot be unpacked: {printable(error)}.") from None
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).reshape(info.shape)

    def _text(self, file: BinaryIO) -> str:
        (length,) = _unpack(file, "<Q")
        self._within(file, length)
        return file.read(length).decode("utf-8", "replace")

    def _within(self, file: BinaryIO, length: int) -> None:
        if length > self._size - file.tell():
            raise ValueError("a length past the end")

    def _value(self, file: BinaryIO, kind: int, depth: int) -> Any:
        """A plain value; arrays are passed over."""
        if kind in SCALARS:
            return _unpack(file, "<" + SCALARS[kind])[0]
        if kind == TEXT:
            return self._text(file)
        if kind != ARRAY or depth > DEPTH_LIMIT:
            raise ValueError(f"a value of type {kind}")
        of, count = _unpack(file, "<IQ")
        if of in SCALARS:
            self._within(file, length := count * struct.calcsize(SCALARS[of]))
            file.seek(length, 1)
        else:
            for _ in range(count):
                self._value(file, of, depth + 1)
        return None


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
