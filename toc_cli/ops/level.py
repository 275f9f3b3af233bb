"""One level of a quantiser: the codes that are compared, and what each stands for.

Legend: N rows, L levels, H heads, K codes, D dimensions, D' kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from toc_cli.ops.linear import Array, float64, matmul, unit_rows

HELD_NUMBERS = 1 << 22
"""Codes of a quantiser of up to this many numbers are also held in float64, as they are passed on (32 MiB)."""


@dataclass(frozen=True)
class Level:
    """One level's codes: what is compared, and what is passed on."""

    codes: torch.Tensor  # (H, K, D') compared with the kept dimensions of the features
    fill: np.ndarray | None = None  # (H, D) float64, passed on where the codes say nothing; None: they say all
    unit: bool = False
    """Whether the codes are passed on at unit length."""
    kept: torch.Tensor | None = None  # (H, D') int64 ascending; None: all D
    rotation: torch.Tensor | None = None  # (H, D, D') float64; None: no rotation
    held: bool = True
    """Whether what is passed on is computed once for all codes, or for the chosen ones each time."""

    @property
    def dim(self) -> int:
        """D."""
        return self.codes.shape[-1] if self.fill is None else self.fill.shape[-1]

    def rows(self, head: int, tokens: torch.Tensor | None = None) -> np.ndarray:
        """The vectors passed on for tokens (N,), or for all codes in order: (N or K, D) float64."""
        if tokens is None:
            return self._passed_on(head, self.codes[head])
        if self.held:
            return self._held[head][tokens.numpy()]
        return self._passed_on(head, self.codes[head][tokens.to(self.codes.device).long()])

    @cached_property
    def _held(self) -> list[np.ndarray]:
        return [self._passed_on(head, codes) for head, codes in enumerate(self.codes)]

    def _passed_on(self, head: int, codes: torch.Tensor) -> np.ndarray:
        values = unit_rows(codes) if self.unit else float64(codes)
        if self.fill is None:
            return values
        rows = np.repeat(self.fill[head][None], len(codes), axis=0)
        if self.rotation is not None:
            turn = float64(self.rotation[head])
            rows += matmul(values - matmul(self.fill[head][None], turn), turn.T)
        elif self.kept is not None:
            rows[:, self.kept[head].numpy()] = values
        return rows

    def compared(self, z: torch.Tensor, head: int) -> torch.Tensor:
        """The part of z (N, H*D) that meets one head: its columns (N, D), of which `columns` count, or its components (N, D')."""
        z = z[:, head * self.dim : (head + 1) * self.dim]
        return z if self.rotation is None else torch.from_numpy(matmul(z, self.rotation[head]))

    def columns(self, head: int) -> torch.Tensor | None:
        """Which columns of `compared` count, (D',); None: all."""
        return None if self.kept is None or self.kept.shape[1] == self.dim else self.kept[head]


def levels_of(
    tables: Sequence[torch.Tensor],
    fill: Array | None,
    cosine: bool,
    unit_vectors: bool,
    kept: Sequence[torch.Tensor] | None,
    rotation: Sequence[torch.Tensor] | None,
) -> tuple[Level, ...]:
    """The levels of tables (H, K_l, D'_l): whole ones, or parts of a pruned quantiser with its constant (L, H, D). ValueError for
    parts that do not fit together."""
    width = max(table.shape[-1] for table in tables) if fill is None else np.shape(fill)[-1]
    held = sum(table.shape[0] * table.shape[1] * width for table in tables) <= HELD_NUMBERS
    if kept is None and rotation is None:
        return tuple(Level(table, None, unit_vectors, held=held) for table in tables)
    if fill is None:
        raise ValueError("a pruned quantiser needs the constant of its dropped dimensions (zeros will do)")
    constants = float64(fill)
    if (cosine or unit_vectors) and constants.any():
        raise ValueError("a cosine lookup or unit vectors allow no constant but 0")
    at = _per_level(kept, len(tables))
    turn = _per_level(rotation, len(tables))
    return tuple(Level(table, constants[n], unit_vectors, at[n], turn[n], held) for n, table in enumerate(tables))


def _per_level(own: Sequence[torch.Tensor] | None, levels: int) -> Sequence[torch.Tensor | None]:
    """One entry per level, of one per level or one for all; None stays None."""
    if own is None:
        return [None] * levels
    if len(own) not in (1, levels):
        raise ValueError(f"{len(own)} kept spaces for {levels} levels")
    return list(own) * (levels // len(own))


def components(rotation: torch.Tensor) -> list[torch.Tensor]:
    """(L, H, D, D') to (H, D, D'_l) per level, without the columns of zeros at the end of a level that keeps fewer."""
    return [level[..., : int(level[0].any(0).sum())] for level in rotation]
