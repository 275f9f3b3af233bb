"""InfoNCE: a vector finds its partner among those of the other modality.

Legend: N rows of all ranks, D features. Scores are made a tile of rows at a time, forward and again backward, so that
memory grows with N and not with its square; one exponential serves both directions, as a cosine over the temperature
is at most 1 / temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 18
"""Scores of one tile: 1 MB of float32, which a core keeps in its cache."""


def infonce(
    query: Tensor,
    key: Tensor,
    temperature: float = 0.1,
    *,
    both_ways: bool = False,
    alike: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """mean_i -log softmax_j(cos(query_i, key_j) / temperature)[i]; `both_ways` halves the sum with that of the keys.

    query, key (N, D); `alike` (N,) int: rows of one number are no negatives of each other; `rows` (N,) bool: rows that
    exist.
    """
    if rows is not None:
        query, key = query[rows], key[rows]
        alike = None if alike is None else alike[rows]
    if len(query) == 0:
        return (query.sum() + key.sum()) * 0
    full = torch.promote_types(query.dtype, torch.float32)
    query, key = F.normalize(query.to(full), dim=-1), F.normalize(key.to(full), dim=-1)
    if 2 / temperature > -math.log(torch.finfo(full).tiny) - 1:  # exp(-2 / temperature) would be lost
        return _by_softmax(query @ key.T / temperature, both_ways, alike)
    loss: Tensor = _Tiled.apply(query, key, temperature, both_ways, alike)
    return loss


def clip_numbers(clips: int, seconds: int, device: torch.device) -> Tensor:
    """(N,): the clip of each row, N = clips * seconds."""
    return torch.arange(clips, device=device).repeat_interleave(seconds)


def _by_softmax(scores: Tensor, both_ways: bool, alike: Tensor | None) -> Tensor:
    """The loss of scores (N, N) by log-softmax, whatever their range."""
    if alike is not None:
        scores = scores.masked_fill(_left_out(alike, slice(0, len(alike))), float("-inf"))
    loss = -scores.log_softmax(1).diagonal().mean()
    return (loss - scores.log_softmax(0).diagonal().mean()) / 2 if both_ways else loss


def _left_out(alike: Tensor, part: slice) -> Tensor:
    """(tile, N) bool: pairs of one number that are not the row's own."""
    same = alike[part, None] == alike
    same.diagonal(part.start).fill_(False)
    return same


def _tiles(query: Tensor, key: Tensor, temperature: float, alike: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the N rows with exp((cos - 1) / temperature), (tile, N), 0 for pairs left out; query, key of norm 1."""
    step = max(1, TILE // len(key))
    for start in range(0, len(query), step):
        part = slice(start, min(start + step, len(query)))
        tile = query[part] @ key.T
        tile.sub_(1).div_(temperature).exp_()
        yield part, tile if alike is None else tile.masked_fill_(_left_out(alike, part), 0)


class _Tiled(torch.autograd.Function):
    """The loss of query and key (N, D) of norm 1."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, temperature: float, both_ways: bool, alike: Tensor | None
    ) -> Tensor:
        along, down = query.new_empty(len(query)), query.new_zeros(len(query))  # sums of the rows, of the columns
        for part, tile in _tiles(query, key, temperature, alike):
            torch.sum(tile, 1, out=along[part])
            if both_ways:
                down += tile.sum(0)
        ctx.save_for_backward(query, key, along, down, alike)
        ctx.temperature, ctx.both_ways = temperature, both_ways
        own = ((query * key).sum(1) - 1).mean() / temperature
        return (along.log().mean() + down.log().mean()) / 2 - own if both_ways else along.log().mean() - own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, along, down, alike = ctx.saved_tensors
        along, down = along.reciprocal()[:, None], down.reciprocal()
        to_query, to_key = torch.empty_like(query), torch.zeros_like(key)
        for part, tile in _tiles(query, key, ctx.temperature, alike):
            tile *= (along[part] + down) / 2 if ctx.both_ways else along[part]
            torch.mm(tile, key, out=to_query[part])
            to_key.addmm_(tile.T, query[part])
        scale = gradient / (len(query) * ctx.temperature)
        return to_query.sub_(key).mul_(scale), to_key.sub_(query).mul_(scale), None, None, None
