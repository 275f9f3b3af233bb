"""How a checkpoint and its features are read: what the file says, what the user says, what recorded tokens prove.

What the tool would have to ask (how tables stack, the side of a projection, the channel axis) tokens answer, or figures where
they are plain; what it read and the tokens contradict is refused, with the reading that they name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import Undecided, detect
from toc_cli.io.features import Features, Recorded, Stream
from toc_cli.io.names import printable
from toc_cli.pipeline.reading.before import advice
from toc_cli.pipeline.reading.columns import places
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.reading.search import agreeing
from toc_cli.pipeline.reading.shares import PROVEN, Shares
from toc_cli.pipeline.reading.trial import Books, Trial, attempt, sample, signal_to_noise
from toc_cli.pipeline.source import (
    Fit,
    Source,
    fits,
    form_for,
    has_projection,
    on_outer_side,
    outer_only,
    sources,
    widths,
)

PROOF_ROWS = 16384
FIGURE_ROWS = 2048
CLEAR_DB, NOTHING_DB = 3.0, 0.0
"""One reading explains the features from CLEAR_DB on, another does not below NOTHING_DB: then the first is taken."""


@dataclass(frozen=True)
class Proof:
    """How far the recorded tokens of one modality are those of a codebook."""

    rows: int
    shares: Shares

    def as_record(self) -> dict[str, object]:
        """JSON-able: rows compared, the lowest share, and the share of each level and head."""
        each = [[None if math.isnan(share) else share for share in level] for level in self.shares.each.tolist()]
        return {"rows": self.rows, "least": self.shares.least, "shares": each}


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
    met, sure = _fitting(found, features, said, books, warnings)
    proofs: list[dict[str, Proof]] = [{} for _ in found]
    for name, recorded in features.tokens.items():
        stream = features.datasets[name]
        if any(fit.dataset.name == name for chosen in met for fit in chosen):
            _prove(found, met, stream, recorded, said, books, proofs, warnings)
    for at, source in enumerate(found):
        found[at] = _with_evidence(source, proofs[at], sure[at])
        warnings += [(at, text) for text in _unshown(proofs[at])]
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
            raise _ambiguous(said, [trial.said for trial in right]) from None
        if not trials:
            raise
        for name, recorded in features.tokens.items():
            others, tried = agreeing(books, said.changed(stack="residual"), features.datasets[name], recorded)
            if others:
                raise InputError(asked.what, _named(said, others)) from None
            raise InputError(
                f"{asked.what} The recorded tokens are those of no stacking: "
                + ", ".join(f"{trial.said.get('stack')} gives {_percent(trial.overall)}" for trial in trials)
                + ".",
                f"None of {tried} other readings gives them: are they of this checkpoint?",
            ) from None
        raise


# Which datasets, on which side, along which axis


def _fitting(
    found: Sequence[Source], features: Features, said: Said, books: Books, warnings: list[tuple[int, str]]
) -> tuple[list[list[Fit]], list[bool]]:
    """The datasets of each codebook, and whether its reading left nothing to figures."""
    met, sure = [], []
    for at, source in enumerate(found):
        chosen, certain = [], True
        for fit in _fits(source, features, said, books):
            name = fit.dataset.name
            taken, note = _settled(source, at, found, fit, features.tokens.get(name), said)
            features.datasets[name] = taken.dataset
            chosen.append(taken)
            if note:
                certain = False
                warnings.append((at, note))
        met.append(chosen)
        sure.append(certain)
    return met, sure


def _fits(source: Source, features: Features, said: Said, books: Books) -> list[Fit]:
    """As `source.fits`; where no width fits, the reading that the tokens name."""
    try:
        return fits(source, features, said.space)
    except InputError as error:
        for name, recorded in features.tokens.items():
            stream = features.datasets[name]
            if not stream.problem:
                others, _ = agreeing(books, said, stream, recorded)
                if others:
                    raise InputError(error.what, _named(said, others)) from None
        raise InputError(error.what, advice(books.ckpt, source, features) or error.hint) from None


def _settled(
    source: Source, at: int, found: Sequence[Source], fit: Fit, recorded: Recorded | None, said: Said
) -> tuple[Fit, str]:
    """The dataset along its channel axis, on its side of the projection; with what was taken by the figures alone."""
    stream = fit.dataset
    side = _side(source, stream, said)
    both = has_projection(source.full) and not outer_only(source.full) and _is_square(source, stream.width)
    sides = [side] if side != "auto" or not both else ["encoder", "codebook"]
    ways = [said.changed(space=one, channel_axis=axis) for one, axis in product(sides, _axes(source, stream, said))]
    if len(ways) == 1:
        return Fit(stream, on_outer_side(source.full, stream.width, ways[0].space)), ""
    if recorded is not None:
        trials = [_tried(way, at, found, stream, recorded) for way in ways]
        right = [trial for trial in trials if trial is not None and trial.agrees]
        if len(right) > 1:
            raise _ambiguous(said, [trial.said for trial in right])
        if right:
            return right[0].fits[at], ""
        best = max((trial for trial in trials if trial is not None), key=lambda trial: trial.overall, default=None)
        return (best.fits[at] if best else fit), ""
    return _by_figures(source, stream, ways)


def _side(source: Source, stream: Stream, said: Said) -> str:
    """The side that is said, by a flag or by the capture. InputError where they contradict each other or the widths."""
    stamped = stream.stamps.side
    if not stamped or not has_projection(source.full):
        return said.space
    if said.space not in ("auto", stamped):
        raise InputError(
            f"{stream.shown} was captured on the {stamped} side of the projection, and --space says {said.space}.",
            "Leave out --space.",
        )
    fitting = source.full.width if stamped == "encoder" else source.full.heads * source.full.dim
    if stream.width != fitting or (stamped == "codebook" and outer_only(source.full)):
        raise InputError(
            f"{stream.shown} was captured on the {stamped} side of the projection, where {printable(source.book.shown)} reads "
            f"{'nothing' if outer_only(source.full) else f'rows of {fitting}'}.",
            "Capture what reaches this quantiser, or leave this dataset out with --modality.",
        )
    return stamped


def _is_square(source: Source, width: int) -> bool:
    return width == source.full.width == source.full.heads * source.full.dim


def _axes(source: Source, stream: Stream, said: Said) -> list[int]:
    """The axes along which the channels may lie: the one said or stamped, else every one of a fitting length but the first."""
    if said.channel_axis is not None or stream.stamps.channel_axis is not None or len(stream.parts) > 1:
        return [stream.axis]
    fitting = widths(source.full)
    others = [axis for axis, length in enumerate(stream.shape) if axis not in (0, stream.axis) and length in fitting]
    return [stream.axis, *others]


def _tried(way: Said, at: int, found: Sequence[Source], stream: Stream, recorded: Recorded) -> Trial | None:
    turned = _turned(stream, way.channel_axis)
    if not recorded.fits(turned):
        return None
    return attempt(way, found, sample(turned, recorded, PROOF_ROWS), at)


def _turned(stream: Stream, axis: int | None) -> Stream:
    return stream if axis in (None, stream.axis) else stream.along(axis)


def _by_figures(source: Source, stream: Stream, ways: Sequence[Said]) -> tuple[Fit, str]:
    """The one way in which the codebook explains the features, where the others explain nothing."""
    made = []
    for way in ways:
        turned = _turned(stream, way.channel_axis)
        fit = Fit(turned, on_outer_side(source.full, turned.width, way.space))
        made.append((signal_to_noise(form_for(source.full, fit), sample(turned, None, FIGURE_ROWS).x), way, fit))
    made.sort(key=lambda each: -each[0])
    (best, way, fit), *rest = made
    told = ", ".join(f"{_flag(way, made)} {db:.1f} dB" for db, way, _ in made)
    shown = printable(source.book.shown, 120)
    if best >= CLEAR_DB and all(db < NOTHING_DB for db, _, _ in rest):
        taken = _flag(way, made)
        return (
            fit,
            f"{taken} is assumed for {printable(stream.name, 60)}: it alone explains the features (signal to noise: {told}).",
        )
    raise InputError(
        f"{stream.shown} can be read in {len(made)} ways by {shown}, and no figure decides (signal to noise: {told}).",
        f"Add {' or '.join(_flag(way, made) for _, way, _ in made)}, or record the model's own tokens (toc_cli.capture).",
    )


def _flag(way: Said, made: Iterable[tuple[float, Said, Fit]]) -> str:
    """The flags in which a way differs from some other."""
    ways = [other for _, other, _ in made]
    names = [name for name in ("space", "channel_axis") if len({one.get(name) for one in ways}) > 1]
    return " ".join(f"--{name.replace('_', '-')} {way.get(name)}" for name in names)


# Proof


def _prove(
    found: Sequence[Source], met: Sequence[list[Fit]], stream: Stream, recorded: Recorded, said: Said, books: Books,
    proofs: list[dict[str, Proof]], warnings: list[tuple[int, str]],
) -> None:  # fmt: skip
    """Hold the recorded tokens of one modality against the codebooks that read it. InputError where they are not theirs."""
    fitting = {at: fit for at, chosen in enumerate(met) for fit in chosen if fit.dataset.name == stream.name}
    stream = next(iter(fitting.values())).dataset
    shapes = [(len(found[at].full.levels), found[at].full.heads) for at in fitting]
    trailing = recorded.trailing(stream)
    ways = places(trailing, shapes)
    if not ways and _prove_among_all(found, list(fitting), stream, recorded, said, books, proofs):
        return
    if not ways:
        _refuse_count(found, fitting, stream, recorded, trailing, said, books)
    _check_range(found, list(fitting), stream, recorded)
    drawn = sample(stream, recorded, PROOF_ROWS)
    sides = {fit.projected for fit in fitting.values()}
    space = said.space if len(sides) > 1 else "encoder" if sides == {True} else "codebook"
    trial = attempt(
        said.changed(space=space) if any(has_projection(found[at].full) for at in fitting) else said, found, drawn
    )
    assert trial is not None
    if not trial.agrees:
        raise _contradiction(found, trial, stream, recorded, said, books)
    for at, shares in trial.shares.items():
        proofs[at][stream.name] = Proof(len(drawn.x), shares)


def _prove_among_all(
    found: Sequence[Source], fitting: Sequence[int], stream: Stream, recorded: Recorded, said: Said, books: Books,
    proofs: list[dict[str, Proof]],
) -> bool:  # fmt: skip
    """Whether the tokens are those of all codebooks of the file, of which some were picked (`--codebook`): those are then proven."""
    everything = books.of(said.changed(codebook=None, layout=None)) or []
    drawn = sample(stream, recorded, PROOF_ROWS)
    trial = attempt(said, everything, drawn) if said.get("codebook") else None
    if trial is None or not trial.agrees:
        return False
    shares = {everything[at].book.keys: each for at, each in trial.shares.items()}
    for at in fitting:
        if found[at].book.keys in shares:
            proofs[at][stream.name] = Proof(len(drawn.x), shares[found[at].book.keys])
    return True


def _refuse_count(
    found: Sequence[Source], fitting: Iterable[int], stream: Stream, recorded: Recorded, trailing: tuple[int, ...], said: Said,
    books: Books,
) -> None:  # fmt: skip
    others, _ = agreeing(books, said, stream, recorded)
    wanted = " or ".join(
        f"{len(found[at].full.levels)} levels of {found[at].full.heads} heads ({printable(found[at].book.shown, 60)})"
        for at in fitting
    )
    raise InputError(
        f"{stream.shown} has {math.prod(trailing)} recorded tokens for each row; the checkpoint has {wanted}.",
        _named(said, others)
        if others
        else "Use the checkpoint that gave them, or --codebook KEY; -1 stands where a level has none.",
    )


def _check_range(found: Sequence[Source], fitting: Sequence[int], stream: Stream, recorded: Recorded) -> None:
    """InputError that names the first row with a token that no codebook of the file has, or below -1."""
    most = max(level.codes.shape[1] for at in fitting for level in found[at].full.levels)
    for first, tokens in recorded.ranges(stream, [(0, stream.rows)]):
        flat = tokens.reshape(len(tokens), -1)
        bad = np.flatnonzero(((flat >= most) | (flat < -1)).any(1))
        if len(bad):
            token = next(value for value in flat[bad[0]] if value >= most or value < -1)
            raise InputError(
                f"{printable(stream.path)}: {printable(recorded.name)} holds {token} in row {first + bad[0]:,}; the codebook has "
                f"tokens 0 to {most - 1}.",
                "Use the checkpoint that gave them; -1 stands where a level has none.",
            )


def _contradiction(
    found: Sequence[Source], trial: Trial, stream: Stream, recorded: Recorded, said: Said, books: Books
) -> InputError:
    what = f"{stream.shown}: {_percent(trial.overall)} of the recorded tokens are those of this reading{_where(found, trial)}."
    others, tried = agreeing(books, said, stream, recorded)
    if others:
        return InputError(what, _named(said, others))
    return InputError(
        what,
        f"None of {tried} other readings gives them: are the features, their tokens and the checkpoint of one model? "
        "Without recorded tokens this reading is taken as it is.",
    )


def _where(found: Sequence[Source], trial: Trial) -> str:
    """The shares level by level and head by head, and where a residual chain breaks."""
    parts = []
    for at, shares in trial.shares.items():
        levels, heads = shares.equal.shape
        label = f"{printable(found[at].book.shown, 60)}: " if len(trial.shares) > 1 else ""
        for level, row in enumerate(shares.each):
            for head, share in enumerate(row):
                names = [f"level {level}"] * (levels > 1) + [f"head {head}"] * (heads > 1)
                parts += [f"{label}{' '.join(names)} {_percent(share)}"] if names else []
        right = [bool(np.nanmin(np.where(np.isnan(row), 1.0, row)) >= PROVEN) for row in shares.each]
        if found[at].full.residual and any(right) and not all(right):
            parts.append(f"the chain breaks at level {right.index(False)}")
    shown = [*parts[:12], f"and {len(parts) - 12} more"] if len(parts) > 13 else parts
    return f" ({', '.join(shown)})" if shown else ""


def _percent(share: float) -> str:
    return "no tokens" if math.isnan(share) else f"{math.floor(share * 1000) / 10:.1f} %"


def _named(said: Said, others: Sequence[Trial]) -> str:
    if len(others) > 1:
        return _ambiguous(said, [other.said for other in others]).what
    return f"They are those of another reading ({_percent(others[0].overall)}): add {others[0].said.flags(said)}"


def _ambiguous(said: Said, ways: Sequence[Said]) -> InputError:
    shown = " or ".join(way.flags(said) for way in ways[:4])
    return InputError(
        f"{len(ways)} readings give the recorded tokens equally: {shown}.",
        "Add the flags of the one that the model uses.",
    )


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


def _unshown(proofs: dict[str, Proof]) -> list[str]:
    """Levels of which no token was recorded."""
    found = []
    for name, proof in proofs.items():
        bare = [level for level, row in enumerate(proof.shares.compared) if not row.all()]
        if bare:
            found.append(
                f"levels {bare[0]} to {bare[-1]} have no recorded tokens of {printable(name, 60)}: the levels before are proven."
            )
    return found
