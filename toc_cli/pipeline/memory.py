"""What a run would hold beside its codebooks and blocks of features, known from sizes alone: refused where --max-memory is smaller.

Legend: L levels, H heads, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

from toc_cli.errors import UsageError
from toc_cli.ops.criterion import CRITERIA
from toc_cli.pipeline.knowledge import held_bytes
from toc_cli.pipeline.study import Study

ROOM = 1 << 26
"""Bytes beyond the budget that are always there: what every run holds."""
ROW_BYTES = 64
"""Bytes of a measured row beside its tokens: its place, its block, and how usage is resampled."""
ROTATION_MATRICES = 8
"""D x D matrices in float64 that a rotation holds while it is computed."""


def refuse_what_does_not_fit(studies: Sequence[Study]) -> None:
    """UsageError, with the size that would do, where what a run holds is larger than its budget."""
    needs: dict[str, int] = {}
    for study in studies:
        for what, size in _needs(study).items():
            needs[what] = needs.get(what, 0) + size
    budget = studies[0].budget
    if sum(needs.values()) <= budget + ROOM:
        return
    largest = max(needs, key=lambda what: needs[what])
    raise UsageError(
        f"--max-memory {budget >> 20}MiB has no room for {largest}: {needs[largest] >> 20:,} MiB.",
        f"Give it at least --max-memory {-(-(sum(needs.values()) - ROOM) >> 20)}MiB{_otherwise(largest)}.",
    )


def _needs(study: Study) -> dict[str, int]:
    """Bytes by what they are for."""
    options, full = study.options, study.full
    places, square = len(full.levels) * full.heads, 8 * full.dim**2
    rows = sum(
        min(fit.dataset.rows, fit.dataset.rows if options.eval_rows is None else options.eval_rows)
        for fit in study.fits
    )
    found = {MEASURED: rows * (ROW_BYTES + 16 * places)}
    asked = options.criterion
    if asked in CRITERIA and CRITERIA[asked].rotates:
        found[f"a rotation of {full.dim} dimensions"] = square * ROTATION_MATRICES
    if asked in CRITERIA and (sums := held_bytes(study, asked)):
        found[f"what --criterion {asked} sums over the features"] = sums
    return found


MEASURED = "the rows that are measured"


def _otherwise(what: str) -> str:
    return ", or measure fewer: --eval-rows" if what == MEASURED else ", or take another --criterion"
