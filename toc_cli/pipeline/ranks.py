"""The rows of a stream over the processes of `torchrun`: each sums its own blocks, all end with the sums in stream order."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from toc_cli.io.peers import Peers, announced

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among `world`."""

    rank: int = 0
    world: int = 1
    peers: Peers | None = None
    """Who is asked where one of them is gone; None where this process did not join them itself."""

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
        with nullcontext() if self.peers is None else self.peers.watched():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def concatenate(self, values: Iterable[Value]) -> list[Value]:
        """The lists of every process, joined in rank order."""
        return [value for part in self.gather(list(values)) for value in part]


def from_environment() -> Ranks:
    """The processes that torchrun announces, joined over gloo; a single one without. TocError where one does not come."""
    rank, world = announced()
    if world == 1:
        return Ranks()
    import torch.distributed as dist

    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    peers = Peers(rank, world)
    peers.join("gloo")
    return Ranks(rank, world, peers)
