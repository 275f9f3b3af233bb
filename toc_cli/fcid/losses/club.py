"""CLUB: an upper bound of the mutual information of x and y, from a net that guesses y from x (Cheng et al. 2020).

Legend: B clips of all ranks, T seconds, X and Y features; q(y|x) = N(mu(x), exp(logvar(x))).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toc_cli.fcid.masks import both, time_mean


class GuessNet(nn.Module):
    """(..., X) -> mu, logvar (..., Y): two MLPs of four layers, `hidden` / 2 wide; logvar bounded by tanh."""

    def __init__(self, width_in: int, width_out: int, hidden: int) -> None:
        super().__init__()
        self.mu = _mlp(width_in, max(1, hidden // 2), width_out)
        self.logvar = _mlp(width_in, max(1, hidden // 2), width_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mu(x).to(x.dtype), torch.tanh(self.logvar(x).to(x.dtype))


def _mlp(width_in: int, inner: int, width_out: int) -> nn.Sequential:
    relu = nn.ReLU
    first, second, third = nn.Linear(width_in, inner), nn.Linear(inner, inner), nn.Linear(inner, inner)
    return nn.Sequential(first, relu(), second, relu(), third, relu(), nn.Linear(inner, width_out))


def loglikelihood(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """(N,): 1/2 sum_d ( -(mu - y)^2 / exp(logvar) - logvar ) of rows (N, Y), without the constant."""
    return (-(mu - y).square() / logvar.exp() - logvar).sum(-1) / 2


def club(
    mu: Tensor,
    logvar: Tensor,
    y: Tensor,
    other: Tensor,
    clips: Tensor | None = None,
    seconds: Tensor | None = None,
    other_seconds: Tensor | None = None,
) -> Tensor:
    """1/2 mean_b sum_d ( -mean_t (mu - y)^2 + mean_t (mu - other)^2 ) / exp(mean_t logvar); all (B, T, Y).

    `other` holds y of another clip for each clip; `clips` (B,) and the seconds (B, T) bool say what exists.
    """
    positive = time_mean((mu - y).square(), seconds)
    negative = time_mean((mu - other).square(), both(seconds, other_seconds))
    gaps = ((negative - positive) / time_mean(logvar, seconds).exp()).sum(-1) / 2
    if clips is None:
        return gaps.mean()
    return (gaps * clips).sum() / clips.sum().clamp(min=1)


def club_over_features(mu: Tensor, logvar: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """The published form for clip vectors (B, Y): the mean runs over features, the sum over the batch."""
    gap = (mu - other).square().mean(1) - (mu - y).square().mean(1)
    return (gap / logvar.mean(1).exp()).sum() / 2


def other_clips(order: Tensor, there: Tensor | None = None) -> Tensor:
    """(B,) int64: another clip for each clip, never itself: the next in the random `order` among those `there`.

    Clips that are not there point at themselves, and so does the only one.
    """
    chosen = order if there is None else order[there[order]]
    other = torch.arange(len(order), device=order.device)
    other[chosen] = chosen.roll(-1)
    return other
