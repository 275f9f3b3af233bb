"""What travels together from the first pass to the record: one codebook, its features, and how the run was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from toc_cli.io.features import Features
from toc_cli.ops import work
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.census import Census
from toc_cli.pipeline.options import Options, Progress
from toc_cli.pipeline.ranks import Ranks
from toc_cli.pipeline.source import Fit, Source


@dataclass(frozen=True)
class Study:
    """One codebook of a run. `census` is empty until the first pass (`counting.count_usage`) has filled it."""

    source: Source
    census: Census
    features: Features
    options: Options
    ranks: Ranks
    progress: Progress
    criteria: tuple[str, ...] = ()
    """Whom the run may rank by: what the first pass sums for."""
    rankings: dict[Any, Any] = field(default_factory=dict, compare=False)
    """What `choice.rank_dimensions` found, by all that it follows from."""

    @property
    def full(self) -> Quantiser:
        """The unpruned quantiser, with the projection in."""
        return self.source.full

    @property
    def fits(self) -> list[Fit]:
        """The datasets that meet the codebook."""
        return self.census.fits

    @property
    def device(self) -> torch.device:
        """Where the lookups run."""
        return self.full.levels[0].codes.device

    @property
    def budget(self) -> int:
        """Bytes for what grows with the features (`--max-memory`)."""
        return self.options.max_memory

    @property
    def affords_rotation(self) -> bool:
        """Whether a rotation that nobody asked for costs no more than the run (`toc_cli.ops.work`)."""
        full, rows = self.full, self.census.rows
        shapes = [(level.codes.shape[1], full.dim) for level in full.levels]
        fits = all(work.affordable(work.rotation(k, d), work.search(k, d, rows)) for k, d in shapes)
        return fits and full.dim <= work.WIDEST_ROTATION

    def asking(self, **changes: Any) -> Study:
        """The same with other options."""
        return replace(self, options=replace(self.options, **changes))
