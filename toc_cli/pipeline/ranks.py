"""The rows of a stream over the processes of `torchrun`: each sums its own blocks, all end with the sums in stream order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among `world`."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Rank 0 writes; the bytes are those of one process."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """The values of every process, in rank order."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Value | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def concatenate(self, values: Iterable[Value]) -> list[Value]:
        """The lists of every process, joined in rank order."""
        return [value for part in self.gather(list(values)) for value in part]


def from_environment() -> Ranks:
    """The process group that torchrun announces, joined over gloo; a single process without one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), world)
