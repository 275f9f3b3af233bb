"""Readings that the user gives where the file says nothing, or another thing: whether rows have unit length, and which table counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.names import PER_CODE
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

Rows = Literal["unit", "as-is"]
Table = Literal["raw", "mean"]


def with_rows(book: Codebook, rows: str | None) -> Codebook:
    """The codebook with features of unit length or as they are (`--rows`).

    unit: under a cosine lookup the codes are passed on at unit length; under another the features are divided by their length,
    head by head, and meet the codes as they are stored. as-is: neither.
    """
    if rows is None:
        return book
    if book.metric == "logits":
        raise UsageError(
            f"The tokens of {printable(book.shown)} come from logits: no rows meet codes.", "Leave out --rows."
        )
    if rows == "as-is":
        return replace(book, unit_in=False, unit_vectors=False, stored_unit=False)
    if book.metric == "cosine":
        return book if book.stored_unit else replace(book, unit_vectors=True, zero_fill=True)
    refusals: dict[Mode, str] = {
        **book.refusals,
        "sliced": "features divided by their length over all dimensions cannot be cut",
    }
    return replace(book, unit_in=True, refusals=refusals)


def with_table(ckpt: Checkpoint, book: Codebook, table: str | None) -> Codebook:
    """The codebook whose codes are the stored table or the mean of its features, sums over counts (`--table`).

    mean: of the running sums beside the table, or of the table itself where it holds sums and only the counts stand beside.
    raw: the stored numbers, where the family divides them.
    """
    if table is None:
        return book
    own = [site for site in book.sites if site.role == ("sums" if table == "mean" else "codes")]
    other = [site for site in book.sites if site.role == ("codes" if table == "mean" else "sums")]
    if own:
        chosen, sites = own, book.sites
    elif table == "raw":
        chosen, sites = (
            other,
            tuple(replace(site, role="codes", counts=None) if site in other else site for site in book.sites),
        )
    else:
        summed = {site: _as_sums(ckpt, site) for site in other}
        chosen, sites = list(summed.values()), tuple(summed.get(site, site) for site in book.sites)
    places = {(site.level or 0, site.head or 0): site for site in chosen}
    if not chosen or any((level, 0) not in places for level in range(book.levels)):
        raise UsageError(f"{printable(book.shown)} has no stored table to take as it is.", "Leave out --table.")
    read = book.parts

    def parts(opened: Checkpoint) -> Parts:
        found = read(opened)
        tables = [_codes(opened, places, level, like) for level, like in enumerate(found.tables)]
        return replace(found, tables=tuple(tables))

    return replace(book, parts=parts, sites=sites)


def _as_sums(ckpt: Checkpoint, site: Site) -> Site:
    """A table taken as sums, with the counts beside it. UsageError without any."""
    stem = site.key[: max(site.key.rfind("."), site.key.rfind("/")) + 1]
    shape = ckpt.infos[site.key].shape
    for name in PER_CODE:
        info = ckpt.infos.get(stem + name)
        if info is not None and info.shape == tuple(n for axis, n in enumerate(shape) if axis != site.axis):
            return replace(site, role="sums", counts=stem + name)
    raise UsageError(
        f"No counts of the codes stand beside {printable(site.key)}.",
        "--table mean needs sums and counts; leave it out.",
    )


def _codes(ckpt: Checkpoint, places: Mapping[tuple[int, int], Site], level: int, like: torch.Tensor) -> torch.Tensor:
    """The codes (H, K, D) of a level, in the shape of those that the family reads."""
    import torch

    heads = [places.get((level, head), places[level, 0]) for head in range(like.shape[0])]
    return torch.stack([_one(ckpt, site, head, like.shape) for head, site in enumerate(heads)])


def _one(ckpt: Checkpoint, site: Site, head: int, shape: torch.Size) -> torch.Tensor:
    stored = ckpt.get(site.key)
    if site.role == "sums" and site.counts:
        counts = ckpt.get(site.counts).double().clamp(min=site.floor).unsqueeze(site.axis)
        stored = (stored.double() / counts).float()
    for axis, start, stop in site.window:
        stored = stored.narrow(axis, start, stop - start)
    codes = stored.movedim(site.axis, -1)
    codes = codes[..., site.offset : site.offset + shape[-1] * (shape[0] if site.head is None else 1)]
    if site.head is None and shape[0] > 1 and codes.shape[-1] == shape[0] * shape[-1]:
        codes = codes[..., head * shape[-1] : (head + 1) * shape[-1]]
    return codes.reshape(-1, shape[-1])[: shape[1]]
