"""The first pass: every row of every modality is quantised once with all dimensions, and what the criterion needs is summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from toc_cli.io.features import Features
from toc_cli.ops import moments
from toc_cli.ops.blocks import Grid, extend, grid, split
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.census import pairs_of
from toc_cli.pipeline.ranks import Ranks
from toc_cli.pipeline.source import Fit, form_for
from toc_cli.pipeline.study import Study


def count_usage(studies: Sequence[Study]) -> None:
    """Fill the census of every study of one run: each dataset is read and quantised once for all; the same on every rank."""
    features, ranks = studies[0].features, studies[0].ranks
    names = {fit.dataset.name: fit.dataset for study in studies for fit in study.fits}
    with studies[0].progress("counting code usage", sum(dataset.rows for dataset in names.values())) as advance:
        for name, dataset in names.items():
            readers = [
                (study, form_for(study.full, fit))
                for study in studies
                for fit in study.fits
                if fit.dataset.name == name
            ]
            counts = [zeros(form) for _, form in readers]
            for x in own_chunks(features, name, dataset.rows, ranks):
                for (_, form), table in zip(readers, counts, strict=True):
                    tally(table, form.tokens(x))
                advance(len(x))
            for (study, _), table in zip(readers, counts, strict=True):
                shares = ranks.gather(table)
                study.census.usage[name] = [np.sum(levels, axis=0) for levels in zip(*shares, strict=True)]
    for study in studies:
        sum_moments(study)


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


def sum_moments(study: Study) -> None:
    """The moments that the criterion needs beyond usage, segment by segment in stream order."""
    census, criterion = study.census, study.options.criterion
    if CRITERIA[criterion] == "features":
        streams = [segments(study, [fit], moments.moments, moments.merge) for fit in census.fits]
        census.features = {at: [[state for stream in streams for state in stream[at]]] for at in streams[0]}
    elif CRITERIA[criterion] == "pairs" and (pairs := pairs_of(census.fits)):
        if criterion == "xmodal":
            streams = [segments(study, pair, moments.pair_moments, moments.merge_pairs) for pair in pairs]
            census.pairs = {at: [stream[at] for stream in streams] for at in streams[0]}
        else:
            streams = [segments(study, pair, moments.cross_moments, moments.merge_cross) for pair in pairs]
            census.crosses = {at: [stream[at] for stream in streams] for at in streams[0]}


def segments(
    study: Study, fits: Sequence[Fit], single: Callable[..., Any], merge: Callable[[Any, Any], Any]
) -> dict[tuple[int, int], list[Any]]:
    """Per (level, head) the states of `single(block of each modality)`, merged within the segments of the grid."""
    blocks = grid(fits[0].dataset.rows)
    places = [(level, head) for level in range(len(study.full.levels)) for head in range(study.full.heads)]
    states: dict[tuple[int, int], list[Any]] = {at: [] for at in places}
    forms = [form_for(study.full, fit) for fit in fits]
    with study.progress("summing " + " and ".join(fit.dataset.name for fit in fits), blocks.rows) as advance:
        for index, block in enumerate(own_blocks(study.features, fits, blocks, study.ranks)):
            sides = [level_inputs(form, x) for form, x in zip(forms, block, strict=True)]
            for level, head in places:
                state = single(*(side[level][head] for side in sides))
                extend(states[level, head], index, state, merge, blocks.per_segment)
            advance(len(block[0]))
    return {at: study.ranks.concatenate(states[at]) for at in places}


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
