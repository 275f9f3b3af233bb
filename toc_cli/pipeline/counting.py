"""The first pass: every row of every modality is quantised once with all dimensions, and what criteria need is summed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toc_cli.io.features import Features
from toc_cli.ops.blocks import Grid, extend, grid, split
from toc_cli.ops.criteria.base import Side
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.pool import Pool
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.census import Units, paired
from toc_cli.pipeline.knowledge import groups, table
from toc_cli.pipeline.ranks import Ranks
from toc_cli.pipeline.source import Fit, form_for
from toc_cli.pipeline.study import Study


def count_usage(studies: Sequence[Study]) -> None:
    """Fill the census of every study of one run: each dataset is read and quantised once for all; the same on every rank."""
    features, ranks = studies[0].features, studies[0].ranks
    names = {fit.dataset.name: fit.dataset for study in studies for fit in study.fits}
    sums: dict[tuple[int, str], Sums] = {}
    with studies[0].progress("counting code usage", sum(dataset.rows for dataset in names.values())) as advance:
        for name, dataset in names.items():
            dataset.hold(dataset.sample(studies[0].options.eval_rows))
            readers = [
                (study, form_for(study.full, fit), zeros(study.full), Sums(study, "modalities", dataset.rows))
                for study in studies
                for fit in study.fits
                if fit.dataset.name == name
            ]
            start = own_start(dataset.rows, ranks)
            for x in own_chunks(features, name, dataset.rows, ranks):
                for study, form, counts, own in readers:
                    tokens = form.tokens(x)
                    tally(counts, tokens)
                    own.add([Rows(form, x, tokens, rows_before(study, name) + start)])
                start += len(x)
                advance(len(x))
            for study, _, counts, own in readers:
                shares = ranks.gather(counts)
                study.census.usage[name] = [np.sum(levels, axis=0) for levels in zip(*shares, strict=True)]
                sums[study.source.id, name] = own
    for study in studies:
        streams = [sums[study.source.id, fit.dataset.name].gathered() for fit in study.fits]
        for criterion in streams[0]:
            study.census.sums[criterion] = {
                at: [[state for stream in streams for state in stream[criterion][at]]] for at in streams[0][criterion]
            }
        _sum_pairs(study)


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


def own_start(rows: int, ranks: Ranks) -> int:
    """The first row of this rank's share."""
    blocks = grid(rows)
    mine = blocks.share(ranks.rank, ranks.world)
    return blocks.bounds(mine[0])[0] if mine else rows


def zeros(form: Quantiser) -> list[np.ndarray]:
    """Per level (H, K_l) counts of nothing."""
    return [np.zeros(level.codes.shape[:2], dtype=np.int64) for level in form.levels]


def tally(counts: list[np.ndarray], tokens: torch.Tensor) -> None:
    """Add tokens (N, L, H) to per-level counts (H, K_l)."""
    for level, of_level in enumerate(counts):
        for head in range(len(of_level)):
            of_level[head] += torch.bincount(tokens[:, level, head], minlength=of_level.shape[1]).numpy()


@dataclass(frozen=True)
class Rows:
    """Rows of one modality (n, W) as they meet a quantiser."""

    form: Quantiser
    x: torch.Tensor
    tokens: torch.Tensor  # (n, L, H)
    start: int
    """Place of the first among the rows of all modalities."""

    def cut(self, start: int, stop: int) -> Rows:
        """Rows start to stop of these."""
        return Rows(self.form, self.x[start:stop], self.tokens[start:stop], self.start + start)

    def inputs(self) -> list[list[torch.Tensor]]:
        """Per level and head what meets the codes: (n, D)."""
        return [list(z.split(self.form.dim, dim=1)) for z in self.form.inputs(self.x, self.tokens)]


class Sums:
    """What the study's criteria sum over one stream of rows: states per criterion, (level, head) and segment of the grid."""

    def __init__(self, study: Study, over: str, rows: int) -> None:
        self.study, self.blocks, self.index = study, grid(rows), 0
        reductions = {name: CRITERIA[name].maths.reads for name in study.criteria}
        self.reductions = {name: reads for name, reads in reductions.items() if reads and reads.over == over}
        self.states: dict[str, Units] = {
            name: {place: [] for row in groups(study.source) for group in row for place in group}
            for name in self.reductions
        }

    def add(self, sides: Sequence[Rows]) -> None:
        """Take in the next rows: whole blocks, the same rows of every modality of the stream."""
        if not self.reductions:
            return
        rows, step = len(sides[0].x), self.blocks.block
        form = sides[0].form
        numbers = len(sides) * min(rows, step) * (len(form.levels) * form.heads * form.dim + form.width)
        with Pool() as pool:
            # no more blocks at a time than are worked on, nor than a quarter of the budget holds in float64
            together = step * max(1, min(pool.threads, self.study.budget // 4 // (8 * numbers)))
            for first in range(0, rows, together):
                starts = range(first, min(rows, first + together), step)
                blocks = [[side.cut(start, start + step) for side in sides] for start in starts]
                for found in pool.map(self._of_block, blocks):
                    self._extend(found)

    def _extend(self, found: Mapping[str, Mapping[tuple[int, int], Any]]) -> None:
        """Take in the states of the next block."""
        for name, places in found.items():
            for place, state in places.items():
                merge, states = self.reductions[name].merge, self.states[name][place]
                extend(states, self.index, state, merge, self.blocks.per_segment)
        self.index += 1

    def _of_block(self, parts: Sequence[Rows]) -> dict[str, dict[tuple[int, int], Any]]:
        """The states of one block: per criterion, by (level, head)."""
        inputs = [part.inputs() for part in parts]
        return {
            name: {
                (level, head): reads.single(
                    table(self.study, (level, head), self.study.options.seed),
                    *(
                        Side(own[level][head], part.tokens[:, level, head].numpy(), part.start, self.study.census.rows)
                        for own, part in zip(inputs, parts, strict=True)
                    ),
                )
                for level, head in self.states[name]
            }
            for name, reads in self.reductions.items()
        }

    def gathered(self) -> dict[str, Units]:
        """The states of all ranks."""
        return {
            name: {place: self.study.ranks.concatenate(states) for place, states in own.items()}
            for name, own in self.states.items()
        }


def rows_before(study: Study, name: str) -> int:
    """Rows of the modalities before one."""
    names = [fit.dataset.name for fit in study.fits]
    return sum(fit.dataset.rows for fit in study.fits[: names.index(name)])


def _sum_pairs(study: Study) -> None:
    """A second pass over the modalities that are paired, all in lockstep, for criteria that read pairs. Only levels that see
    what the ones before left need a search."""
    streams = []
    full = study.full
    searched = full.residual and len(full.levels) > 1
    for fits in paired(study.fits):
        own = Sums(study, "pairs", fits[0].dataset.rows)
        if not own.reductions:
            return
        forms = [form_for(full, fit) for fit in fits]
        with study.progress("summing " + " and ".join(fit.dataset.name for fit in fits), own.blocks.rows) as advance:
            for block in own_blocks(fits, own.blocks, study.ranks):
                tokens = [form.tokens(x if searched else x[:0]) for form, x in zip(forms, block, strict=True)]
                own.add([Rows(form, x, t, 0) for form, x, t in zip(forms, block, tokens, strict=True)])
                advance(len(block[0]))
        streams.append(own.gathered())
    for criterion in streams[0] if streams else ():
        study.census.sums[criterion] = {
            at: [stream[criterion][at] for stream in streams] for at in streams[0][criterion]
        }


def own_blocks(fits: Sequence[Fit], blocks: Grid, ranks: Ranks) -> Iterator[tuple[torch.Tensor, ...]]:
    """This rank's blocks of the grid, the modalities in lockstep."""
    mine = blocks.share(ranks.rank, ranks.world)
    if not mine:
        return
    start, stop = blocks.bounds(mine[0])[0], blocks.bounds(mine[-1])[1]
    streams = [
        split((x for _, x in fit.dataset.blocks(start=start, stop=stop, share=len(fits))), blocks.block) for fit in fits
    ]
    for block in zip(*streams, strict=True):
        yield tuple(torch.from_numpy(x) for x in block)
