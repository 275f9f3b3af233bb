"""The published heads on quantised seconds, for classification and localisation, and their loss.

Legend: B clips, T seconds, D kept dimensions, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClipHead(nn.Module):
    """(B, T, D) -> (B, C): W2 max_t(W1 z_t + b1) + b2."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, z: Tensor) -> Tensor:
        return self.classifier(self.linear(z).amax(1))


class SecondHead(nn.Module):
    """(B, T, D) -> (B, T, C): W2 (W1 z_t + b1) + b2."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, z: Tensor) -> Tensor:
        return self.classifier(self.linear(z))


def clip_target(labels: Tensor) -> Tensor:
    """(B, T, C + 1), background last -> (B,) int64: max over time of each second's argmax over the classes."""
    return labels[..., :-1].argmax(-1).amax(1)


def explog(logits: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """- mean_rows sum_c y_c log-softmax(logits)_c exp(-alpha_c) of (N, C); alpha (C,) is trained, and grows freely."""
    return -(labels * logits.log_softmax(-1) * torch.exp(-alpha)).sum(-1).mean()
