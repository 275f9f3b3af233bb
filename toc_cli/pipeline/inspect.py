"""What a checkpoint holds: its codebooks and what can be done with them. Headers alone, without torch, unless numbers are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import detect
from toc_cli.io.families.base import Codebook
from toc_cli.io.families.offered import supported

if TYPE_CHECKING:
    from toc_cli.pipeline.reading.decide import Reading


def inspect_checkpoint(
    path: Path,
    *,
    numbers: bool = False,
    features: Sequence[str | Path] = (),
    space: str = "auto",
    channel_axis: int | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Every codebook of a checkpoint, JSON-able. `numbers` also reads the tensors: effective rank and mean code cosine.

    `reading`: what the user says of it, the arguments of `detect`. With `features` the reading is held against them: the side of
    the projection, and the tokens that came with them.
    """
    ckpt = open_checkpoint(path)
    known: list[dict[str, Any]] = []
    if features:
        from toc_cli.io.features import open_features
        from toc_cli.pipeline.reading.decide import decide
        from toc_cli.pipeline.reading.said import Said

        decided = decide(ckpt, open_features(features, channel_axis=channel_axis), Said(reading, space, channel_axis))
        books = [source.book for source in decided.books]
        known = [
            {
                **evidence,
                "features": [fit.dataset.name for fit in met],
                "warnings": [*source.book.warnings, *_told(decided, at)],
            }
            for at, (source, met, evidence) in enumerate(
                zip(decided.books, decided.fits, decided.evidence, strict=True)
            )
        ]
    else:
        books = detect(ckpt, **reading)
    found = [_describe(ckpt, id, book) for id, book in enumerate(books)]
    for entry, more in zip(found, known, strict=False):
        entry |= more
    if numbers:
        for entry, book in zip(found, books, strict=True):
            entry |= _numbers(ckpt, book)
    return {"path": str(path), "container": ckpt.container, "tensors": len(ckpt.infos), "codebooks": found}


def _told(decided: Reading, at: int) -> list[str]:
    return [told["text"] for told in decided.warnings if told["codebook"] == at]


def _describe(ckpt: Checkpoint, id: int, book: Codebook) -> dict[str, Any]:
    around = [site.key for site in book.sites if site.role in ("producer", "consumer")]
    return {
        "id": id,
        "key": book.label,
        "keys": [list(level) for level in book.keys],
        "family": book.family,
        "evidence": book.evidence,
        "levels": book.levels,
        "heads": book.heads,
        "num_codes": list(book.num_codes),
        "dim": book.dim,
        "dtype": book.dtype,
        "metric": book.metric,
        "residual": book.residual,
        "projection": {"width": book.outer_width, "per_level": book.own_dims_per_level} if book.outer_width else None,
        "ema_twins": list(book.ema_twins),
        "neighbours": list(dict.fromkeys(around)),
        "copies": list(book.copies),
        "emit": dict(supported(ckpt, book)),
        "warnings": list(book.warnings),
    }


def _numbers(ckpt: Checkpoint, book: Codebook) -> dict[str, Any]:
    """Means over levels and heads; None where a table holds no finite spread, or a single code."""
    import numpy as np

    from toc_cli.ops.geometry import effective_rank, mean_cosine
    from toc_cli.pipeline.curve import number

    tables = [codes for table in book.parts(ckpt).tables for codes in table]
    if not all(len(codes) > 1 and np.isfinite(codes.double().numpy()).all() for codes in tables):
        return {"effective_rank": None, "mean_cosine": None}
    return {
        "effective_rank": number(np.mean([effective_rank(codes) for codes in tables])),
        "mean_cosine": number(np.mean([mean_cosine(codes) for codes in tables])),
    }
