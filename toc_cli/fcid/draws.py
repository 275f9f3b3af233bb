"""All randomness of a step, drawn over the whole batch so that it does not depend on the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from toc_cli.fcid.comm import Comm

Drop = Callable[[Tensor], Tensor]


class Draws:
    """What one step draws. Every rank draws the same numbers; rows then take their own share."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device

    @classmethod
    def of_step(cls, seed: int, step: int, device: torch.device | str = "cpu") -> Draws:
        """The draws of step `step` (0, 1, ...) of a run with `seed`: nothing else needs saving to continue a run."""
        generator = torch.Generator(device)
        generator.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % (1 << 63))
        return cls(generator)

    def permutation(self, rows: int, name: str) -> Tensor:
        """(rows,) int64, uniform; `name` says for which term."""
        return torch.randperm(rows, generator=self.generator, device=self.device)

    def anchor(self, low: int, high: int) -> int:
        """One integer in low..high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator, device=self.device))

    def integers(self, count: int, high: int) -> Tensor:
        """(count,) int64 in 0..high-1."""
        return torch.randint(0, max(high, 1), (count,), generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Values in [-1, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1

    def dropout(self, p: float, comm: Comm) -> Drop:
        """A function that zeroes entries of (b, ...) with probability `p` and scales the rest; axis 0 counts clips."""
        if p == 0:
            return lambda x: x

        threshold = round(p * (1 << 16)) - (1 << 15)  # of a random int16
        scale = 1 / (1 - (threshold + (1 << 15)) / (1 << 16))

        def drop(x: Tensor) -> Tensor:
            shape = (comm.rows, *x.shape[1:])
            words = torch.empty((math.prod(shape) + 3) // 4, dtype=torch.int64, device=self.device)
            words.random_(-(1 << 63), None, generator=self.generator)
            keep = words.view(torch.int16)[: math.prod(shape)].view(shape)[comm.offset : comm.offset + len(x)]
            exact = torch.promote_types(x.dtype, torch.float32)  # of every int16, which bfloat16 is not
            return x * keep.to(x.device, exact).ge_(threshold).mul_(scale).to(x.dtype)

        return drop
