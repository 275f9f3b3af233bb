"""Which codebooks a checkpoint holds: `detect` asks the families in order, the most specific first.

A family is a module with `find(ckpt) -> list[Codebook]` that returns nothing for files that are not its own.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Protocol, cast, get_args

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import (
    absent,
    cmg,
    encodec,
    fairseq,
    faiss,
    generic,
    image_vq,
    kmeans,
    layouts,
    mimi,
    projected,
    pruned,
    rqvae,
    scaled,
    simvq,
    taming,
    vqp,
    wav2vec2,
    xcodec,
)
from toc_cli.io.families.base import Codebook, Metric
from toc_cli.io.families.copies import join
from toc_cli.io.families.names import sections
from toc_cli.io.families.overrides import with_rows, with_table
from toc_cli.io.names import printable

__all__ = ["detect"]


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
        vqp,
        simvq,
        cmg,
        taming,
        rqvae,
        fairseq,
        layouts,
        generic,
    ),
)


def detect(
    ckpt: Checkpoint,
    *,
    codebook: str | None = None,
    layout: str | None = None,
    metric: str | None = None,
    assume: bool = False,
    rows: str | None = None,
    table: str | None = None,
    scale: str | None = None,
) -> list[Codebook]:
    """The codebooks of a checkpoint, in the order of their families.

    Args:
        codebook: key of one table (with or without its sections): that codebook alone, detected or not.
        layout: order of the stored axes of `codebook`, such as "DK" or "(HK)D,H=2" (`generic.Layout`).
        metric: euclidean, cosine or dot, instead of what the file says.
        assume: readings that are assumed are taken for true.
        rows: "unit" or "as-is" (`overrides.with_rows`).
        table: "raw" or "mean" (`overrides.with_table`).
        scale: key (or its end) of the scale of a quantised table; "none" takes it as stored (`scaled.opened`).

    Raises:
        InputError: there is no codebook, or none under that key; the sentence says what the file holds instead.
        UsageError: an option that cannot be meant.
    """
    chosen = _metric(metric)
    seen = scaled.opened(ckpt, scale)
    if layout and codebook is None:
        tables = dict.fromkeys(key for one in _claimed(seen) for key in _tables(one))
        if len(tables) != 1:
            raise UsageError("--layout describes one table.", "Name it with --codebook KEY.")
        codebook = next(iter(tables))
    if codebook is not None:
        found = [_named(seen, codebook, layout, chosen)]
    else:
        found = [with_metric(one, chosen) for one in _claimed(seen)]
    if not found:
        raise _nothing(seen)
    found = [with_rows(with_table(seen, one, table), rows) for one in found]
    return [_with_evidence(scaled.finished(ckpt, seen, one, scale), assume) for one in found]


def _with_evidence(one: Codebook, assume: bool) -> Codebook:
    """The codebook with the warning of an assumed reading, and the leave to edit its checkpoint where the user gives it."""
    if one.evidence != "assumed":
        return one
    note = f"the reading of {printable(one.shown)} as {one.metric} codes is assumed: the file does not show it"
    return replace(one, granted=assume, warnings=(*one.warnings, note))


def _metric(metric: str | None) -> Metric | None:
    offered = [name for name in get_args(Metric) if name != "logits"]
    if metric is not None and metric not in offered:
        raise UsageError(f"--metric {metric} is not known.", f"It is one of {', '.join(offered)}.")
    return cast("Metric | None", metric)


def _claimed(ckpt: Checkpoint) -> list[Codebook]:
    """Every codebook once: a table claimed by a family is not offered to the later ones; averaged copies join their original."""
    found: list[Codebook] = []
    claimed: set[str] = set()
    for family in FAMILIES:
        for one in family.find(ckpt):
            if not _tables(one) & claimed:
                found.append(one)
                claimed |= _tables(one)
    return join(ckpt, found)


def _tables(one: Codebook) -> set[str]:
    """Every tensor that holds codes of a codebook."""
    return {key for level in one.keys for key in level} | {site.key for site in one.sites if site.role == "codes"}


def _named(ckpt: Checkpoint, key: str, layout: str | None, metric: Metric | None) -> Codebook:
    full = [info.key for info in ckpt.infos.values() if key in (info.key, info.name)]
    if not layout:
        for one in _claimed(ckpt):
            if key == one.label or _tables(one) & set(full):
                return with_metric(one, metric)
    if not full:
        near = difflib.get_close_matches(key, list(ckpt.infos), n=3, cutoff=0.4)
        hint = f"Close names: {', '.join(map(printable, near))}." if near else "toc inspect lists the tables of a file."
        raise InputError(f"{printable(str(ckpt.path))} has no tensor {printable(key)}.", hint)
    if len(full) > 1:
        raise UsageError(
            f"{printable(key)} stands in several sections.", f"Name one of {', '.join(map(printable, full))}."
        )
    return generic.table(ckpt, full[0], layout=layout, metric=metric)


def with_metric(codebook: Codebook, metric: Metric | None) -> Codebook:
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
        metric=metric,
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
        return InputError(f"{name} has no codebook: none of its {len(ckpt.infos)} tensors is a table of vectors.")
    return InputError(
        f"{name} has no codebook of a known family.", f"Name one with --codebook KEY, perhaps {'; '.join(listed)}."
    )
