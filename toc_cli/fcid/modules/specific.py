"""What a modality does not share: encoders of the specific features.

Legend: F frames, P positions, C channels; maps are position-major (P, F, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toc_cli.fcid.modules.convolution import SmallConv


class VectorSpecificEncoder(nn.Module):
    """relu(W x + b), also the coarse heads' form."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


class ResidualBlock(nn.Module):
    """relu(r + conv1x1(relu(conv3x3(r)))), r = relu(z): the skip carries r, because the published ReLU works in place."""

    def __init__(self, size: tuple[int, int], width: int) -> None:
        super().__init__()
        self.mix = SmallConv(size, width, width, "same", bias=False)
        self.project = SmallConv(size, width, width, bias=False, side=1)

    def forward(self, z: Tensor) -> Tensor:
        r = torch.relu(z)
        return torch.relu(r + self.project(torch.relu(self.mix(r))))


class MapSpecificEncoder(nn.Module):
    """(P, F, C) -> the specific map (P', F, S) and, if `pooled`, a vector (F, C) of it for the mutual-information nets."""

    def __init__(self, size: tuple[int, int], width: int, width_map: int, pooled: bool = True) -> None:
        super().__init__()
        half = max(1, width_map // 2)
        self.first = SmallConv(size, width, half)
        self.second = SmallConv(self.first.size_out, half, width_map)
        self.third = SmallConv(self.second.size_out, width_map, width_map, side=1)
        self.residual = ResidualBlock(self.third.size_out, width_map)
        self.pool = nn.Sequential(nn.Linear(width_map, half), nn.ReLU(), nn.Linear(half, width)) if pooled else None
        self.size_out = self.third.size_out

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        z = self.third(torch.relu(self.second(torch.relu(self.first(x)))))
        specific = self.residual(z)
        return specific, None if self.pool is None else self.pool(specific.mean(0))
