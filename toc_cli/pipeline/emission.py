"""Edited copies of the checkpoint, each reopened and checked against the pruned codebook before the run is called done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import OutputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families import detect, levels
from toc_cli.io.families.base import Codebook, Mode
from toc_cli.io.families.cut import Cut
from toc_cli.io.families.emit import Dimensions
from toc_cli.io.families.lean import left_out
from toc_cli.io.families.offered import supported
from toc_cli.io.names import printable
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.quantiser import Lookup, Quantiser
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.codes import recoding, rewriting
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.source import Fit as Fit
from toc_cli.pipeline.source import Source, form_for, sources

LIBRARY_TOLERANCE = 0.005
"""Share of rows whose tokens may differ in a float32 library: near ties, and what follows them down a residual chain."""

Chosen = Sequence[tuple[Source, Choice]]
Samples = Sequence[tuple[Fit, torch.Tensor]]
"""Per codebook the features (n, W) on which an edited copy is checked, and the dataset they come from."""


def forms_of(ckpt: Checkpoint, source: Source, choice: Choice, tried: Sequence[str] = ()) -> dict[str, dict[Mode, str]]:
    """The record's `forms`: for the chosen criterion and its measured rivals of one size, what `supported` says."""
    names = dict.fromkeys((choice.ranking.criterion, "variance", "pca", *tried))
    return {name: supported(ckpt, source.book, choice.size, rotated=CRITERIA[name].rotates) for name in names}


def edits_for(ckpt: Checkpoint, chosen: Chosen, mode: Mode, options: Options, first: Edits = Edits()) -> Edits:
    """What `mode` changes in the whole file: upon `first` the edits of every codebook, one upon the other, and what `--lean` leaves
    out."""
    so_far = first
    for book, cut in cuts_of(chosen, options):
        so_far = cut.edits(ckpt, book, mode, so_far)
    if not options.lean:
        return so_far
    without = frozenset(key for keys in left_out(ckpt, [source.book for source, _ in chosen]).values() for key in keys)
    tensors = {key: tensor for key, tensor in so_far.tensors.items() if key not in without}
    return replace(so_far, tensors=tensors, without=so_far.without | without)


def cuts_of(chosen: Chosen, options: Options) -> list[tuple[Codebook, Cut]]:
    """What is removed, in the order in which it goes, each beside the codebook as it stood before: of every codebook codes, then
    dimensions; of all of them levels last."""
    found: list[tuple[Codebook, Cut]] = []
    for source, choice in chosen:
        if source.codes is not None:
            found.append((source.codes.before.book, recoding(source)))
        elif source.refreshed is not None:
            found.append((source.book, rewriting(source)))
        if not (options.recuts and choice.keeps_all):
            found.append((source.book, Dimensions(choice.kept, torch.from_numpy(choice.fill), choice.rotation)))
    wholes = [(source.whole.book, source.book.levels) for source, _ in chosen if source.whole is not None]
    return [*found, *((book, levels.Levels(count, options.lean)) for book, count in wholes)]


def tied(ckpt: Checkpoint, source: Source) -> list[dict[str, Any]]:
    """A warning of the record where another layer of the file is the very tensor of a table, and is edited with it."""
    sites = {site.key for site in source.book.sites}
    tables = [key for level in source.book.keys for key in dict.fromkeys(level) if key in ckpt.infos]
    found = [
        other.key
        for own in (ckpt.infos[key] for key in dict.fromkeys(tables))
        if own.storage is not None
        for other in ckpt.infos.values()
        if (other.storage, other.shape) == (own.storage, own.shape) and other.key not in sites
        if torch.equal(ckpt.get(other.key), ckpt.get(own.key))
    ]
    if not found:
        return []
    shown = ", ".join(printable(key, 80) for key in dict.fromkeys(found))
    text = (
        f"{printable(source.book.shown, 120)} is the same tensor as {shown}, which masked and sliced copies change with it: "
        "what reads that layer must allow for it"
    )
    return [{"id": "tied", "codebook": source.id, "text": f"{text}."}]


def write_checkpoint(
    ckpt: Checkpoint, chosen: Chosen, mode: Mode, target: Path, options: Options, samples: Samples, first: Edits
) -> list[Path]:
    """Write one edited copy and check it. OutputError where the check fails; InputError where the input changed meanwhile."""
    try:
        written = ckpt.write(target, edits_for(ckpt, chosen, mode, options, first))
    finally:
        ckpt.refuse_changes()  # before any error that comes of it
    check_checkpoint(ckpt, target, chosen, mode, options, samples)
    return written


def check_checkpoint(
    before: Checkpoint, target: Path, chosen: Chosen, mode: Mode, options: Options, samples: Samples
) -> None:
    """Reopen an edited copy: keys and shapes, and that it quantises a sample as the pruned (or, for consumer, the full) codebook."""
    after = open_checkpoint(target)
    same_shape = mode != "sliced"
    books_before = [source.book for source, _ in chosen]
    gone = {key for keys in left_out(before, books_before).values() for key in keys} if options.lean else set()
    for source, _ in chosen:
        if source.whole is not None and mode == "sliced":
            gone |= levels.dropped(before, source.whole.book, source.book.levels)
    for key, info in before.infos.items():
        if key in gone:
            continue
        copied = after.infos.get(key)
        if copied is None or copied.dtype != info.dtype or (same_shape and copied.shape != info.shape):
            raise OutputError(f"{target.name}: {printable(key)} came out as {copied}.", "Please report this.")
    books = detect(after, **options.reading)
    if len(books) != len(chosen):
        raise OutputError(f"{target.name} holds {len(books)} codebooks, {len(chosen)} went in.", "Please report this.")
    for (_, choice), found, (fit, x) in zip(chosen, sources(after, books), samples, strict=True):
        wanted = _wanted(chosen[found.id][0], choice, mode, fit, x)
        disagree = _differences(found.full, wanted, mode, choice, fit, x)
        if disagree:
            raise OutputError(
                f"{target.name}: {disagree} of {len(x)} sampled rows get other tokens than the pruned codebook's.",
                "Please report this.",
            )


def _wanted(source: Source, choice: Choice, mode: Mode, fit: Fit, x: torch.Tensor) -> Lookup:
    """The tokens that a form gives: new ids where its table has fewer codes, old ones where copies stand for dropped codes."""
    found = form_for(source.full if mode == "consumer" else choice.form, fit).lookup(x)
    if source.codes is None or mode != "masked":
        return found
    heads = torch.arange(found.tokens.shape[2])
    old = [ids[heads, found.tokens[:, at]] for at, ids in enumerate(source.codes.cut.ids)]
    return Lookup(torch.stack(old, 1), found.near_tie)


def _differences(found: Quantiser, wanted: Lookup, mode: Mode, choice: Choice, fit: Fit, x: torch.Tensor) -> int:
    """Rows whose tokens differ though no near tie excuses it."""
    side = form_for(found, fit)
    given = x
    if mode == "sliced" and not fit.projected:
        given = _in_kept_space(choice, x)
    return _wrong_rows(side.tokens(given), wanted)


def _wrong_rows(tokens: torch.Tensor, expected: Lookup) -> int:
    """Rows whose tokens (N, L, H) part from the expected ones at a level that was no near tie; what follows a parting follows it."""
    differs = tokens != expected.tokens
    parts = differs & (differs.cumsum(1) == 1)
    return int((parts & ~expected.near_tie).flatten(1).any(1).sum())


def _in_kept_space(choice: Choice, x: torch.Tensor) -> torch.Tensor:
    """Codebook-space features (n, H*D) as a sliced codebook reads them: (n, H*D')."""
    heads = choice.form.heads
    rows = x.reshape(len(x), heads, -1)
    if choice.rotation is not None:
        return torch.cat([rows[:, h].double() @ choice.rotation[0, h] for h in range(heads)], 1).to(x.dtype)
    return torch.cat([rows[:, h][:, choice.kept[0, h]] for h in range(heads)], 1)


def verify_in_library(
    target: Path,
    mode: Mode,
    id: int,
    source: Source,
    choice: Choice,
    sample: tuple[Fit, torch.Tensor],
    options: Options,
) -> dict[str, Any]:
    """Load a written checkpoint in its own library and run it; its tokens must be those of the pruned codebook.

    A library computes in float32, which may turn near ties over. OutputError beyond LIBRARY_TOLERANCE. Returns what the record says.
    """
    from toc_cli.libraries import run

    after = open_checkpoint(target)
    book = detect(after, **options.reading)[id]
    fit, x = sample
    wanted = _wanted(source, choice, mode, fit, x)
    given = _in_kept_space(choice, x) if mode == "sliced" and not fit.projected else x
    done = run(target, book, given, inner=not fit.projected and source.full.project_in is not None)
    differ = _wrong_rows(done.tokens, wanted)
    if differ > LIBRARY_TOLERANCE * len(x):
        raise OutputError(
            f"{target.name} in {done.library}: {differ} of {len(x)} rows get other tokens.", "Please report this."
        )
    return {"mode": mode, "codebook": source.id, "library": done.library, "rows": len(x), "other_tokens": differ}
