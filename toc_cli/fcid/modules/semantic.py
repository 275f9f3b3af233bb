"""From a map per second to the vector that carries its meaning.

Legend: F frames (clips x seconds), P = H * W positions, C channels; maps are position-major (P, F, C).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class MapSemanticEncoder(nn.Module):
    """(P, F, C) -> (F, C), or (F, P * C) in the form `layout`: channel weights, then what becomes of the positions.

    w = sigmoid(W2 relu(W1 s)), s the mean of positions; u = x (1 + w).
    """

    def __init__(self, width: int, attention: Literal["layout", "positions", "sum"]) -> None:
        super().__init__()
        bottleneck = max(1, width // 8)
        self.squeeze = nn.Linear(width, bottleneck, bias=False)
        self.excite = nn.Linear(bottleneck, width, bias=False)
        self.attention = PositionAttention(width) if attention == "positions" else None
        self.width, self.layout = width, attention == "layout"

    def width_out(self, size: tuple[int, int]) -> int:
        """Features per frame of maps of that size."""
        return self.width * size[0] * size[1] if self.layout else self.width

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        gain = 1 + torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        if self.layout:
            return (x * gain).transpose(0, 1).flatten(1)
        if self.attention is None:
            # The published softmax has one entry, so it weighs every position 1: their sum.
            return len(x) * mean * gain
        u = x * gain
        return (self.attention(mean, u)[..., None] * u).sum(0)


class PositionAttention(nn.Module):
    """Weights (P, F) over positions: softmax of tanh(v . (relu(W_s s) * relu(W_u u)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.mean = nn.Linear(width, inner)
        self.position = nn.Linear(width, inner)
        self.score = nn.Linear(inner, 1)

    def forward(self, mean: Tensor, u: Tensor) -> Tensor:
        query = torch.relu(self.mean(mean)) * torch.relu(self.position(u))
        return torch.tanh(self.score(query)).squeeze(-1).softmax(0)
