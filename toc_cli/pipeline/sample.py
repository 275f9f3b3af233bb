"""The second pass: a spread-out sample of blocks on which pruned forms are compared with the full codebook.

Every figure is a sum over blocks of the sample, so that neither the reader's chunks nor the number of ranks show in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from toc_cli.io.features import Features
from toc_cli.ops.metrics import Spread, Sums, block_spread, block_sums, stack
from toc_cli.ops.quantiser import Lookup, Quantiser, quantiser
from toc_cli.pipeline.source import Fit, entered, form_for, has_projection
from toc_cli.pipeline.study import Study

PIECES = 128
"""Blocks of a sample that does not take every row: enough for an interval, each long enough to read at once."""
CHUNK_ROWS = 65536

Form = Callable[[], Quantiser]
"""Builds a pruned form when it is its turn: only one is alive at a time."""


@dataclass
class Measured:
    """What the forms did on the sample of one modality."""

    rows: int = 0
    spread: Spread | None = None
    sums: dict[str, Sums] = field(default_factory=dict)
    """By form; `full` is the unpruned codebook against itself."""
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    """(n, L, H) of the forms whose tokens are wanted, in row order."""
    block_of_row: np.ndarray | None = None
    """(n,) block of each sampled row."""
    positions: np.ndarray | None = None
    """(n,) the row's place in its modality."""


def sampled_blocks(rows: int, wanted: int | None) -> list[tuple[int, int]]:
    """(start, stop) of the blocks to measure: PIECES of equal length, evenly spaced; they touch where every row is wanted."""
    wanted = rows if wanted is None else min(wanted, rows)
    pieces = min(PIECES, wanted)
    if wanted == rows:
        return [(at * rows // pieces, (at + 1) * rows // pieces) for at in range(pieces)]
    return [(at * rows // pieces, at * rows // pieces + wanted // pieces) for at in range(pieces)]


def measure_forms(
    study: Study, fit: Fit, forms: Mapping[str, Form], keep_tokens: Sequence[str], shift: np.ndarray
) -> Measured:
    """Compare every form with the full codebook on the sample of one modality; the same on every rank.

    `shift` (V,) is the point about which the spread is summed, one for all modalities (`shift_of`).
    """
    ranks = study.ranks
    blocks = sampled_blocks(fit.dataset.rows, study.options.eval_rows)
    share = range(ranks.rank * len(blocks) // ranks.world, (ranks.rank + 1) * len(blocks) // ranks.world)
    parts: list[_Part] = []
    total = sum(stop - start for start, stop in blocks) * (1 + len(forms))
    with study.progress(f"comparing on {fit.dataset.name}", total) as advance:
        for x, bounds in _chunks(study.features, fit, [blocks[at] for at in share]):
            parts.append(_compare(study.full, fit, x, bounds, forms, keep_tokens, shift, advance))
    joined = ranks.concatenate(parts)
    measured = Measured(rows=sum(stop - start for start, stop in blocks))
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


def _chunks(
    features: Features, fit: Fit, blocks: Sequence[tuple[int, int]]
) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]]]]:
    """Blocks read together up to CHUNK_ROWS: the rows (n, W), and each block's place among them."""
    held: list[np.ndarray] = []
    bounds: list[tuple[int, int]] = []
    for start, stop in blocks:
        held += [x for _, x in features.blocks(fit.dataset.name, start=start, stop=stop)]
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
    start, stop = sampled_blocks(fit.dataset.rows, study.options.eval_rows)[0]
    x = np.concatenate([x for _, x in study.features.blocks(fit.dataset.name, start=start, stop=stop)])
    target = form_for(study.full, fit).target(torch.from_numpy(x))
    return np.zeros(1) if target is None else target.numpy().mean(axis=0)


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
