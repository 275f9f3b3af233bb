"""How a checkpoint and its features are read: what the file says, what the user says, what recorded tokens prove.

What the tool would have to ask (how tables stack, the side of a projection, the channel axis) tokens answer, or figures where
they are plain; what it read and the tokens contradict is refused, with the reading that they name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import Undecided, detect
from toc_cli.io.features import Features
from toc_cli.io.names import printable
from toc_cli.pipeline.reading.proof import PROOF_ROWS, Proof, ambiguous, named, percent, prove, unshown
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.reading.search import agreeing
from toc_cli.pipeline.reading.sides import datasets_of
from toc_cli.pipeline.reading.trial import Books, Trial, attempt, sample
from toc_cli.pipeline.source import Fit, Source, sources


@dataclass(frozen=True)
class Reading:
    """The codebooks as they are read, and the datasets that meet each."""

    said: Said
    """With what was found out."""
    books: list[Source]
    fits: list[list[Fit]]
    proofs: list[dict[str, Proof]]
    """Per codebook, by modality."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """Of the record: what a user should know of the reading."""

    @property
    def evidence(self) -> list[dict[str, Any]]:
        """The record's word on each codebook: how its reading is known, and what the tokens showed."""
        return [
            {
                "evidence": source.book.evidence,
                "proof": {name: proof.as_record() for name, proof in proofs.items()} or None,
            }
            for source, proofs in zip(self.books, self.proofs, strict=True)
        ]


def books_said(ckpt: Checkpoint, said: Said) -> list[Source] | None:
    """The codebooks by the file and the flags alone; None where only tokens could tell how its tables stack."""
    try:
        return sources(ckpt, detect(ckpt, **said.checkpoint))
    except Undecided:
        return None


def decide(ckpt: Checkpoint, features: Features, said: Said, known: list[Source] | None = None) -> Reading:
    """Read a checkpoint for these features; `known` is what `books_said` gave, where that was asked before.

    Raises:
        InputError: tokens that are not those of the reading, or are no tokens of these rows; a choice that nothing decides.
        UsageError: an option that cannot be meant.
    """
    books = Books(ckpt)
    known = known or books_said(ckpt, said)
    said, found = (said, list(known)) if known else _stacked(ckpt, features, said, books)
    warnings: list[tuple[int, str]] = []
    met, sure = datasets_of(found, features, said, books, warnings)
    proofs: list[dict[str, Proof]] = [{} for _ in found]
    for name, recorded in features.tokens.items():
        stream = features.datasets[name]
        if any(fit.dataset.name == name for chosen in met for fit in chosen):
            prove(found, met, stream, recorded, said, books, proofs, warnings)
    for at, source in enumerate(found):
        found[at] = _with_evidence(source, proofs[at], sure[at])
        warnings += [(at, text) for text in unshown(proofs[at])]
    told = [
        {"id": "reading", "codebook": at, "text": f"{printable(found[at].book.shown, 120)}: {text}"}
        for at, text in warnings
    ]
    return Reading(said, found, met, proofs, told)


# How tables stack


def _stacked(ckpt: Checkpoint, features: Features, said: Said, books: Books) -> tuple[Said, list[Source]]:
    """The codebooks, with the one stacking of their tables that the tokens prove where the file does not say it."""
    try:
        return said, sources(ckpt, detect(ckpt, **said.checkpoint))
    except Undecided as asked:
        trials: list[Trial] = []
        for how in ("residual", "product", "independent"):
            other = said.changed(stack=how)
            for name, recorded in features.tokens.items():
                trial = attempt(other, books.of(other) or [], sample(features.datasets[name], recorded, PROOF_ROWS))
                trials += [trial] if trial else []
        right = [trial for trial in trials if trial.agrees]
        if len(right) == 1:
            return right[0].said, books.of(right[0].said) or []
        if len(right) > 1:
            raise ambiguous(said, [trial.said for trial in right]) from None
        if not trials:
            raise
        for name, recorded in features.tokens.items():
            others, tried = agreeing(books, said.changed(stack="residual"), features.datasets[name], recorded)
            if others:
                raise InputError(asked.what, named(said, others)) from None
            raise InputError(
                f"{asked.what} The recorded tokens are those of no stacking: "
                + ", ".join(f"{trial.said.get('stack')} gives {percent(trial.overall)}" for trial in trials)
                + ".",
                f"None of {tried} other readings gives them: are they of this checkpoint?",
            ) from None
        raise


# Evidence


def _with_evidence(source: Source, proofs: dict[str, Proof], sure: bool) -> Source:
    book = source.book
    if proofs and all(proof.shares.proven for proof in proofs.values()):
        doubts = ("is assumed", "--metric", "not used by this reading")
        notes = tuple(note for note in book.warnings if not any(doubt in note for doubt in doubts))
        return replace(source, book=replace(book, evidence="proven", warnings=notes))
    if not sure:
        return replace(
            source, book=replace(book, evidence="assumed", granted=book.granted or book.evidence != "assumed")
        )
    return source
