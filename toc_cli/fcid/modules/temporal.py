"""The temporal block: post-norm transformer layers over the seconds of a clip.

Legend: B clips, T seconds, C features in, D width, h heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from toc_cli.fcid.draws import Drop


def no_drop(x: Tensor) -> Tensor:
    """Dropout that is off."""
    return x


class TemporalBlock(nn.Module):
    """(B, T, C) -> (B, T, D): an affine map, then transformer layers; no positions, no final norm."""

    def __init__(self, width_in: int, width: int, heads: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.affine = nn.Linear(width_in, width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, feedforward) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, drop: Drop = no_drop) -> Tensor:
        """`mask` (B, T) bool hides padded seconds from the others; `drop` is called at the four places of a layer."""
        y = self.affine(x)
        for layer in self.layers:
            y = layer(y, mask, drop)
        return y


class TransformerLayer(nn.Module):
    """y = LN(y + drop(MHA(y))); y = LN(y + drop(W2 drop(relu(W1 y))))."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        # The defaults of nn.MultiheadAttention.
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, y: Tensor, mask: Tensor | None, drop: Drop) -> Tensor:
        y = self.norm_attention(y + drop(self.output(self._attention(y, mask, drop))))
        return self.norm_feedforward(y + drop(self.contract(drop(F.relu(self.expand(y))))))

    def _attention(self, y: Tensor, mask: Tensor | None, drop: Drop) -> Tensor:
        query, key, value = (
            self.projection(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, h, T, D/h)
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5  # (B, h, T, T)
        if mask is not None:
            # A finite floor: a clip without a single second attends evenly instead of yielding NaN.
            scores = scores.masked_fill(~mask[:, None, None], -1e9 if scores.dtype.itemsize > 2 else -1e4)
        return (drop(scores.softmax(-1)) @ value).transpose(1, 2).flatten(2)
