"""Fewer codes in an edited copy: every tensor with one row per code is cut along its code axis (sliced), or holds copies of the kept
codes where dropped ones stood (masked).

Legend: L levels, H heads, K codes, K' kept ones, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families import moments
from toc_cli.io.families.base import Codebook, Mode, Site
from toc_cli.io.families.copies import copy_key, sites_of
from toc_cli.io.families.emit import keep_sharing, narrow
from toc_cli.io.families.offered import ASSUMED
from toc_cli.io.names import printable

IN_CONFIG = {
    "encodec": "codebook_size", "dac": "codebook_size", "mimi": "codebook_size", "xcodec": "codebook_size",
    "higgs audio v2": "codebook_size", "diffusers vqmodel": "num_vq_embeddings", "chameleon vq": "num_embeddings",
    "janus vq": "num_embeddings", "glm-image vq": "num_embeddings", "emu3 vq": "codebook_size",
}  # fmt: skip
"""Where the config of a family holds K, at its top level."""


POWERS_OF_TWO = ("encodec",)
"""Families whose library takes no other K."""


@dataclass(frozen=True)
class Recoding:
    """A cut of codes as the edit of a file needs it, per level."""

    maps: Sequence[torch.Tensor]
    """(H, K_l) int64: old id to new id, -1 for codes that vanish."""
    ids: Sequence[torch.Tensor]
    """(H, K'_l) int64 ascending: the smallest old id of each new code."""
    tables: Sequence[torch.Tensor]
    """(H, K'_l, D) the new codes."""
    before: Sequence[torch.Tensor]
    """(H, K_l, D) the old ones, as they are looked up."""

    def edits(self, ckpt: Checkpoint, book: Codebook, mode: Mode, on: Edits) -> Edits:
        """As of `cut.Cut`; `book` is the codebook with all its codes."""
        return recoded(ckpt, book, mode, self, on)

    def changed(self, level: int, head: int) -> list[int]:
        """New ids whose vector is not that of their old id: merged ones, or estimated anew."""
        old = self.before[level][head][self.ids[level][head]]
        return [int(new) for new in (self.tables[level][head] != old).any(-1).nonzero().flatten()]


def code_axis(site: Site, shape: tuple[int, ...], codes: int) -> int | None:
    """The axis of a table with one row per code: the only other one of that length; None where that is not certain."""
    windows = {axis for axis, *_ in site.window}
    found = [at for at, n in enumerate(shape) if n == codes and at != site.axis % len(shape) and at not in windows]
    return found[0] if len(found) == 1 else None


def refusal(ckpt: Checkpoint, book: Codebook, mode: Mode) -> str:
    """Why a mode cannot be written with fewer codes, "" where it can."""
    if mode == "codebook":
        return ""
    if mode == "consumer":
        return "it leaves every token as it was, so no code can go"
    if ckpt.read_only:
        return ckpt.read_only.rstrip(".")
    if book.evidence == "assumed" and not book.granted:
        return ASSUMED
    if book.exact_levels is not None:
        return f"the codes after level {book.exact_levels - 1} are no stored tables"
    tables = [site for site in book.sites if site.role in ("codes", "sums")]
    if not tables:
        return "no stored table of this codebook can be edited in place"
    if book.heads > 1 and book.own_dims_per_head and any(site.head is None for site in tables):
        return "its heads lie side by side in one row per code"
    for site in tables:
        if code_axis(site, ckpt.infos[site.key].shape, book.num_codes[site.level or 0]) is None:
            return f"{printable(site.key)} does not show which of its axes counts the codes"
        if site.counts and _per_code(ckpt, book, site.counts) is None:
            return f"{printable(site.counts)} does not count the codes of {printable(site.key)} one by one"
    if mode == "masked":
        return (
            ""
            if book.metric == "euclidean"
            else "a copy of another code is a certain tie under a euclidean lookup alone"
        )
    if len(set(book.num_codes)) > 1:
        return "its levels have several numbers of codes"
    for key in _beside(ckpt, book):
        if book.num_codes[0] in ckpt.infos[key].shape and _per_code(ckpt, book, key) is None:
            return f"{printable(key)} may hold a value per code, and nothing says along which axis"
    if moments.of_parameters(ckpt, {site.key for site in tables}, book.copies).unsure:
        return (
            "the optimizer state in the file may belong to the table, and nothing says for certain which moments to cut"
        )
    if ckpt.config is not None and book.family in IN_CONFIG and _config(ckpt, book) is None:
        return f"its config does not hold the number of codes ({IN_CONFIG[book.family]}) at its top level"
    if ckpt.config is not None and book.family not in IN_CONFIG and _mentions(ckpt.config, book.num_codes[0]):
        return "nothing says which value of its config is the number of codes"
    return ""


def fitting(book: Codebook, count: int) -> int:
    """The smallest K' from `count` on that the family's library takes."""
    return 1 << (count - 1).bit_length() if book.family in POWERS_OF_TWO else count


def _mentions(value: Any, number: int) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return value == number if not inside else any(_mentions(each, number) for each in inside)


def _config(ckpt: Checkpoint, book: Codebook) -> tuple[str, ...] | None:
    name = IN_CONFIG.get(book.family, "")
    return (name,) if (ckpt.config or {}).get(name) == book.num_codes[0] else None


def _beside(ckpt: Checkpoint, book: Codebook) -> list[str]:
    """Keys of the module around each table that are no site: counters and the like."""
    own = {site.key for site in book.sites} | {site.counts for site in book.sites if site.counts}
    homes = {site.key.rpartition(".")[0] for site in book.sites if site.role in ("codes", "sums")}
    return [key for key in ckpt.infos if key.rpartition(".")[0] in homes and "." in key and key not in own]


def _per_code(ckpt: Checkpoint, book: Codebook, key: str) -> Site | None:
    """A tensor beside a table with the table's shape, or its shape without the dimensions, as a site."""
    home = key.rpartition(".")[0]
    for site in book.sites:
        if site.role in ("codes", "sums") and site.key.rpartition(".")[0] == home:
            shape = ckpt.infos[site.key].shape
            axis = site.axis % len(shape)
            if ckpt.infos[key].shape in (shape, shape[:axis] + shape[axis + 1 :]):
                return Site(key, site.axis, "codes", site.level, site.head, site.window)
    return None


def recoded(ckpt: Checkpoint, book: Codebook, mode: Mode, cut: Recoding, on: Edits | None = None) -> Edits:
    """The edits of `masked` or `sliced` for a cut of codes, upon those made for other codebooks of the file.

    UsageError where the mode cannot be written, or where a dropped code has no kept one of lower id to copy (masked).
    """
    if reason := refusal(ckpt, book, mode):
        raise UsageError(
            f"--emit {mode} is not possible for {printable(book.shown)} with --codes: {reason}.", "Leave one out."
        )
    on = on or Edits()
    edit = _Recode(ckpt, book, mode, cut, dict(on.tensors))
    edit.run()
    tensors = keep_sharing(ckpt, edit.tensors, on)
    config = dict(on.config)
    path = _config(ckpt, book) if mode == "sliced" else None
    if path and config.setdefault(path, cut.ids[0].shape[1]) != cut.ids[0].shape[1]:
        raise UsageError(
            f"Two codebooks ask for {path[0]} = {config[path]} and {cut.ids[0].shape[1]}.",
            "Give them one number: --codes N.",
        )
    return Edits(tensors, config, on.values)


class _Recode:
    """The growing set of tensors: `made` with the axes of the table, from `whole`, the file's own with merged codes written in."""

    def __init__(
        self, ckpt: Checkpoint, book: Codebook, mode: Mode, cut: Recoding, on: Mapping[str, torch.Tensor]
    ) -> None:
        self.ckpt, self.book, self.mode, self.cut, self.on = ckpt, book, mode, cut, on
        self.whole: dict[str, torch.Tensor] = {}
        self.made: dict[str, torch.Tensor] = {}
        self.axes: dict[str, int] = {}
        """Of the dimensions, in the table that a tensor goes with."""
        self.done: set[tuple[str, tuple[tuple[int, int, int], ...]]] = set()
        self.written: set[tuple[str, tuple[tuple[int, int, int], ...]]] = set()

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All edits, each in the shape of its kind."""
        shapes = {key: len(self.ckpt.infos[key].shape) for key in self.made}
        found = {
            key: tensor if tensor.dim() == shapes[key] else tensor.squeeze(self.axes[key])
            for key, tensor in self.made.items()
        }
        return {**self.on, **{key: tensor.contiguous() for key, tensor in found.items()}}

    def run(self) -> None:
        tables = list(sites_of(self.ckpt, self.book, "codes", "sums"))
        twins = moments.of_parameters(self.ckpt, {site.key for site in tables}, self.book.copies).found
        for site in tables:
            self.set_changed(site)
        for site in tables:
            for key in (site.key, *twins.get(site.key, ()), *([site.counts] if site.counts else [])):
                self.gather(key, site)
        for key in _beside(self.ckpt, self.book):
            if like := _per_code(self.ckpt, self.book, key):
                home = key.rpartition(".")[0]
                for site in (site for site in self.book.sites if site.role in ("codes", "sums")):
                    if site.key.rpartition(".")[0] == home:
                        self.gather(key, Site(**{**site.__dict__, "axis": like.axis}))
                        for copy in self.book.copies:
                            if twin := copy_key(self.ckpt, self.book.root, copy, key):
                                self.gather(twin, site)

    def index(self, site: Site) -> torch.Tensor:
        """The old ids whose rows stand in the new tensor, (K',) or (K,)."""
        level, head = site.level or 0, site.head or 0
        ids, row = self.cut.ids[level][head], self.cut.maps[level][head]
        if self.mode == "sliced":
            return ids
        lower = torch.searchsorted(ids, torch.arange(len(row)), right=True) - 1  # the kept code of the next lower id
        if (gone := ((row < 0) & (lower < 0)).nonzero()).numel():
            raise UsageError(
                f"--emit masked is not possible for {printable(self.book.shown)} with --codes: code {int(gone[0])} of level {level} is "
                "dropped, and no kept code has a lower id, so a copy would be chosen in its place.",
                "Use --emit sliced or codebook.",
            )
        return ids[torch.where(row >= 0, row, lower)]

    def laid(self, key: str, site: Site) -> tuple[torch.Tensor, int]:
        """A tensor of the file with the axes of a site's table (one of length one for missing dimensions), and its code axis."""
        if key not in self.whole:
            self.whole[key] = (self.on[key] if key in self.on else self.ckpt.get(key)).clone()
        whole, table = self.whole[key], self.ckpt.infos[site.key].shape
        axis = code_axis(site, table, self.book.num_codes[site.level or 0])
        assert axis is not None
        self.axes[key] = site.axis
        return whole if whole.dim() == len(table) else whole.unsqueeze(site.axis), axis

    def gather(self, key: str, site: Site) -> None:
        """Give a tensor the rows of `index` along its code axis, in the window of a site."""
        if (key, site.window) in self.done:
            return
        self.done.add((key, site.window))
        whole, axis = self.laid(key, site)
        index = self.index(site)
        if key not in self.made:
            self.made[key] = whole.narrow(axis, 0, len(index)).clone()
        narrow(self.made[key], site).copy_(narrow(whole, site).index_select(axis, index))

    def set_changed(self, site: Site) -> None:
        """Write the new vector of each changed code into the row of its smallest old id."""
        level, head = site.level or 0, site.head or 0
        changed = self.cut.changed(level, head)
        if not changed or (site.key, site.window) in self.written:
            return
        self.written.add((site.key, site.window))
        whole, axis = self.laid(site.key, site)
        rows = narrow(whole, site).movedim((axis, site.axis), (-2, -1))  # (…, K, D)
        before = self.cut.before[level][head]
        if site.role == "codes" and not torch.equal(rows.reshape(before.shape).to(before.dtype), before):
            raise UsageError(
                f"--emit {self.mode} is not possible for {printable(self.book.shown)} with new codes: {printable(site.key)} does "
                "not hold the codes themselves.",
                "--codes used only drops codes, and leaves those that stay.",
            )
        counts = narrow(self.laid(site.counts, site)[0], site).reshape(-1) if site.counts else None
        for new in changed:
            old = int(self.cut.ids[level][head, new])
            value = self.cut.tables[level][head, new].double()
            if site.role == "sums":
                assert counts is not None
                value = value * counts[old].double().clamp(min=site.floor)
            rows[..., old, :] = value.to(rows.dtype)
