"""Means over what exists; a mask of None means that everything does."""

from __future__ import annotations

from torch import Tensor


def time_mean(x: Tensor, seconds: Tensor | None) -> Tensor:
    """(B, T, D) -> (B, D): the mean over the seconds of `seconds` (B, T) bool; 0 for a clip without any."""
    if seconds is None:
        return x.mean(1)
    weight = seconds.to(x.dtype)
    return (x * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Where both exist."""
    return b if a is None else a if b is None else a & b
