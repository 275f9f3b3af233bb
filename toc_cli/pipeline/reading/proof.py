"""What recorded tokens say of a reading: how far they are its own, and the sentence where they are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.features import Recorded, Stream
from toc_cli.io.names import printable
from toc_cli.pipeline.reading.columns import places
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.reading.search import agreeing
from toc_cli.pipeline.reading.shares import PROVEN, Shares
from toc_cli.pipeline.reading.trial import Books, Trial, attempt, sample
from toc_cli.pipeline.source import Fit, Source, has_projection

PROOF_ROWS = 16384


@dataclass(frozen=True)
class Proof:
    """How far the recorded tokens of one modality are those of a codebook."""

    rows: int
    shares: Shares

    def as_record(self) -> dict[str, object]:
        """JSON-able: rows compared, the lowest share, and the share of each level and head."""
        each = [[None if math.isnan(share) else share for share in level] for level in self.shares.each.tolist()]
        return {"rows": self.rows, "least": self.shares.least, "shares": each}


def prove(
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
        named(said, others)
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
    what = f"{stream.shown}: {percent(trial.overall)} of the recorded tokens are those of this reading{_where(found, trial)}."
    others, tried = agreeing(books, said, stream, recorded)
    if others:
        return InputError(what, named(said, others))
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
                parts += [f"{label}{' '.join(names)} {percent(share)}"] if names else []
        right = [bool(np.nanmin(np.where(np.isnan(row), 1.0, row)) >= PROVEN) for row in shares.each]
        if found[at].full.residual and any(right) and not all(right):
            parts.append(f"the chain breaks at level {right.index(False)}")
    shown = [*parts[:12], f"and {len(parts) - 12} more"] if len(parts) > 13 else parts
    return f" ({', '.join(shown)})" if shown else ""


def percent(share: float) -> str:
    return "no tokens" if math.isnan(share) else f"{math.floor(share * 1000) / 10:.1f} %"


def named(said: Said, others: Sequence[Trial]) -> str:
    if len(others) > 1:
        return ambiguous(said, [other.said for other in others]).what
    return f"They are those of another reading ({percent(others[0].overall)}): add {others[0].said.flags(said)}"


def ambiguous(said: Said, ways: Sequence[Said]) -> InputError:
    shown = " or ".join(way.flags(said) for way in ways[:4])
    return InputError(
        f"{len(ways)} readings give the recorded tokens equally: {shown}.",
        "Add the flags of the one that the model uses.",
    )


def unshown(proofs: dict[str, Proof]) -> list[str]:
    """Levels of which no token was recorded."""
    found = []
    for name, proof in proofs.items():
        bare = [level for level, row in enumerate(proof.shares.compared) if not row.all()]
        if bare:
            found.append(
                f"levels {bare[0]} to {bare[-1]} have no recorded tokens of {printable(name, 60)}: the levels before are proven."
            )
    return found
