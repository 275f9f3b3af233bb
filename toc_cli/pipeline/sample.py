"""The second pass: a spread-out sample of blocks on which pruned forms are compared with the full codebook.

Every figure is a sum over blocks of the sample, so that neither the reader's chunks nor the number of ranks show in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from toc_cli.io.features import Stream
from toc_cli.ops.metrics import Spread, Sums, block_spread, block_sums, stack
from toc_cli.ops.quantiser import Lookup, Quantiser, quantiser
from toc_cli.pipeline.source import Fit, entered, form_for, has_projection
from toc_cli.pipeline.study import Study

CHUNK_ROWS = 65536
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


def measure_forms(
    study: Study, fit: Fit, forms: Mapping[str, Form], keep_tokens: Sequence[str], shift: np.ndarray
) -> Measured:
    """Compare every form with the full codebook on the sample of one modality; the same on every rank.

    `shift` (V,) is the point about which the spread is summed, one for all modalities (`shift_of`).
    """
    ranks = study.ranks
    blocks = fit.dataset.sample(study.options.eval_rows)
    share = range(ranks.rank * len(blocks) // ranks.world, (ranks.rank + 1) * len(blocks) // ranks.world)
    parts: list[_Part] = []
    total = sum(stop - start for start, stop in blocks) * (1 + len(forms))
    with study.progress(f"comparing on {fit.dataset.name}", total) as advance:
        for x, bounds in _chunks(fit.dataset, [blocks[at] for at in share]):
            parts.append(_compare(study.full, fit, x, bounds, forms, keep_tokens, shift, advance))
    joined = ranks.concatenate(parts)
    paired = next(other.dataset for other in study.fits if other.dataset.pairs_with(fit.dataset))
    measured = Measured(
        rows=sum(stop - start for start, stop in blocks),
        unit=fit.dataset.unit,
        units=fit.dataset.units_in(blocks),
        strata=((paired.name, len(blocks)),),
    )
    spreads = [part.spread for part in joined if part.spread is not None]
    measured.spread = stack(spreads) if spreads else None
    for name in ("full", *forms):
        measured.sums[name] = stack([part.sums[name] for part in joined])
    for name in keep_tokens:
        measured.tokens[name] = torch.cat([part.tokens[name] for part in joined])
    measured.block_of_row = np.repeat(np.arange(len(blocks)), [stop - start for start, stop in blocks])
    measured.positions = np.concatenate([np.arange(start, stop) for start, stop in blocks])
    return measured


@dataclass
class _Part:
    spread: Spread | None
    sums: dict[str, Sums]
    tokens: dict[str, torch.Tensor]


def _chunks(stream: Stream, blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]]]]:
    """Blocks read together up to CHUNK_ROWS: the rows (n, W), and each block's place among them."""
    held: list[np.ndarray] = []
    bounds: list[tuple[int, int]] = []
    pieces = stream.ranges(blocks)
    for start, stop in blocks:
        missing = stop - start
        while missing:
            held.append(next(pieces)[1])
            missing -= len(held[-1])
        at = bounds[-1][1] if bounds else 0
        bounds.append((at, at + stop - start))
        if bounds[-1][1] >= CHUNK_ROWS:
            yield torch.from_numpy(np.concatenate(held)), bounds
            held, bounds = [], []
    if held:
        yield torch.from_numpy(np.concatenate(held)), bounds


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
    whole: Quantiser,
    fit: Fit,
    x: torch.Tensor,
    bounds: Sequence[tuple[int, int]],
    forms: Mapping[str, Form],
    keep_tokens: Sequence[str],
    shift: np.ndarray,
    advance: Callable[[int], None],
) -> _Part:
    full = form_for(whole, fit)
    before = (has_projection(full) or full.unit_in) and not full.level_in
    if before:
        # Projected once, block by block: its rounding must not follow the number of rows read together.
        x = torch.cat([full.enter(x[start:stop]) for start, stop in bounds])
        full = entered(full)
    truth = lookups(full, x, bounds)
    starts = np.array([start for start, _ in bounds])
    target = full.target(x)
    spread = None if target is None else block_spread(target, shift, starts)
    part = _Part(spread, {"full": block_sums(full, truth, truth.tokens, target, starts)}, {})
    if "full" in keep_tokens:
        part.tokens["full"] = truth.tokens
    advance(len(x))
    for name, build in forms.items():
        form = entered(build()) if before else form_for(build(), fit)
        found = lookups(form, x, bounds)
        part.sums[name] = block_sums(form, found, truth.tokens, target, starts)
        if name in keep_tokens:
            part.tokens[name] = found.tokens
        advance(len(x))
    return part


def lookups(form: Quantiser, x: torch.Tensor, bounds: Sequence[tuple[int, int]]) -> Lookup:
    """Tokens and near ties of rows (n, W). A product before the search is made block by block, so that its rounding does not
    follow the rows read together; the search itself meets all rows at once where it can."""
    first = form.levels[0]
    if form.level_in or form.logits is not None or (first.rotation is not None and len(form.levels) > 1):
        parts = [form.lookup(x[start:stop]) for start, stop in bounds]
        return Lookup(torch.cat([part.tokens for part in parts]), torch.cat([part.near_tie for part in parts]))
    if first.rotation is None:
        return form.lookup(x)
    turned = [torch.cat([first.compared(x[start:stop], head) for start, stop in bounds]) for head in range(form.heads)]
    return quantiser([first.codes], metric=form.metric).lookup(torch.cat(turned, dim=1))
