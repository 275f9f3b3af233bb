"""Tensor names as the families read them: section by section, with one spelling of the dots."""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo
from toc_cli.io.names import printable

PER_CODE = (
    "cluster_size", "cluster_usage", "ema_count", "unactivated_count", "cluster_size_ema", "_ema_cluster_size",
    "ema_cluster_size", "ema_cluster_size.hidden", "ema_cluster_size.average", "code_count", "code_usage", "codebook_usage",
    "_usage_count", "usage_count", "vocab_usage", "cluster_counts", "ema_M", "ema_m", "N",
)  # fmt: skip
"""Buffers with one number per code: they tell the code axis of the table beside them."""

SUMS = (
    "embed_avg", "embed_ema", "ema_weight", "_ema_w", "ema_w", "code_sum", "codes_avg", "z_avg", "ema_positions", "ema_dw",
    "ema_dw.hidden", "ema_dw.average", "ema_m", "ema_M", "ema_embed", "embedding_avg", "_ema_embedding",
)  # fmt: skip
"""Running sums of features per code, shaped like the table beside them: never a codebook, always masked along."""


MOMENTS = {
    "step",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "sum",
}
"""What the optimizers of torch keep for each parameter, under `state` and its number."""


WRAPPED = re.compile(r"(\.\d+)(?:\._orig_mod|\._fsdp_wrapped_module|\._checkpoint_wrapped_module)+(?=\.)")
"""What torch.compile, FSDP and activation checkpointing put between a numbered module and its tensors."""


class Section:
    """The tensors of one nested dictionary by name; HDF5 paths read as dotted names."""

    def __init__(self, path: tuple[str, ...], infos: dict[str, TensorInfo]) -> None:
        self.path = path
        self.infos = infos

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def key(self, name: str) -> str:
        """Full key in the file."""
        return self.infos[name].key

    def shape(self, name: str) -> tuple[int, ...]:
        """Stored shape."""
        return self.infos[name].shape

    def sizes(self, name: str, axes: str) -> tuple[int, ...]:
        """Stored shape of a tensor whose axes are named, as "K D". InputError where it has another number of axes, or an empty one."""
        return sized(self.infos[name], axes)

    def optional(self, name: str) -> str | None:
        """Full key, or None where there is no such tensor."""
        return self.infos[name].key if name in self.infos else None

    def under(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, in file order, without a walk over all the others."""
        first = bisect_left(self._sorted, prefix)
        last = bisect_left(self._sorted, prefix + chr(sys.maxunicode))
        return sorted(self._sorted[first:last], key=self._places.__getitem__)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.infos)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.infos)}

    def matches(self, pattern: str) -> list[re.Match[str]]:
        """Full matches of `pattern` over the names, in file order, numbers in the names counting as numbers."""
        fullmatch = re.compile(pattern).fullmatch
        found = [match for name in self.infos if (match := fullmatch(name))]
        return sorted(found, key=lambda match: natural(match.group()))


def sized(info: TensorInfo, axes: str) -> tuple[int, ...]:
    """The shape of a tensor whose axes are named, as "K D". InputError where it has another number of axes, or an empty one."""
    if len(info.shape) != len(axes.split()) or not all(info.shape):
        raise misfit(info.key, info.shape, axes.split())
    return info.shape


def misfit(key: str, shape: Sequence[int], axes: Sequence[object]) -> InputError:
    """The error of a tensor that has not the axes a family relies on."""
    return InputError(
        f"{printable(key)} has shape {tuple(shape)} where ({', '.join(map(str, axes))}) is expected.",
        "The file is damaged, or of another kind: --codebook KEY takes one table as it is.",
    )


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which `layers.10` stands after `layers.9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def is_optimizer(info: TensorInfo) -> bool:
    """Whether a tensor is a moment of an optimizer, whatever the file calls it: a decoy with the shape of a codebook."""
    state = info.section[-2:-1] == ("state",) and info.name in MOMENTS
    return state or any("optim" in part.lower() for part in info.section)


def sections(ckpt: Checkpoint) -> list[Section]:
    """The sections of a checkpoint that hold model tensors, in file order; made once for all families that look."""
    if (made := _MADE.get(ckpt)) is not None and made[0] == len(ckpt.infos):
        return made[1]
    parts = _sections(ckpt)
    _MADE[ckpt] = len(ckpt.infos), parts
    return parts


_MADE: WeakKeyDictionary[Checkpoint, tuple[int, list[Section]]] = WeakKeyDictionary()
"""Sections by checkpoint, with the number of tensors that they were made of: a listing may still grow."""


def _sections(ckpt: Checkpoint) -> list[Section]:
    found: dict[tuple[str, ...], dict[str, TensorInfo]] = {}
    for info in ckpt.infos.values():
        if is_optimizer(info):
            continue
        section, name = ((), info.key) if ckpt.container == "h5" else (info.section, info.name)
        found.setdefault(section, {})[name.replace("/", ".")] = info
    return [Section(path, _unwrapped(infos)) for path, infos in found.items()]


def _unwrapped(infos: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The same by names without wrappers, but where two would get one name."""
    short = {name: WRAPPED.sub(r"\1", name) for name in infos}
    counts = Counter(short.values())
    return {short[name] if counts[short[name]] == 1 else name: info for name, info in infos.items()}


def beside(name: str) -> tuple[str, ...]:
    """Prefixes under which the statistics of a table stand: its own module, and the one above an embedding layer."""
    own = name[: name.rfind(".") + 1]
    if not re.search(r"(?:^|\.)weight$", name) or not own:
        return (own,)
    return own, own[: own.rstrip(".").rfind(".") + 1]


def code_axis(section: Section, name: str) -> tuple[int, int] | None:
    """(axis, K) of a table by the per-code buffer beside it; K is one less than the axis where the table has a padding row."""
    shape = section.shape(name)
    for prefix in beside(name):
        for suffix in PER_CODE:
            codes = _count(section, prefix + suffix, shape)
            for length in (codes, codes + 1) if codes else ():
                axes = [axis for axis, n in enumerate(shape) if n == length]
                if axes:
                    return axes[-2] if len(axes) > 1 else axes[0], codes
    return None


def _count(section: Section, name: str, table: tuple[int, ...]) -> int:
    """K by a buffer (K,), (K, 1) or (H, K); 0 without one."""
    if name not in section or section.shape(name) == table:
        return 0
    sizes = [n for n in section.shape(name) if n > 1]
    return sizes[-1] if sizes else 0


def twins(section: Section, name: str, *, padded: bool = False) -> list[tuple[str, str]]:
    """(sums, counts) of the running averages kept beside a table: sums have its shape (less a padding row), counts one per code.

    Several where a moving average is stored with what it averages: each goes with the counts of its own ending.
    """
    shape = section.shape(name)
    shape = (shape[0] - 1, *shape[1:]) if padded else shape
    for prefix in beside(name):
        sums = [prefix + leaf for leaf in SUMS if prefix + leaf in section and section.shape(prefix + leaf) == shape]
        counts = [
            prefix + leaf for leaf in PER_CODE if prefix + leaf in section and section.shape(prefix + leaf) != shape
        ]
        axis = code_axis(section, name)
        if sums and counts and axis:
            fitting = [
                count
                for count in counts
                if math.prod(section.shape(count)) * _width(shape, axis[0]) == math.prod(shape)
            ]
            ends = {count.rpartition(".")[2]: count for count in fitting}
            if fitting:
                return [(one, ends.get(one.rpartition(".")[2], fitting[0])) for one in sums]
    return []


def _width(shape: tuple[int, ...], axis: int) -> int:
    """D of a table of which `axis` is that of the codes: the last other axis."""
    return [n for i, n in enumerate(shape) if i != axis][-1]


_STATISTICS = tuple(f".{leaf}" for leaf in (*SUMS, *PER_CODE))


def is_statistic(name: str) -> bool:
    """Whether a tensor's last name is that of a running statistic, which is no codebook whatever its shape."""
    return f".{name}".endswith(_STATISTICS)
