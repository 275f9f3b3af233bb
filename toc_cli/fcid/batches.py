"""Which clips make which batch. `epoch_order` shuffles blocks of clips (the chunks on disk), then the clips inside a window of
`shuffle_buffer` clips: the file is read in chunk order and one window is held. The order is a pure function of (seed, epoch): a
resumed run needs the position alone, and R ranks see what one process would.

Shapes: N clips, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.data import Split


def epoch_order(clips: int, block: int, shuffle_buffer: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (clips,) of one epoch: blocks shuffled, then clips shuffled inside windows of whole blocks.

    A window holds `shuffle_buffer` clips or a little more; with `shuffle_buffer >= clips` this is a uniform
    permutation.
    """
    rng = np.random.default_rng((seed, epoch))
    blocks = rng.permutation(-(-clips // block))
    per_window = max(1, -(-shuffle_buffer // block))
    windows = []
    for start in range(0, len(blocks), per_window):
        firsts = blocks[start : start + per_window, None] * block
        rows = (firsts + np.arange(block)).reshape(-1)
        windows.append(rng.permutation(rows[rows < clips]))
    return np.concatenate(windows)


@dataclass(frozen=True)
class BatchPlan:
    """Which clips each step of an epoch reads on one rank: a contiguous share of each global batch of world *
    batch_size clips."""

    clips: int
    block: int
    batch_size: int  # clips per rank
    shuffle_buffer: int
    seed: int
    drop_last: bool
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.global_batch < 2:
            raise UsageError("A batch of one clip has no negatives to compare with.", "Use --batch-size 2 or more.")
        if self.steps_per_epoch == 0:
            raise InputError(
                f"The training split has {self.clips} clips, fewer than one batch of {self.global_batch}.",
                f"Use --batch-size {self.clips // self.world} or less." if self.clips >= max(2, self.world) else "",
            )

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Full batches, and one smaller unless it is dropped; one clip, or fewer clips than ranks, can't be a batch."""
        full, rest = divmod(self.clips, self.global_batch)
        return full + (0 if self.drop_last or rest < max(2, self.world) else 1)

    def epoch(self, epoch: int, start: int = 0) -> list[NDArray[np.int64]]:
        """This rank's rows for the steps `start`... of an epoch."""
        order = epoch_order(self.clips, self.block, self.shuffle_buffer, self.seed, epoch)
        steps = range(start * self.global_batch, self.steps_per_epoch * self.global_batch, self.global_batch)
        return [np.array_split(order[at : at + self.global_batch], self.world)[self.rank] for at in steps]


def load_batches(split: Split, rows: list[NDArray[np.int64]], workers: int = 0) -> Iterator[Batch]:
    """The batches `rows` of a split in order, read ahead by `workers` processes (0: read here)."""
    if workers == 0:
        for part in rows:
            yield split.read(part)
        return
    dataset = _RowsDataset(split, rows)
    # batch k goes to worker k mod `workers`; the loader gives them back in order, so the count changes nothing but
    # speed
    loader = DataLoader(dataset, batch_size=None, shuffle=False, num_workers=workers, prefetch_factor=2)
    try:
        yield from loader
    except InputError:
        raise
    except RuntimeError as error:
        raise InputError(
            f"A worker process that reads {split.path.name} failed: {error}", "Try --workers 0."
        ) from error


class _RowsDataset(torch.utils.data.Dataset[Batch]):
    """Batch number -> `Batch`, for the loader's worker processes."""

    def __init__(self, split: Split, rows: list[NDArray[np.int64]]) -> None:
        self.split = split
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.split.read(self.rows[index])
