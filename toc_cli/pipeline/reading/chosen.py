"""The one codebook of a file that quantises: of a checkpoint with all its dimensions, or a pruned one as it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toc_cli.errors import UsageError
from toc_cli.io.artefact import read_artefact
from toc_cli.io.checkpoint import Checkpoint, open_checkpoint
from toc_cli.io.families import detect
from toc_cli.io.features import Features, Stream
from toc_cli.io.tokens import codebook_hash
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.artefacts import quantiser_of
from toc_cli.pipeline.reading.decide import decide
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.source import Fit, has_projection, on_outer_side, sources, widths


@dataclass(frozen=True)
class Chosen:
    """A codebook, and the datasets that meet it."""

    checkpoint: Checkpoint
    form: Quantiser
    hash: str
    """`codebook_hash` of the file: what its tokens are stamped with."""
    fits: Sequence[Fit]
    evidence: str | None
    """None for a pruned codebook, which is read as it was written."""
    warnings: list[str]


@dataclass(frozen=True)
class Book:
    """One codebook of an artefact (its pruned form) or of a checkpoint (with all its dimensions)."""

    form: Quantiser
    hash: str
    """`codebook_hash` of the file."""
    name: str


def read_book(path: Path, id: int, reading: Mapping[str, Any] | None = None) -> Book:
    """The codebook `id` of an artefact or a checkpoint, read as `reading` says; no features are asked."""
    ckpt = open_checkpoint(path)
    said = {name: value for name, value in (reading or {}).items() if value}
    name = path.name or str(path)
    if ckpt.container == "toc artefact":
        _refuse_said(said)
        return Book(quantiser_of(read_artefact(path), id), codebook_hash(ckpt), name)
    found = sources(ckpt, detect(ckpt, **said))
    _check_id(id, len(found))
    return Book(found[id].full, codebook_hash(ckpt), name)


def choose_codebook(path: Path, features: Features, id: int | None, said: Said) -> Chosen:
    """The codebook of a file for these features, its reading held against the tokens that came with them; the first without `id`.

    A warning says what of the file is left: other codebooks, and levels that are no fixed tables.
    """
    ckpt = open_checkpoint(path)
    at = id or 0
    if ckpt.container == "toc artefact":
        _refuse_said(said.checkpoint)
        artefact = read_artefact(path)
        form = quantiser_of(artefact, at)
        fitting = [
            Fit(dataset, on_outer_side(form, dataset.width, _side(dataset, form, said.space)))
            for dataset in features.select(widths(form))
        ]
        return Chosen(ckpt, form, codebook_hash(ckpt), fitting, None, _left(len(artefact.codebooks), id))
    reading = decide(ckpt, features, said)
    _check_id(at, len(reading.books))
    source = reading.books[at]
    warnings = [*source.book.warnings, *(told["text"] for told in reading.warnings if told["codebook"] == at)]
    if len(source.full.levels) < source.book.levels:
        warnings.append(
            f"Only the first {len(source.full.levels)} of {source.book.levels} levels are fixed tables: their tokens are written, "
            "no others."
        )
    return Chosen(
        ckpt,
        source.full,
        codebook_hash(ckpt),
        reading.fits[at],
        source.book.evidence,
        [*warnings, *_left(len(reading.books), id)],
    )


def _refuse_said(said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        if value:
            raise UsageError(
                f"A pruned codebook is read as it was written: --{name} is for checkpoints.", "Leave it out."
            )


def _check_id(id: int, count: int) -> None:
    if not 0 <= id < count:
        raise UsageError(f"--id {id}: the checkpoint holds codebooks 0 to {count - 1}.", "toc inspect lists them.")


def _left(count: int, id: int | None) -> list[str]:
    """What to say where a file holds several codebooks and none was picked."""
    if count < 2 or id is not None:
        return []
    return [
        f"The file holds {count} codebooks; these are the tokens of codebook 0 alone. --id N takes another (toc inspect lists them)."
    ]


def _side(dataset: Stream, form: Quantiser, space: str) -> str:
    """The side that is said by a flag, else by the capture."""
    return dataset.stamps.side or space if space == "auto" and has_projection(form) else space
