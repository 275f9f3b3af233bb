"""From shared and specific features back to the input.

Legend: F frames, P positions, C channels, D shared width, S specific width; maps are position-major (P, F, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toc_cli.fcid.modules.convolution import SmallConv
from toc_cli.fcid.modules.specific import MapSpecificEncoder, ResidualBlock


class VectorDecoder(nn.Module):
    """W_rec [W_q q + b ; specific] + b'."""

    def __init__(self, width: int, specific: int, width_out: int, inner: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, inner)
        self.reconstruct = nn.Linear(inner + specific, width_out)

    def forward(self, shared: Tensor, specific: Tensor) -> Tensor:
        return self.reconstruct(torch.cat([self.shared(shared), specific], dim=-1))


class MapDecoder(nn.Module):
    """The mirror of `MapSpecificEncoder`: (F, D), (P', F, S) -> (P, F, C)."""

    def __init__(self, width: int, encoder: MapSpecificEncoder, width_map: int, width_out: int) -> None:
        super().__init__()
        half = max(1, width_map // 2)
        first, second = encoder.first, encoder.second
        self.shared = nn.Linear(width, width)
        self.first = SmallConv(second.size_out, width + width_map, half, "transposed", kernel=second.kernel)
        self.residual = ResidualBlock(self.first.size_out, half)
        self.second = SmallConv(first.size_out, half, width_out, "transposed", kernel=first.kernel)
        self.third = SmallConv(first.size, width_out, width_out, side=1)

    def forward(self, shared: Tensor, specific: Tensor) -> Tensor:
        tiled = self.shared(shared).expand(len(specific), -1, -1)
        y = self.residual(self.first(torch.cat([tiled, specific], dim=-1)))
        return self.third(torch.relu(self.second(y)))
