"""Where autocast stops."""

from __future__ import annotations

import torch


def exact(device: torch.device) -> torch.autocast:
    """Full precision inside an autocast region: codebook, distances, contrastive scores, and LSTMs (not every CPU has
    them in bf16)."""
    return torch.autocast(device.type, enabled=False)
