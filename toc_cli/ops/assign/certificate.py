"""The proof that a float32 search found the float64 argmin, and the search space when it may not have.

The fine pass maximises a float32 score that orders the codes as the distance does:

    euclidean   s_k = X.E_k - |E_k|^2 / 2,  X = scale (x - mu), E_k = scale (e_k - mu)
    dot         s_k = X.E_k,                X = x,              E_k = scale (e_k - mu)
    cosine      s_k = X.E_k,                X = x,              E_k = scale (e_k / |e_k| - mu)

mu is the mean code (a shift that moves all scores of a row alike), scale a power of two that brings the largest |E_k| = R to [1/2, 1).
With u = 2^-24, Cauchy-Schwarz and the standard model of floating point, in whatever order the D products are summed,

    |computed s_k - s_k| <= eta(x) = slope |X| + offset + curve |X|^2

where the slope holds the rounding of X and E (2u), of the bias (u) and of the sum ((D + 2) u), each times R; the offset
its |E|^2/2 part and underflow; curve (and a part of the others) the rounding of the float64 reference itself. So the
float64 argmin is among the codes whose computed score is at least the best one minus 2 eta; where that is a single code
nothing is left to do, else those codes are compared in float64. (The coarse pass of the compiled search adds what its
integers round; its bound stands in _coarse.h.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

U = 2.0**-24  # unit roundoff of float32
U64 = 2.0**-53  # unit roundoff of float64
TINY = 2.0**-126  # smallest normal float32: bounds every underflow, also where subnormals are flushed
OVERFLOW = 2.0**63  # norms from here on have squares that float32 cannot hold
MAX_DIMENSIONS = 1 << 16  # the first-order bound below carries a 1 % surcharge, enough up to here
CHUNK = 1 << 20  # elements of a codebook looked at in float64 at a time


@dataclass(frozen=True)
class Frame:
    """How one codebook is centred and scaled, and the error bound that follows."""

    mu: Tensor
    """Mean code (D,), representable in float32."""
    scale: float
    """Power of two on the codes; on the rows too where the metric is euclidean."""
    slope: float
    offset: float
    curve: float
    metric: str

    @property
    def per_distance(self) -> float:
        """Change of the score per unit of distance (for cosine, of similarity times |x|)."""
        return self.scale * self.scale / 2 if self.metric == "euclidean" else self.scale

    def rows(self, x: Tensor) -> Tensor:
        """Rows (n, D) as the candidate pass sees them, float32."""
        if self.metric != "euclidean":
            return x.float()
        x = x if x.dtype == torch.float64 else x.float()
        return ((x - self.mu.to(x.dtype)) * self.scale).float()

    def codes(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (k, D) as the candidate pass sees them, and the bias -|E|^2/2 (k,) (0 for dot and cosine); float32.

        They pass through float64 in blocks.
        """
        seen = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        bias = torch.zeros(len(codes), dtype=torch.float32, device=codes.device)
        step = max(1, CHUNK // codes.shape[1])
        for part, out, own in zip(codes.split(step), seen.split(step), bias.split(step), strict=True):
            centred = (_comparable(part, self.metric) - self.mu.double()) * self.scale
            out.copy_(centred)
            if self.metric == "euclidean":
                own.copy_(-0.5 * centred.square_().sum(1))
        return seen, bias

    def eta(self, norms: Tensor) -> Tensor:
        """Bound on the error of a score, for row norms |X| (n,); inf where float32 sums may overflow."""
        norms = norms.double() * 1.001
        bound = self.slope * norms + self.offset + self.curve * norms * norms
        return torch.where(norms < OVERFLOW, bound, torch.inf)


def frame(codes: Tensor, metric: str, columns: Tensor | None = None) -> Frame:
    """Centre, scale and error bound of (these columns of) a codebook (K, D); reads it in blocks, K x D is never copied whole."""
    d = codes.shape[1] if columns is None else len(columns)
    slices = codes.split(max(1, CHUNK // d))

    def blocks() -> Iterator[Tensor]:
        for part in slices:
            yield _comparable(part if columns is None else part.index_select(1, columns), metric)

    mu = (torch.stack([block.sum(0) for block in blocks()]).sum(0) / len(codes)).float()
    radius = max(float((block - mu.double()).square().sum(1).amax().sqrt()) for block in blocks())
    longest = max(float(block.norm(dim=1).amax()) for block in blocks())
    return bounded(mu, radius, longest, metric)


def bounded(mu: Tensor, radius: float, longest: float, metric: str) -> Frame:
    """Scale and error bound for codes within `radius` of mu (D,) and of norms up to `longest` (of unit length where cosine)."""
    d = len(mu)
    exponent = -math.frexp(radius)[1] if 0 < radius < math.inf else 0
    scale = 2.0 ** min(max(exponent, -120), 120)
    r = radius * scale * 1.001
    single, double = 1.01 * (d + 5) * U, 1.01 * (d + 5) * U64
    underflow = (2 * d + 4) * TINY
    if metric == "euclidean":
        slope, curve = single * r + 2 * double * r, double
        offset = single * r * r / 2 + double * r * r + underflow * (2 + r)
    else:
        slope, curve, offset = single * r + 4 * double * scale * 1.001 * longest, 0.0, underflow * (2 + r)
    slope += underflow
    lost = math.sqrt(d) * 2.0**-62  # what squares that underflow can hide of |X|, summed in float32
    return Frame(mu, scale, slope, offset + slope * lost, curve, metric)


def _comparable(codes: Tensor, metric: str) -> Tensor:
    """Codes (k, D) in float64; of unit length where the metric is cosine (zero codes stay zero)."""
    codes = codes.double()
    if metric != "cosine":
        return codes
    norms = codes.norm(dim=1, keepdim=True)
    return torch.where(norms == 0, 0.0, codes / norms)
