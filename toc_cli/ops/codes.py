"""Fewer codes: those that the features never choose go, near-duplicates merge, and every old id has a new one.

Legend: N rows, L levels, H heads, K codes, K' kept ones, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from toc_cli.errors import UsageError
from toc_cli.ops.linear import Array, float64, unit_rows
from toc_cli.ops.selection import parse_share
from toc_cli.ops.ward import ward


@dataclass(frozen=True)
class CodeCut:
    """What `--codes` removes from every table."""

    maps: tuple[torch.Tensor, ...]
    """Per level (H, K_l) int64: old id to new id, -1 for codes that vanish."""
    ids: tuple[torch.Tensor, ...]
    """Per level (H, K'_l) int64 ascending: the smallest old id that each new code stands for."""
    tables: tuple[torch.Tensor, ...]
    """Per level the codes (H, K'_l, D) in the dtype of the old ones."""

    @cached_property
    def merged(self) -> list[torch.Tensor]:
        """Per level (H, K_l) bool: old codes that share their new one with others."""
        return [
            torch.stack([(row >= 0) & (torch.bincount(row[row >= 0])[row.clamp(min=0)] > 1) for row in level])
            for level in self.maps
        ]

    def translate(self, tokens: torch.Tensor) -> torch.Tensor:
        """Old tokens (N, L, H) to new ones, -1 where the code has vanished."""
        heads = torch.arange(tokens.shape[2])
        return torch.stack([level[heads, tokens[:, at]] for at, level in enumerate(self.maps)], dim=1)

    def kept(self, tokens: torch.Tensor) -> torch.Tensor:
        """Old tokens (N, L, H) to new ones, -1 where the code has vanished or, merged with others, means something else."""
        heads = torch.arange(tokens.shape[2])
        changed = torch.stack([level[heads, tokens[:, at]] for at, level in enumerate(self.merged)], dim=1)
        return torch.where(changed, -1, self.translate(tokens))


def parse_codes(text: str, codes: int) -> int | None:
    """The number of codes that `--codes` asks for, of `codes`; None for `used`.

    UsageError for what is neither `used`, a share nor a count, for more than there are, and for one code.
    """
    if text.strip() == "used":
        return None
    count = parse_share("--codes", text, codes, "Use used, a share (0.5 or 50%) or a count (512).")
    if count < 2 <= codes:
        raise UsageError(
            f"--codes {text} leaves one code, which tells nothing apart.", "Use used, a share or a count from 2."
        )
    return count


@dataclass(frozen=True)
class Merges:
    """The order in which the used codes of one table (K, D) merge, cheapest first."""

    codes: torch.Tensor
    usage: np.ndarray
    pairs: tuple[tuple[int, int], ...]
    """The smallest old ids of the two clusters, in the order of Ward's greedy choice."""

    @property
    def used(self) -> int:
        """Codes that are chosen at all."""
        return int(np.count_nonzero(self.usage))

    def to(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map (K,), ids (K',) and codes (K', D) of `count` codes: the unused go first, the highest ids before the lower ones, then
        clusters merge to the mean of their codes by usage."""
        used, unused = np.flatnonzero(self.usage > 0), np.flatnonzero(self.usage == 0)
        lead = np.arange(len(self.usage))
        for kept, joined in self.pairs[: max(0, len(used) - count)]:
            lead[joined] = kept
        for id in used:  # a cluster's name is its smallest id, so the names before this one are final
            lead[id] = lead[lead[id]]
        ids = np.sort(np.concatenate([np.unique(lead[used]), unused[: max(0, count - len(used))]]))
        new = np.full(len(self.usage), -1)
        new[ids] = np.arange(len(ids))
        found = new[lead]
        table = self.codes[ids].clone()
        order = used[np.argsort(lead[used], kind="stable")]
        names, starts, sizes = np.unique(lead[order], return_index=True, return_counts=True)
        for name, start, size in zip(names[sizes > 1], starts[sizes > 1], sizes[sizes > 1], strict=True):
            members = order[start : start + size]
            weights = self.usage[members] / self.usage[members].sum()
            mean = (weights[:, None] * float64(self.codes[members])).sum(0)
            table[new[name]] = torch.from_numpy(mean).to(table.dtype)
        return torch.from_numpy(found), torch.from_numpy(ids), table


def merges(codes: torch.Tensor, usage: np.ndarray, *, unit: bool = False, down_to: int = 1) -> Merges:
    """Ward's clustering of the used codes of (K, D), each counted as often as it is used (K,), until `down_to` clusters are left.

    Joining clusters of n_a and n_b features with means a and b adds n_a n_b / (n_a + n_b) |a - b|^2 to the distortion: the cheapest
    pair first, ties to the smaller ids. `unit` compares directions.
    """
    used = np.flatnonzero(usage > 0)
    if len(used) <= max(1, down_to):
        return Merges(codes, usage, ())
    points = unit_rows(codes[used]) if unit else float64(codes[used])
    weights = usage[used].astype(np.float64)
    centred = points - (weights[:, None] * points).sum(0) / weights.sum()
    pairs = ward(centred, weights, len(used) - max(1, down_to))
    return Merges(codes, usage, tuple((int(used[a]), int(used[b])) for a, b in pairs))


def cut(tables: Sequence[Sequence[Merges]], counts: Sequence[int]) -> CodeCut:
    """All tables [level][head] cut to `counts` codes per level."""
    parts = [[head.to(count) for head in level] for level, count in zip(tables, counts, strict=True)]
    stacked = [[torch.stack(column) for column in zip(*level, strict=True)] for level in parts]
    maps, ids, codes = zip(*stacked, strict=True)
    return CodeCut(tuple(maps), tuple(ids), tuple(codes))


def mapped_share(cut: CodeCut, old: torch.Tensor, new: torch.Tensor) -> float:
    """The share of tokens (N, L, H) whose new choice is the one that the old one maps to."""
    return float((cut.translate(old) == new).double().mean())


def changed_share(cut: CodeCut, usage: Sequence[Array]) -> float:
    """The share of tokens, by usage (H, K_l) per level, that stand for another vector than before."""
    changed = sum(float64(counts)[merged.numpy()].sum() for counts, merged in zip(usage, cut.merged, strict=True))
    total = sum(float64(counts).sum() for counts in usage)
    return float(changed / total) if total else 0.0
