"""Types of stored numbers, by name: numpy's and torch's names, and those of formats that neither has (Q4_0, int4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WHOLE = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
}  # fmt: skip
FLOATING = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
COMPLEX = {"complex32": 4, "complex64": 8, "complex128": 16}
BYTES = {**WHOLE, **FLOATING, **COMPLEX}
"""Bytes of one number, of every type that has a whole count of them."""


def type_name(dtype: torch.dtype) -> str:
    """The name of a torch type: `float32`."""
    return str(dtype).removeprefix("torch.")


def torch_type(name: str) -> torch.dtype:
    """The torch type under which a stored type is read: its own, float32 for one that torch does not have (Q4_0)."""
    import torch

    found = getattr(torch, name, None) if name in BYTES else None
    return found if isinstance(found, torch.dtype) else torch.float32
