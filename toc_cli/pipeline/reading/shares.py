"""How many of a model's own tokens a quantiser gives.

Legend: N rows, L levels, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from toc_cli.ops.quantiser import Quantiser

PROVEN = 0.999
"""The share of equal tokens, near ties aside, from which a reading is proven."""
NONE = -1
"""Stands in recorded tokens where a level has none."""


@dataclass(frozen=True)
class Shares:
    """Equal tokens level by level and head by head, each level judged after the model's own choices at the levels before it."""

    equal: np.ndarray  # (L, H) int64
    compared: np.ndarray  # (L, H) int64: tokens that the model gave, but for near ties that fell the other way

    @property
    def each(self) -> np.ndarray:
        """(L, H) shares; NaN where nothing was compared."""
        return np.divide(self.equal, self.compared, out=np.full(self.equal.shape, np.nan), where=self.compared > 0)

    @property
    def least(self) -> float:
        """The lowest share; 0 where nothing was compared at all."""
        shares = self.each[self.compared > 0]
        return float(shares.min()) if shares.size else 0.0

    @property
    def overall(self) -> float:
        """Equal tokens over all compared."""
        return float(self.equal.sum() / max(1, self.compared.sum()))

    @property
    def proven(self) -> bool:
        """Whether every level and head agrees, and all were compared."""
        return bool((self.compared > 0).all()) and self.least >= PROVEN


def total(parts: Sequence[Shares]) -> Shares:
    """Of all rows together."""
    return Shares(sum(part.equal for part in parts), sum(part.compared for part in parts))  # type: ignore[arg-type]


def agreement(form: Quantiser, x: torch.Tensor, recorded: torch.Tensor) -> Shares:
    """Shares of rows x (N, W) whose tokens by `form` are the recorded ones (N, L, H), -1 where a level has none.

    In a residual chain a row counts at a level only where the model gave tokens at all levels before it.
    """
    given = recorded >= 0
    if form.residual:
        given = given & _after_full(given)
    found = form.lookup_after(x, recorded.clamp(min=0))
    equal = (found.tokens == recorded) & given
    counted = given & (equal | ~found.near_tie)
    return Shares(equal.sum(0).numpy(), counted.sum(0).numpy())


def _after_full(given: torch.Tensor) -> torch.Tensor:
    """(N, L, 1) whether every head of every earlier level has a token."""
    full = given.all(2, keepdim=True).long()
    before = torch.cat([torch.ones_like(full[:, :1]), full[:, :-1]], 1)
    return before.cumprod(1).bool()
