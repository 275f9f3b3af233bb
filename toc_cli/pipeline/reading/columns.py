"""Which recorded tokens are those of which codebook: of one alone, or of several that read the same features side by side.

Legend: N rows, C tokens of each row, L levels, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch

FEW = 3
"""Codebooks side by side of which every order is tried."""


@dataclass(frozen=True)
class Place:
    """Where a codebook's tokens stand among the C of each row."""

    book: int
    """Place of the codebook in the list."""
    start: int
    levels: int
    heads: int
    heads_first: bool = False

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Its tokens (N, L, H) out of (N, C)."""
        mine = tokens[:, self.start : self.start + self.levels * self.heads]
        if self.heads_first:
            return mine.reshape(-1, self.heads, self.levels).transpose(1, 2)
        return mine.reshape(-1, self.levels, self.heads)


def places(trailing: tuple[int, ...], shapes: Sequence[tuple[int, int]]) -> list[list[Place]]:
    """Every way to share tokens with these axes after the rows, (), (C,) or (A, B), among codebooks of (L, H).

    All of them, in any order, where they fill the tokens exactly (a file may list the later codebook first); else each alone that
    does.
    """
    count = math.prod(trailing)
    sizes = [levels * heads for levels, heads in shapes]
    if len(shapes) > 1 and len(trailing) < 2 and sum(sizes) == count:
        return [_in_order(order, shapes) for order in _orders(len(shapes))]
    found = []
    for at, (levels, heads) in enumerate(shapes):
        if levels * heads != count:
            continue
        plain = len(trailing) < 2 or 1 in trailing or trailing == (levels, heads)
        if plain:
            found.append([Place(at, 0, levels, heads)])
        if levels > 1 and heads > 1 and (len(trailing) < 2 or trailing == (heads, levels) != (levels, heads)):
            found.append([Place(at, 0, levels, heads, heads_first=True)])
    return found


def _orders(count: int) -> list[tuple[int, ...]]:
    """Every order of a few codebooks; of many, the file's own and its reverse."""
    plain = tuple(range(count))
    return list(permutations(plain)) if count <= FEW else [plain, plain[::-1]]


def _in_order(order: Sequence[int], shapes: Sequence[tuple[int, int]]) -> list[Place]:
    found, start = [], 0
    for at in order:
        levels, heads = shapes[at]
        found.append(Place(at, start, levels, heads))
        start += levels * heads
    return found
