"""The second pass: a spread-out sample of blocks on which pruned forms are compared with the full codebook.

Every figure is a sum over blocks of the sample, so that neither the reader's chunks nor the number of ranks show in it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from toc_cli.ops.blocks import MOST_ROWS
from toc_cli.ops.metrics import Spread, Sums, block_spread, block_sums, merged, stack
from toc_cli.ops.quantiser import Lookup, Quantiser, quantiser
from toc_cli.pipeline.source import Fit, entered, form_for
from toc_cli.pipeline.study import Study

CHUNK_ROWS = 65536
"""Rows that a form meets at once, fewer where they take more than CHUNK_BYTES or a quarter of the budget."""
CHUNK_BYTES = 1 << 27
PIECE_NUMBERS = 1 << 19
"""Numbers of a piece of a block: 4 MiB in float64."""
PROOF = 4
"""One sampled unit of every so many in a row is kept from choices and proves them: more rows to choose on choose better, and
evenly spread parts differ less."""
SHIFT_ROWS = 1024
"""Rows whose mean stands for that of the features."""

Form = Callable[[], Quantiser]
"""Builds a pruned form when it is its turn: only one is alive at a time."""


@dataclass
class Measured:
    """What the forms did on the sample of one modality."""

    rows: int = 0
    unit: str = "rows"
    """What its units are: clips, utterances, files, datasets, or plain rows."""
    units: int = 0
    """How many of them were sampled; of plain rows, the blocks."""
    strata: tuple[tuple[str, int], ...] = ()
    """What is resampled alike (paired modalities have one name), and its blocks."""
    spread: Spread | None = None
    sums: dict[str, Sums] = field(default_factory=dict)
    """By form; `full` is the unpruned codebook against itself."""
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    """(n, L, H) of the forms whose tokens are wanted, in row order."""
    block_of_row: np.ndarray | None = None
    """(n,) block of each sampled row."""
    positions: np.ndarray | None = None
    """(n,) the row's place in its modality."""


class Sample:
    """The sampled rows of one modality: read, projected and quantised with all dimensions once, then met by any number of forms.

    Of what several passes need, `hold` bytes are held between them; the rest is read, or searched, again.
    """

    def __init__(self, study: Study, fit: Fit, shift: np.ndarray, hold: int = 0, part: int | None = None) -> None:
        """`shift` (V,) is the point about which the spread is summed, one for all modalities (`shift_of`); `part` as of `share_of`."""
        self.study, self.fit, self.shift = study, fit, shift
        self.whole = fit.dataset.sample(study.options.eval_rows)
        self.blocks = self.whole if part is None else share_of(self.whole, part, study.options.seed)
        full, ranks = form_for(study.source.came, fit), study.ranks
        self._enters = full.enters and not full.level_in
        share = range(ranks.rank * len(self.blocks) // ranks.world, (ranks.rank + 1) * len(self.blocks) // ranks.world)
        width = max(full.width, full.heads * full.dim)
        self._pieces = [piece for at in share for piece in pieces(*self.blocks[at], width)]
        tokens = len(full.levels) * full.heads
        row_bytes = width * (8 + fit.dataset.dtype.itemsize) + 32 * tokens
        self._chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes, study.budget // 4 // row_bytes))
        mine = sum(stop - start for start, stop in self._pieces)
        self._hold_tokens = mine * tokens * 4 <= hold
        self._truths: list[_Truth] = []

    @property
    def rows(self) -> int:
        """Rows of the sample, on all ranks."""
        return sum(stop - start for start, stop in self.blocks)

    def side(self, form: Quantiser) -> Quantiser:
        """A form as the rows of `chunks` meet it."""
        return entered(form) if self._enters else form_for(form, self.fit)

    def chunks(self) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]], _Truth]]:
        """This rank's rows (n, W) a chunk at a time, each piece's place among them, and what the full codebook makes of them."""
        full = self.side(self.study.source.came)
        truths = []
        for at, (x, bounds) in enumerate(self._read()):
            truth = self._truths[at] if self._truths else self._truth(full, x, bounds)
            if self._hold_tokens:
                truths.append(truth)
            yield x, bounds, truth
        self._truths = truths

    def _truth(self, full: Quantiser, x: torch.Tensor, bounds: Sequence[tuple[int, int]]) -> _Truth:
        found, target, starts = lookups(full, x, bounds), target_of(full, x, bounds), firsts(bounds)
        spread = None if target is None else block_spread(target, self.shift, starts)
        most = max(level.codes.shape[1] for level in full.levels)
        tokens = found.tokens.to(torch.int16 if most <= 2**15 else torch.int32)
        return _Truth(tokens, spread, block_sums(full, found, found.tokens, target, starts))

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        """Pieces read together."""
        group: list[tuple[int, int]] = []
        for piece in self._pieces:
            group.append(piece)
            if sum(stop - start for start, stop in group) >= self._chunk_rows:
                yield group
                group = []
        if group:
            yield group

    def _read(self) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]]]]:
        """The rows of each group, and its pieces as places among them."""
        full = form_for(self.study.source.came, self.fit)
        runs = self.fit.dataset.ranges([run for group in self._groups() for run in joined(group)])
        for group in self._groups():
            ends = np.cumsum([stop - start for start, stop in group]).tolist()
            bounds = list(zip([0, *ends[:-1]], ends, strict=True))
            parts: list[np.ndarray] = []
            while sum(map(len, parts)) < ends[-1]:
                parts.append(next(runs)[1])
            x = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
            if self._enters:
                # Projected piece by piece: its rounding must not follow the number of rows read together.
                x = torch.cat([full.enter(x[start:stop]) for start, stop in bounds])
            yield x, bounds


def give_back() -> None:
    """Hand freed memory back to the system: the C library keeps it, and what several large forms leave adds up."""
    with suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class _Truth:
    """What the full codebook makes of a chunk: tokens (n, L, H) and sums per piece."""

    tokens: torch.Tensor
    spread: Spread | None
    sums: Sums


def share_of(blocks: list[tuple[int, int]], part: int, seed: int) -> list[tuple[int, int]]:
    """Part 0 (what choices are made on) or 1 (one block of every PROOF in a row) of the blocks of a sample, whole ones, drawn by the
    seed and alike for as many blocks: paired modalities are split alike. A lone block is in both."""
    draw = np.random.default_rng(seed)
    proof = [
        at
        for at in np.arange(0, len(blocks), PROOF) + draw.integers(0, PROOF, -(-len(blocks) // PROOF))
        if at < len(blocks)
    ]
    proof = proof or [int(draw.integers(0, len(blocks)))]
    chosen = np.setdiff1d(np.arange(len(blocks)), proof)
    return [blocks[at] for at in (proof if part or not len(chosen) else chosen)]


def pieces(start: int, stop: int, width: int) -> list[tuple[int, int]]:
    """A block of rows cut into pieces that are computed at once: of at most PIECE_NUMBERS numbers in rows of `width`, by size alone."""
    step = max(1, min(MOST_ROWS, PIECE_NUMBERS // width))
    return [(at, min(stop, at + step)) for at in range(start, stop, step)]


def joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges of rows, those that touch made one."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def firsts(bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """First rows of ranges, as an array."""
    return np.array([start for start, _ in bounds])


def measure_forms(sample: Sample, forms: Mapping[str, Form], keep: Collection[str]) -> Measured:
    """Compare every form with the codebook as it came on the sample of one modality; the same on every rank.

    Of the forms named in `keep`, and of `full`, tokens and near ties are wanted as well; near ties of others are NaN.
    """
    parts: list[_Part] = []
    with sample.study.progress(f"comparing on {sample.fit.dataset.name}", sample.rows * (1 + len(forms))) as advance:
        for x, bounds, truth in sample.chunks():
            parts.append(_compare(sample, x, bounds, truth, forms, keep, advance))
    give_back()
    gathered = sample.study.ranks.concatenate(parts)
    stream = sample.fit.dataset
    paired = next(fit.dataset for fit in sample.study.fits if fit.dataset.pairs_with(stream))
    measured = Measured(
        rows=sample.rows,
        unit=stream.unit,
        units=stream.units_in(sample.blocks),
        strata=((paired.name, len(sample.blocks)),),
    )
    came = sample.study.source.came
    width = max(came.width, came.heads * came.dim)
    counts = [len(pieces(start, stop, width)) for start, stop in sample.blocks]
    edges = np.cumsum([0, *counts[:-1]])
    spreads = [part.spread for part in gathered if part.spread is not None]
    measured.spread = merged(stack(spreads), edges) if spreads else None
    for name in ("full", *forms):
        measured.sums[name] = merged(stack([part.sums[name] for part in gathered]), edges)
    for name in keep:
        measured.tokens[name] = torch.cat([part.tokens[name] for part in gathered])
    measured.block_of_row = np.repeat(np.arange(len(sample.blocks)), [stop - start for start, stop in sample.blocks])
    measured.positions = np.concatenate([np.arange(start, stop) for start, stop in sample.blocks])
    return measured


@dataclass
class _Part:
    spread: Spread | None
    sums: dict[str, Sums]
    tokens: dict[str, torch.Tensor]


def shift_of(study: Study) -> np.ndarray:
    """A point (V,) near the features' mean, from the first block of the first modality's sample."""
    fit = study.fits[0]
    target = form_for(study.full, fit).target(sampled_rows(study, SHIFT_ROWS))
    return np.zeros(1) if target is None else target.numpy().mean(axis=0)


def sampled_rows(study: Study, count: int) -> torch.Tensor:
    """The first `count` rows (n, W) of the first modality's sample; all of it, where it has no more."""
    stream = study.fits[0].dataset
    held: list[np.ndarray] = []
    for _, x in stream.ranges(stream.sample(study.options.eval_rows)):
        held.append(x)
        if sum(map(len, held)) >= count:
            break
    return torch.from_numpy(np.concatenate(held)[:count])


def _compare(
    sample: Sample,
    x: torch.Tensor,
    bounds: Sequence[tuple[int, int]],
    truth: _Truth,
    forms: Mapping[str, Form],
    keep: Collection[str],
    advance: Callable[[int], None],
) -> _Part:
    source = sample.study.source
    target, starts, same = target_of(sample.side(source.came), x, bounds), firsts(bounds), source.same(truth.tokens)
    part = _Part(truth.spread, {"full": truth.sums}, {"full": truth.tokens} if "full" in keep else {})
    advance(len(x))
    for name, build in forms.items():
        form = sample.side(build())
        found = lookups(form, x, bounds, near_ties=name in keep)
        part.sums[name] = block_sums(form, found, same, target, starts)
        if name in keep:
            part.tokens[name] = found.tokens.to(truth.tokens.dtype)
        advance(len(x))
        if not form.levels[0].held:
            del form, build
            give_back()
    return part


def target_of(full: Quantiser, x: torch.Tensor, bounds: Sequence[tuple[int, int]]) -> torch.Tensor | None:
    """What the vectors approximate, (n, V): the rows themselves, or computed piece by piece; None for logits."""
    if full.logits is not None:
        return None
    if not (full.between_unit or full.enters):
        return x
    found = [full.target(x[start:stop]) for start, stop in bounds]
    return torch.cat([target for target in found if target is not None])


def lookups(form: Quantiser, x: torch.Tensor, bounds: Sequence[tuple[int, int]], near_ties: bool = True) -> Lookup:
    """Tokens of rows (n, W), and near ties where they are wanted. A product before the search is made piece by piece, so that
    its rounding does not follow the rows read together; the search itself meets all rows at once where it can."""
    first = form.levels[0]
    if form.level_in or form.logits is not None or (first.rotation is not None and len(form.levels) > 1):
        parts = [form.lookup(x[start:stop], near_ties=near_ties) for start, stop in bounds]
        return Lookup(torch.cat([part.tokens for part in parts]), torch.cat([part.near_tie for part in parts]))
    if first.rotation is None:
        return form.lookup(x, near_ties=near_ties)
    turned = [torch.cat([first.compared(x[start:stop], head) for start, stop in bounds]) for head in range(form.heads)]
    return quantiser([first.codes], metric=form.metric).lookup(torch.cat(turned, dim=1), near_ties=near_ties)
