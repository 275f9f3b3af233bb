"""Tensor names as the families read them: section by section, with one spelling of the dots."""

from __future__ import annotations

import re
from collections.abc import Iterator

from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo

PER_CODE = ("cluster_size", "cluster_usage", "ema_count", "unactivated_count", "cluster_size_ema", "_ema_cluster_size")
"""Buffers with one number per code: they tell the code axis of the table beside them."""


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

    def optional(self, name: str) -> str | None:
        """Full key, or None where there is no such tensor."""
        return self.infos[name].key if name in self.infos else None

    def matches(self, pattern: str) -> list[re.Match[str]]:
        """Full matches of `pattern` over the names, in file order, numbers in the names counting as numbers."""
        found = [match for name in self.infos if (match := re.fullmatch(pattern, name))]
        return sorted(found, key=lambda match: natural(match.group()))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which `layers.10` stands after `layers.9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def is_optimizer(info: TensorInfo) -> bool:
    """Whether a tensor is a moment of an optimizer, whatever the file calls it: a decoy with the shape of a codebook."""
    state = info.section[-2:-1] == ("state",) and info.name in MOMENTS
    return state or any("optim" in part.lower() for part in info.section)


def sections(ckpt: Checkpoint) -> list[Section]:
    """The sections of a checkpoint that hold model tensors, in file order."""
    found: dict[tuple[str, ...], dict[str, TensorInfo]] = {}
    for info in ckpt.infos.values():
        if is_optimizer(info):
            continue
        if ckpt.container == "h5":
            found.setdefault((), {})[info.key.replace("/", ".")] = info
        else:
            found.setdefault(info.section, {})[info.name.replace("/", ".")] = info
    return [Section(path, infos) for path, infos in found.items()]


def code_axis(section: Section, name: str) -> tuple[int, int] | None:
    """(axis, K) of a table by the per-code buffer beside it; K is one less than the axis where the table has a padding row."""
    beside, shape = name[: name.rfind(".") + 1], section.shape(name)
    for suffix in PER_CODE:
        if beside + suffix not in section or not section.shape(beside + suffix):
            continue
        codes = section.shape(beside + suffix)[-1]
        for length in (codes, codes + 1):
            axes = [axis for axis, n in enumerate(shape) if n == length]
            if axes:
                return axes[-2] if len(axes) > 1 else axes[0], codes
    return None
