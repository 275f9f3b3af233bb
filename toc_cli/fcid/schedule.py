"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence


def one_cycle(share: float, warmup: float) -> float:
    """Factor at `share` of the run: a linear rise from 1/25 to 1 over the first `warmup`, then a half cosine down to
    1/250."""
    if share < warmup:
        return 0.04 + 0.96 * share / warmup
    fall = (share - warmup) / max(1e-12, 1.0 - warmup)
    return 0.004 + 0.996 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, fall)))


def steps_down(epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """Factor of the published schedule: `gamma` once more after each milestone epoch."""
    return gamma ** sum(epoch >= milestone for milestone in milestones)
