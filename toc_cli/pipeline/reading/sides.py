"""Which datasets meet a codebook, on which side of its projection, along which axis of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from toc_cli.errors import InputError
from toc_cli.io.features import Features, Recorded, Stream
from toc_cli.io.names import printable
from toc_cli.pipeline.reading.before import advice
from toc_cli.pipeline.reading.proof import PROOF_ROWS, ambiguous, named
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.reading.search import agreeing
from toc_cli.pipeline.reading.trial import Books, Trial, attempt, sample, signal_to_noise
from toc_cli.pipeline.source import Fit, Source, fits, form_for, has_projection, on_outer_side, outer_only, widths

FIGURE_ROWS = 2048
CLEAR_DB, NOTHING_DB = 3.0, 0.0
"""One reading explains the features from CLEAR_DB on, another does not below NOTHING_DB: then the first is taken."""


def datasets_of(
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
                    raise InputError(error.what, named(said, others)) from None
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
            raise ambiguous(said, [trial.said for trial in right])
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
