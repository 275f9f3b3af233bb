"""Reconstruction: the mean square error over all entries that exist."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from toc_cli.fcid.comm import Comm


def reconstruction(decoded: Tensor, target: Tensor, weight: Tensor | None, comm: Comm) -> Tensor:
    """mse over all entries of (B, ...) or (B, T, ...); `weight` has the leading axes: (B,) or (B, T)."""
    axes = 1 if weight is None else weight.dim()
    rows = F.mse_loss(decoded, target, reduction="none").flatten(axes).mean(-1)
    return comm.mean(rows.flatten(), None if weight is None else weight.flatten())
