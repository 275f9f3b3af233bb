"""Which codebooks a checkpoint holds: `detect` asks the families in order, the most specific first.

A family is a module with `find(ckpt) -> list[Codebook]` that returns nothing for files that are not its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast, get_args

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import (
    absent,
    cmg,
    config,
    encodec,
    fairseq,
    faiss,
    generic,
    image_vq,
    kmeans,
    larp,
    layouts,
    mimi,
    norm_ema,
    projected,
    pruned,
    residual_kmeans,
    rows,
    rqvae,
    scaled,
    shapes,
    simvq,
    strangers,
    taming,
    vqp,
    wav2vec2,
    xcodec,
)
from toc_cli.io.families.base import Codebook, Metric, Stack
from toc_cli.io.families.copies import join
from toc_cli.io.families.names import is_optimizer, sections
from toc_cli.io.families.overrides import with_rows, with_table
from toc_cli.io.names import printable

__all__ = ["Undecided", "detect"]

METRICS = tuple(name for name in get_args(Metric) if name != "logits")


class Undecided(InputError):
    """Numbered tables of which the file does not say how they belong together; `detect(stack=…)` takes the answer."""

    def __init__(self, ckpt: Checkpoint, book: Codebook) -> None:
        shown = f"{printable(book.shown)} ({book.levels if book.heads == 1 else book.heads} tables of {book.dim} dimensions)"
        super().__init__(
            f"{printable(ckpt.path.name)} does not say how {shown} belong together.",
            "Add --stack residual (each quantises what the former left), product (heads side by side) or independent;"
            " --codebook KEY takes one.",
        )


class Family(Protocol):
    """A module of this package that knows one family of checkpoints."""

    def find(self, ckpt: Checkpoint) -> list[Codebook]:
        """Its codebooks in the file."""


FAMILIES = cast(
    "tuple[Family, ...]",
    (
        pruned,
        image_vq,
        mimi,
        projected,
        xcodec,
        wav2vec2,
        encodec,
        faiss,
        kmeans,
        residual_kmeans,
        larp,
        norm_ema,
        vqp,
        simvq,
        rows,
        cmg,
        taming,
        rqvae,
        fairseq,
        layouts,
    ),
)


def detect(
    ckpt: Checkpoint,
    *,
    codebook: str | Sequence[str] | None = None,
    layout: str | None = None,
    metric: str | None = None,
    stack: str | None = None,
    assume: bool = False,
    rows: str | None = None,
    table: str | None = None,
    scale: str | None = None,
) -> list[Codebook]:
    """The codebooks of a checkpoint, in the order of their families.

    Args:
        codebook: keys of tables (with or without their sections) or patterns such as `layers.*.embedding.weight`: those codebooks
            alone, detected or not. The tables of one pattern belong together.
        layout: order of the stored axes of `codebook`, such as "DK" or "(HK)D,H=2" (`generic.Layout`).
        metric: euclidean, cosine or dot, instead of what the file says.
        stack: residual, product or independent, where the file does not say how numbered tables belong together.
        assume: readings that are assumed are taken for true.
        rows: "unit" or "as-is" (`overrides.with_rows`).
        table: "raw" or "mean" (`overrides.with_table`).
        scale: key (or its end) of the scale of a quantised table; "none" takes it as stored (`scaled.opened`).

    Raises:
        InputError: there is no codebook, or none under that key, or the file does not say how its tables stack.
        UsageError: an option that cannot be meant.
    """
    chosen, how = _offered("--metric", metric, METRICS), _offered("--stack", stack, get_args(Stack))
    seen = scaled.opened(ckpt, scale)
    keys = [codebook] if isinstance(codebook, str) else list(codebook or ())
    if layout and not keys:
        keys = list(dict.fromkeys(key for one in _claimed(seen) for key in _tables(one)))
    if layout and len(keys) != 1:
        raise UsageError("--layout describes one table.", "Name it with --codebook KEY.")
    found = _named(seen, keys, layout, how is not None) if keys else _claimed(seen)
    if not found:
        raise _nothing(seen)
    found = [with_metric(book, chosen) for one in found for book in _restacked(seen, one, cast("Stack | None", how))]
    found = [with_rows(with_table(seen, one, table), rows) for one in found]
    return [_with_evidence(scaled.finished(ckpt, seen, one, scale), assume) for one in found]


def _offered(flag: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value is not None and value not in known:
        raise UsageError(f"{flag} {printable(value)} is not known.", f"It is one of {', '.join(known)}.")
    return value


def _restacked(ckpt: Checkpoint, one: Codebook, how: Stack | None) -> list[Codebook]:
    """The codebooks that numbered tables are under an answer; `Undecided` without one."""
    how = how or one.stack
    if one.restack is None or (how is not None and how == one.stack):
        return [one]
    if how is None:
        raise Undecided(ckpt, one)
    return [replace(book, root=one.root, copies=one.copies) for book in one.restack(how)]


def _with_evidence(one: Codebook, assume: bool) -> Codebook:
    """The codebook with the warning of an assumed reading, and the leave to edit its checkpoint where the user gives it."""
    if one.evidence != "assumed":
        return one
    note = f"the reading of {printable(one.shown)} as {one.metric} codes is assumed: the file does not show it"
    return replace(one, granted=assume, warnings=(*one.warnings, note))


def _claimed(ckpt: Checkpoint, wanted: Sequence[str] = ()) -> list[Codebook]:
    """Every codebook once: a table claimed by a family is not offered to the later ones; averaged copies join their original.

    A full key that is `wanted` says which of several copies is read.
    """
    found: list[Codebook] = []
    claimed: set[str] = set()
    for family in FAMILIES:
        for one in family.find(ckpt):
            if not _tables(one) & claimed:
                shapes.check(ckpt, one)
                found.append(one)
                claimed |= _tables(one)
    found += generic.find(ckpt, claimed)
    joined = strangers.told(ckpt, join(ckpt, found, wanted))
    for one in joined:
        shapes.check(ckpt, one)
    sizes = {(codes, one.dim) for one in joined for codes in one.num_codes}
    said = config.contradiction(ckpt.config or {}, sizes)
    return [_contradicted(one, said) for one in joined] if said else joined


def _contradicted(one: Codebook, said: str) -> Codebook:
    """A codebook whose config says another thing: said, and not sliced, since the config could not be patched."""
    return replace(one, warnings=(*one.warnings, said), refusals={**one.refusals, "sliced": said})


def _tables(one: Codebook) -> set[str]:
    """Every tensor that holds codes of a codebook."""
    return {key for level in one.keys for key in level} | {site.key for site in one.sites if site.role == "codes"}


def _named(ckpt: Checkpoint, wanted: Sequence[str], layout: str | None, together: bool) -> list[Codebook]:
    """The codebooks of the named tables: known ones whole, others by what each name matches; `together`: all of them are one."""
    known = _known(ckpt, wanted) if not layout else []
    found: list[Codebook] = []
    others: list[list[str]] = []
    for name in wanted:
        keys = _matching(ckpt, name, known)
        mine = [one for one in known if one.restack is None and (name == one.label or _tables(one) & set(keys))]
        covered = set().union(*map(_tables, mine))
        found += [one for one in mine if one not in found]
        rest = [key for key in keys if key not in covered]
        others += [rest] if rest else []
    if together and len(others) > 1:
        others = [[key for keys in others for key in dict.fromkeys(keys)]]
    return found + [
        generic.stacked(ckpt, keys) if len(keys) > 1 else generic.table(ckpt, keys[0], layout=layout) for keys in others
    ]


def _known(ckpt: Checkpoint, wanted: Sequence[str]) -> list[Codebook]:
    """What the families claim; nothing where one of them refuses the file, since a named table is then taken as it is."""
    try:
        return _claimed(ckpt, wanted)
    except InputError:
        return []


def _matching(ckpt: Checkpoint, name: str, known: list[Codebook]) -> list[str]:
    """Full keys that a name or a pattern means."""
    label = next((one for one in known if name == one.label), None)
    if label is not None:
        return [key for level in label.keys for key in dict.fromkeys(level)]
    full = [info.key for info in ckpt.infos.values() if name in (info.key, info.name)]
    if len(full) > 1:
        raise UsageError(
            f"{printable(name)} stands in several sections.", f"Name one of {', '.join(map(printable, full))}."
        )
    pattern = re.compile(re.escape(name).replace(r"\*", ".*").replace(r"\?", "."))
    if not full:
        infos = [info for info in ckpt.infos.values() if not is_optimizer(info) and generic.is_table(info)]
        full = [info.key for info in infos if pattern.fullmatch(info.key) or pattern.fullmatch(info.name)]
    if not full:
        near = difflib.get_close_matches(name, list(ckpt.infos), n=3, cutoff=0.4)
        hint = f"Close names: {', '.join(map(printable, near))}." if near else "toc inspect lists the tables of a file."
        raise InputError(f"{printable(str(ckpt.path))} has no tensor {printable(name)}.", hint)
    return full


def with_metric(codebook: Codebook, metric: str | None) -> Codebook:
    """The codebook under another metric; the constant of dropped dimensions must be 0 under cosine."""
    if metric is None:
        return codebook
    if codebook.metric == "logits":
        raise UsageError(
            f"The tokens of {printable(codebook.shown)} come from logits, not from a distance.", "Leave out --metric."
        )
    notes = tuple(note for note in codebook.warnings if "--metric" not in note)
    if metric == codebook.metric:
        return replace(codebook, warnings=notes)
    cosine = metric == "cosine"
    return replace(
        codebook,
        metric=cast("Metric", metric),
        unit_vectors=cosine and codebook.unit_vectors,
        stored_unit=cosine and codebook.stored_unit,
        zero_fill=cosine or codebook.zero_fill,
        warnings=notes,
    )


def _nothing(ckpt: Checkpoint) -> InputError:
    """Why there is no codebook, or what could be one."""
    name, said = printable(str(ckpt.path)), absent.reason(ckpt)
    if said:
        return InputError(f"{name} has no codebook: {said}.")
    listed = [f"{printable(info.key)} {tuple(info.shape)}" for info in generic.candidates(sections(ckpt))]
    if not listed:
        count = f"none of its {len(ckpt.infos)} tensors is a table of vectors under the name of a codebook"
        return InputError(f"{name} has no codebook: {count}.", "--codebook KEY takes one by its name.")
    return InputError(
        f"{name} has no codebook of a known family.", f"Name one with --codebook KEY, perhaps {'; '.join(listed)}."
    )
