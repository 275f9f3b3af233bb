"""`--levels N`: the first levels of residual codebooks, and what each level is worth.

Legend: L levels, N the first ones that stay, H heads, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import levels as family
from toc_cli.io.families.base import MODES, Mode
from toc_cli.io.names import printable
from toc_cli.ops.metrics import measure, stack
from toc_cli.pipeline.curve import number
from toc_cli.pipeline.forms import refuse_forms
from toc_cli.pipeline.sample import Measured, Sample, measure_forms, shift_of
from toc_cli.pipeline.source import Source
from toc_cli.pipeline.study import Study


def refuse_levels(sources: Sequence[Source], count: int) -> None:
    """UsageError where no residual codebook has more levels than are asked for."""
    chains = [source for source in sources if source.full.residual]
    if not chains:
        raise UsageError(
            "--levels cuts residual codebooks, and none here is one.", "Leave it out; --codebook KEY takes a table."
        )
    most = max(len(source.full.levels) for source in chains)
    if count > most:
        raise UsageError(f"--levels {count}: {printable(chains[0].book.shown, 120)} has {most}.", f"Use 1 to {most}.")


def refuse_level_forms(
    ckpt: Checkpoint, sources: Sequence[Source], count: int, modes: Sequence[Mode], *, lean: bool
) -> None:
    """UsageError for a form that cannot hold fewer levels."""
    for source in (source for source in sources if source.full.residual):
        reasons = {mode: family.refusal(ckpt, source.book, count, mode, lean=lean) for mode in MODES}
        refuse_forms(source.book, reasons, modes, "--levels")


def cut_levels(ckpt: Checkpoint, study: Study) -> Study:
    """The study of the first levels alone, with what every level was worth. Reads the sample once."""
    source, count = study.source, study.options.levels
    if count is None or not source.full.residual or count >= len(source.full.levels):
        return study
    full = replace(
        source.full,
        levels=source.full.levels[:count],
        level_in=source.full.level_in[:count],
        level_out=source.full.level_out[:count],
        residual=count > 1,
    )
    cut = replace(
        source,
        book=family.first(source.book, count),
        parts=family.first_parts(source.parts, count),
        full=full,
        whole=source,
        about_levels=worth(ckpt, study, _measured(study), count),
    )
    return replace(study, source=cut)


def level_warning(source: Source) -> dict[str, Any]:
    """The record's warning: what the levels that went were worth."""
    about = source.about_levels
    assert about is not None
    left, whole = about["curve"][about["after"] - 1], about["curve"][-1]
    snr = [one["snr_db"] for one in (left, whole)]
    told = "" if None in snr else f": signal to noise {snr[0]:.2f} dB, {snr[1]:.2f} dB with all"
    bits = f"{left['bits_per_row']:.4g} of {whole['bits_per_row']:.4g} bits a row"
    if whole["bits_per_second"] is not None:
        bits += f", {left['bits_per_second']:,.0f} of {whole['bits_per_second']:,.0f} bits a second"
    label = printable(source.book.shown, 120)
    text = f"{label}: {about['after']} of {about['before']} levels stay{told}; {bits}."
    return {"id": "levels", "codebook": source.id, "text": text}


def _measured(study: Study) -> list[Measured]:
    """What all dimensions do on the sample of each modality."""
    shift = shift_of(study)
    return [measure_forms(Sample(study, fit, shift), {}, ()) for fit in study.fits]


def worth(ckpt: Checkpoint, study: Study, runs: Sequence[Measured], kept: int) -> dict[str, Any]:
    """The record's `levels_cut`: distortion, signal to noise, tokens and bits after 1 … L levels with all dimensions, on the sample,
    of which `kept` levels stay."""
    source = study.source
    sums = stack([run.sums["full"] for run in runs])
    spreads = [run.spread for run in runs if run.spread is not None]
    spread = stack(spreads) if len(spreads) == len(runs) else None
    rate = family.frame_rate(ckpt.config or {})
    curve, bits = [], 0.0
    for at, level in enumerate(source.full.levels):
        bits += source.full.heads * math.log2(level.codes.shape[1])
        found = measure(sums, spread=spread, level=at)
        curve.append({
            "levels": at + 1,
            "distortion": number(found["distortion"][0]),
            "snr_db": number(found["snr_db"][0]) if "snr_db" in found else None,
            "tokens_per_row": source.full.heads * (at + 1),
            "bits_per_row": bits,
            "bits_per_second": None if rate is None else bits * rate,
        })  # fmt: skip
    return {
        "before": len(source.full.levels),
        "after": kept,
        "evaluated": sum(run.rows for run in runs),
        "curve": curve,
    }
