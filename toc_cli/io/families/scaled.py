"""Tensors stored as small numbers beside a scale (float8, int8): seen as what they stand for, q times its scale.

The spellings are those of compressed-tensors and transformers (`weight_scale`), DeepSeek and transformers' fine-grained fp8
(`weight_scale_inv`, which is multiplied too), ComfyUI (`scale_weight`), and bitsandbytes (`SCB`, the row's largest value for 127).

Legend: K codes, D dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.families.base import Codebook, Mode, Parts
from toc_cli.io.families.names import is_optimizer
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

BLOCKS = (16, 32, 64, 128, 256, 512)
"""Block lengths in use, where a scale stands for a block and no config says of what length."""
NONE = "none"


@dataclass(frozen=True)
class Scale:
    """What a stored tensor is multiplied by."""

    key: str
    """Full key of the scale."""
    zero: str | None = None
    """Full key of the zero point that is taken off first."""
    over: float = 1.0
    """What the scale is divided by: 127 for `SCB`."""


def multiplied(stored: torch.Tensor, scale: torch.Tensor, block: tuple[int, ...] | None = None) -> torch.Tensor:
    """`stored` times `scale` in float32. The scale is one number, one for each row, column or point, or one for each block.

    Args:
        block: lengths of a block along the last axes, where the file says.

    Raises:
        InputError: the shapes do not fit, or fit in two ways.
    """
    values = scale.float()
    if values.numel() == 1:
        return stored.float() * values.reshape(())
    if values.ndim < stored.ndim and values.ndim == 1 and values.shape[0] == stored.shape[0] != stored.shape[-1]:
        values = values.reshape(-1, *[1] * (stored.ndim - 1))
    if values.ndim == 1 and values.shape[0] == stored.shape[0] == stored.shape[-1]:
        raise InputError(
            f"One scale {tuple(scale.shape)} for rows or columns of {tuple(stored.shape)}: the file does not say."
        )
    if values.ndim > stored.ndim:
        raise InputError(f"The scale {tuple(scale.shape)} does not fit {tuple(stored.shape)}.")
    values = values.reshape(*[1] * (stored.ndim - values.ndim), *values.shape)
    for axis, (length, count) in enumerate(zip(stored.shape, values.shape, strict=True)):
        if count in (1, length):
            continue
        own = None if block is None or stored.ndim - axis > len(block) else block[len(block) - stored.ndim + axis]
        size = own or _block(length, count)
        if size is None or -(-length // size) != count:
            raise InputError(f"The scale {tuple(scale.shape)} does not fit {tuple(stored.shape)}.")
        values = values.repeat_interleave(size, dim=axis).narrow(axis, 0, length)
    return stored.float() * values


def _block(length: int, count: int) -> int | None:
    """The only length of which `count` blocks make up `length`: an exact share, or a usual length with a shorter last block."""
    sizes = {size for size in BLOCKS if -(-length // size) == count}
    if length % count == 0:
        sizes.add(length // count)
    return sizes.pop() if len(sizes) == 1 else None


class Multiplied(Checkpoint):
    """A checkpoint whose scaled tensors read as float32, multiplied out; writing and everything else is the stored one's."""

    def __init__(self, stored: Checkpoint, scales: dict[str, Scale]) -> None:
        super().__init__(stored.path)
        self.stored, self.scales = stored, scales
        self.container, self.files, self.config = stored.container, stored.files, stored.config
        self.values, self.read_only = stored.values, stored.read_only
        self.infos = {
            key: replace(info, stored="float32", packed=None) if key in scales else info
            for key, info in stored.infos.items()
        }

    def get(self, key: str) -> torch.Tensor:
        tensor, scale = self.stored.get(key), self.scales.get(key)
        if scale is None:
            return tensor
        if scale.zero is not None:
            tensor = tensor.float() - self.stored.get(scale.zero).float()
        try:
            return multiplied(tensor, self.stored.get(scale.key) / scale.over, _block_size(self.config))
        except InputError as error:
            raise InputError(
                f"{printable(key)} is {self.stored.infos[key].stored} with {printable(scale.key)} beside it. {error.what}",
                f"--scale {NONE} takes it as it is stored, --scale KEY names another scale.",
            ) from None

    def write(self, target: Path, edits: Edits) -> list[Path]:
        return self.stored.write(target, edits)


def _block_size(config: dict[str, Any] | None) -> tuple[int, ...] | None:
    """`quantization_config.weight_block_size` of a config."""
    said = ((config or {}).get("quantization_config") or {}).get("weight_block_size")
    whole = isinstance(said, list) and all(isinstance(size, int) and size > 0 for size in said)
    return tuple(said) if whole and said else None


def opened(ckpt: Checkpoint, scale: str | None) -> Checkpoint:
    """The checkpoint with its small tensors multiplied by the scales beside them; itself where there are none, or for "none".

    Args:
        scale: a key, or the end of the keys, of the scales to take; None: those whose names say so.

    Raises:
        InputError: two scales stand beside one tensor, or none of that name.
    """
    if scale == NONE:
        return ckpt
    scales = {}
    for info in ckpt.infos.values():
        if is_small(info) and not is_optimizer(info):
            found = [key for key in companions(ckpt, info) if scale is None or key.endswith(scale)]
            if len(found) > 1:
                listed = " and ".join(printable(key) for key in found)
                raise InputError(
                    f"{listed} both stand beside {printable(info.key)}.", f"Name one: --scale {printable(found[0])}."
                )
            if found:
                scales[info.key] = _scale(ckpt, info, found[0])
    if scale is not None and not scales:
        scales = _named(ckpt, scale)
    return Multiplied(ckpt, scales) if scales else ckpt


def is_small(info: TensorInfo) -> bool:
    """Whether a tensor's numbers are so small in range that they may need a scale: one byte each, two axes or more."""
    return (info.stored.startswith("float8") or info.stored in ("int8", "uint8")) and len(info.shape) > 1


def companions(ckpt: Checkpoint, info: TensorInfo) -> list[str]:
    """Full keys of what is named as the scale of a tensor."""
    stem, _, leaf = info.name.rpartition(".")
    stem = f"{stem}." if stem else ""
    names = [f"{info.name}{end}" for end in ("_scale", "_scale_inv", "_scales", ".scale", ".scales", ".scale_inv")]
    names += [f"{stem}scale_{leaf}", f"{stem}{leaf}.SCB"]
    if leaf == "weight":
        names += [f"{stem}{end}" for end in ("scale", "scales", "SCB")]
    keys = ["/".join((*info.section, name)) for name in names]
    return [key for key in dict.fromkeys(keys) if key in ckpt.infos and ckpt.infos[key].is_floating]


def _scale(ckpt: Checkpoint, info: TensorInfo, key: str) -> Scale:
    zeros = [key.replace("scale", word) for word in ("zero_point", "zeros")] if "scale" in key else []
    zero = next((name for name in zeros if name in ckpt.infos), None)
    if zero is None and info.stored == "uint8":
        raise InputError(
            f"{printable(info.key)} is uint8 with {printable(key)} beside it, and no zero point: packed, or shifted by what the "
            "file does not say.",
            "Save it again as the floating-point numbers it stands for.",
        )
    return Scale(key, zero, 127.0 if key.endswith("SCB") else 1.0)


def _named(ckpt: Checkpoint, scale: str) -> dict[str, Scale]:
    """A scale that no name ties to a table, for the tables of its own module, or for the only small one."""
    keys = [key for key, info in ckpt.infos.items() if key.endswith(scale) and info.is_floating]
    if len(keys) != 1:
        raise InputError(
            f"{printable(str(ckpt.path))} has {len(keys) or 'no'} tensors {printable(scale)} of floating-point numbers.",
            "--scale takes the key of a scale, or none.",
        )
    module = keys[0].rpartition(".")[0]
    tables = [
        key for key, info in ckpt.infos.items() if key != keys[0] and len(info.shape) > 1 and not is_optimizer(info)
    ]
    small = [key for key in tables if is_small(ckpt.infos[key])]
    beside = [key for key in small or tables if key.rpartition(".")[0] == module]
    chosen = beside or (small if len(small) == 1 else [])
    if not chosen:
        raise InputError(
            f"No table stands beside {printable(keys[0])} {ckpt.infos[keys[0]].shape}.",
            "--scale names the scale of a table in the same module.",
        )
    return {key: Scale(keys[0]) for key in chosen}


def finished(ckpt: Checkpoint, seen: Checkpoint, book: Codebook, scale: str | None) -> Codebook:
    """A codebook that was found in `seen`, for whoever opens the stored file.

    Raises:
        InputError: a table of full precision has a scale beside it, and the user has not said whether it counts.
    """
    keys = dict.fromkeys(site.key for site in book.sites if site.role in ("codes", "sums"))
    tables = [
        key for key in dict.fromkeys([*keys, *(key for level in book.keys for key in level)]) if key in ckpt.infos
    ]
    if scale is None:
        _refuse_unsure(ckpt, tables)
    if not isinstance(seen, Multiplied):
        return book
    scales, read = seen.scales, book.parts
    inner: Callable[[Checkpoint], Parts] = lambda stored: read(Multiplied(stored, scales))  # noqa: E731
    mine = [key for key in tables if key in scales]
    refusals: dict[Mode, str] = dict(book.refusals)
    if mine or any(site.key in scales for site in book.sites):
        refusals["sliced"] = "its tensors are stored as small numbers with a scale, which is not cut"
    if any(scales[key].zero for key in mine):
        refusals["masked"] = "its zero is not stored as 0"
    notes = [f"stored as {ckpt.infos[key].stored}, read times {printable(scales[key].key)}" for key in mine[:1]]
    return replace(
        book,
        parts=inner,
        refusals=refusals,
        zero_fill=book.zero_fill or bool(mine),
        warnings=(*book.warnings, *notes),
    )


def _refuse_unsure(ckpt: Checkpoint, tables: Iterable[str]) -> None:
    for key in tables:
        info = ckpt.infos[key]
        names = [name for name in companions(ckpt, info) if re.search(r"_scale(_inv|s)?$|scale_\w+$", name)]
        if names and info.is_floating and not is_small(info):
            raise InputError(
                f"{printable(key)} is {info.stored}, and {printable(names[0])} {ckpt.infos[names[0]].shape} stands beside it: "
                "the file does not say whether the table is still to be multiplied.",
                f"--scale {NONE} takes it as it is stored, --scale {printable(names[0])} multiplies it.",
            )
