"""The first pass: every row of every modality is quantised once with all dimensions, and what the criterion needs is summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from toc_cli.io.features import Features
from toc_cli.ops import moments
from toc_cli.ops.blocks import Grid, extend, grid, split
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.moments import CrossMoments, Moments, PairMoments
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.options import Options, Progress
from toc_cli.pipeline.ranks import Ranks
from toc_cli.pipeline.source import Fit, Source, form_for

State = TypeVar("State")
Units: TypeAlias = dict[tuple[int, int], list[list[State]]]
"""Per (level, head), per stream of rows: the states of its segments, in order. Segments are what stability resamples."""


@dataclass
class Census:
    """What the features say of one codebook. Arrays per level; H heads, K codes, D dimensions."""

    fits: list[Fit]
    usage: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Per modality and level (H, K_l): how often all dimensions choose each code."""
    features: Units[Moments] | None = None
    """Moments of what meets the codes, for `features`; one list of segments over all modalities."""
    pairs: Units[PairMoments] | None = None
    """For `xmodal`; a list of segments per pair of modalities."""
    crosses: Units[CrossMoments] | None = None
    """For `xcov`; a list of segments per pair of modalities."""

    @property
    def rows(self) -> int:
        """Rows over all modalities."""
        return sum(fit.dataset.rows for fit in self.fits)

    @property
    def pooled(self) -> list[np.ndarray]:
        """Usage (H, K_l) per level over all modalities."""
        return [np.sum(levels, axis=0) for levels in zip(*self.usage.values(), strict=True)]


def pairs_of(fits: Sequence[Fit]) -> list[tuple[Fit, Fit]]:
    """Modalities that are paired row by row: those of equal length, each with each."""
    return [(a, b) for at, a in enumerate(fits) for b in fits[at + 1 :] if a.dataset.lead_shape == b.dataset.lead_shape]


def count_usage(
    sources: Sequence[Source],
    fits: Sequence[list[Fit]],
    features: Features,
    options: Options,
    ranks: Ranks,
    progress: Progress,
) -> list[Census]:
    """Quantise every row once, reading each dataset once for all codebooks; the same on every rank."""
    found = [Census(list(chosen)) for chosen in fits]
    names = {fit.dataset.name: fit.dataset for chosen in fits for fit in chosen}
    with progress("counting code usage", sum(dataset.rows for dataset in names.values())) as advance:
        for name, dataset in names.items():
            readers = [
                (at, form_for(sources[at].full, fit))
                for at, chosen in enumerate(fits)
                for fit in chosen
                if fit.dataset.name == name
            ]
            counts = {at: zeros(sources[at].full) for at, _ in readers}
            for x in own_chunks(features, name, dataset.rows, ranks):
                for at, form in readers:
                    tally(counts[at], form.tokens(x))
                advance(len(x))
            for at, _ in readers:
                shares = ranks.gather(counts[at])
                found[at].usage[name] = [np.sum(levels, axis=0) for levels in zip(*shares, strict=True)]
    for source, census in zip(sources, found, strict=True):
        sum_moments(source, census, features, options.criterion, ranks, progress)
    return found


def own_chunks(features: Features, name: str, rows: int, ranks: Ranks) -> Iterator[torch.Tensor]:
    """This rank's rows of a modality, in order, (n, W) at a time; whole blocks of the grid, so that no rounding of a projection
    follows the reader."""
    blocks = grid(rows)
    mine = blocks.share(ranks.rank, ranks.world)
    if not mine:
        return
    start, stop = blocks.bounds(mine[0])[0], blocks.bounds(mine[-1])[1]
    for _, x in features.blocks(name, start=start, stop=stop, rows_multiple=blocks.block):
        yield torch.from_numpy(x)


def zeros(form: Quantiser) -> list[np.ndarray]:
    """Per level (H, K_l) counts of nothing."""
    return [np.zeros(level.codes.shape[:2], dtype=np.int64) for level in form.levels]


def tally(counts: list[np.ndarray], tokens: torch.Tensor) -> None:
    """Add tokens (N, L, H) to per-level counts (H, K_l)."""
    for level, table in enumerate(counts):
        for head in range(len(table)):
            table[head] += torch.bincount(tokens[:, level, head], minlength=table.shape[1]).numpy()


def sum_moments(
    source: Source, census: Census, features: Features, criterion: str, ranks: Ranks, progress: Progress
) -> None:
    """The moments that a criterion needs beyond usage, segment by segment in stream order."""
    if CRITERIA[criterion] == "features":
        streams = [
            segments(features, [fit], source, moments.moments, moments.merge, ranks, progress) for fit in census.fits
        ]
        census.features = {at: [[state for stream in streams for state in stream[at]]] for at in streams[0]}
    elif CRITERIA[criterion] == "pairs" and (pairs := pairs_of(census.fits)):
        if criterion == "xmodal":
            streams = [
                segments(features, pair, source, moments.pair_moments, moments.merge_pairs, ranks, progress)
                for pair in pairs
            ]
            census.pairs = {at: [stream[at] for stream in streams] for at in streams[0]}
        else:
            streams = [
                segments(features, pair, source, moments.cross_moments, moments.merge_cross, ranks, progress)
                for pair in pairs
            ]
            census.crosses = {at: [stream[at] for stream in streams] for at in streams[0]}


def segments(
    features: Features,
    fits: Sequence[Fit],
    source: Source,
    single: Callable[..., Any],
    merge: Callable[[Any, Any], Any],
    ranks: Ranks,
    progress: Progress,
) -> dict[tuple[int, int], list[Any]]:
    """Per (level, head) the states of `single(block of each modality)`, merged within the segments of the grid."""
    blocks = grid(fits[0].dataset.rows)
    places = [(level, head) for level in range(len(source.full.levels)) for head in range(source.full.heads)]
    states: dict[tuple[int, int], list[Any]] = {at: [] for at in places}
    forms = [form_for(source.full, fit) for fit in fits]
    with progress("summing " + " and ".join(fit.dataset.name for fit in fits), blocks.rows) as advance:
        for index, block in enumerate(own_blocks(features, fits, blocks, ranks)):
            sides = [level_inputs(form, x) for form, x in zip(forms, block, strict=True)]
            for level, head in places:
                state = single(*(side[level][head] for side in sides))
                extend(states[level, head], index, state, merge, blocks.per_segment)
            advance(len(block[0]))
    return {at: ranks.concatenate(states[at]) for at in places}


def own_blocks(
    features: Features, fits: Sequence[Fit], blocks: Grid, ranks: Ranks
) -> Iterator[tuple[torch.Tensor, ...]]:
    """This rank's blocks of the grid, the modalities in lockstep."""
    mine = blocks.share(ranks.rank, ranks.world)
    if not mine:
        return
    start, stop = blocks.bounds(mine[0])[0], blocks.bounds(mine[-1])[1]
    streams = [
        split((x for _, x in features.blocks(fit.dataset.name, start=start, stop=stop)), blocks.block) for fit in fits
    ]
    for block in zip(*streams, strict=True):
        yield tuple(torch.from_numpy(x) for x in block)


def level_inputs(form: Quantiser, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Per level and head what meets the codes: (n, D)."""
    tokens = form.tokens(x)
    return [list(z.split(form.dim, dim=1)) for z in form.inputs(x, tokens)]
