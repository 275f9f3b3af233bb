"""Several processes as one batch: what mixes rows goes through here.

One rule makes R ranks with batch B equal to one process with batch R*B. Every rank computes the loss of the whole
batch: parameters act on the rank's own rows only, `gather` then brings all rows to every rank and hands back the
gradient of its own rows, `sum` adds what was reduced over own rows and passes the gradient through. The gradients of
the parameters are then shares of the whole gradient, and `sum_gradients` adds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Comm:
    """One process: every operation is the identity."""

    rank = 0
    world = 1
    offset = 0
    """Where this rank's rows start in the whole batch."""

    def __init__(self, rows: int = 0) -> None:
        self.rows = rows
        """Rows of the whole batch."""

    def bind(self, rows: int) -> Comm:
        """The communicator of a batch of which this rank holds `rows` clips."""
        return Comm(rows)

    def gather(self, rows: Tensor) -> Tensor:
        """(b, ...) of this rank -> (B, ...) of all ranks, in rank order, with gradients for the own rows."""
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks; the gradient passes through unchanged."""
        return value

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over ranks."""

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean over all rows of all ranks of `values` (N,), weighted by `weight` (N,); 0 where nothing weighs."""
        if weight is None:
            total, count = values.sum(), values.new_tensor(float(values.numel()))
        else:
            weight = weight.to(values.dtype)
            total, count = (values * weight).sum(), weight.sum()
        both = self.sum(torch.stack([total, count]))
        return both[0] / both[1].clamp(min=1e-12)


class ProcessGroup(Comm):
    """The ranks of `torch.distributed`; rank r holds a contiguous share of the batch, r-th in order."""

    def __init__(self, counts: list[int] | None = None) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.counts = counts or [0] * self.world
        self.offset = sum(self.counts[: self.rank])
        super().__init__(sum(self.counts))

    def bind(self, rows: int) -> ProcessGroup:
        counts = torch.zeros(self.world, dtype=torch.int64, device=_device())
        counts[self.rank] = rows
        dist.all_reduce(counts)
        return ProcessGroup(counts.tolist())

    def gather(self, rows: Tensor) -> Tensor:
        per_clip, rest = divmod(len(rows), self.counts[self.rank])
        assert rest == 0, "rows must be a multiple of the rank's clips"
        gathered: Tensor = _Gather.apply(rows, [count * per_clip for count in self.counts], self.rank)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        summed: Tensor = _Sum.apply(value)
        return summed

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


def current_comm() -> Comm:
    """The communicator of this process: `ProcessGroup` under torchrun, else the identity."""
    return ProcessGroup() if dist.is_available() and dist.is_initialized() else Comm()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        start = sum(counts[:rank])
        ctx.own = slice(start, start + counts[rank])
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
