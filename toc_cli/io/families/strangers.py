"""Tensors beside a table that its reading does not use: a norm, a scale or a projection that the lookup may need.

Legend: H heads, K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook
from toc_cli.io.families.names import Section, beside, is_statistic, sections
from toc_cli.io.names import printable

SHOWN = 3


def told(ckpt: Checkpoint, books: list[Codebook]) -> list[Codebook]:
    """The codebooks, those that are known by structure alone made *assumed*, with a warning, where strangers stand beside them."""
    used = {key for book in books for key in _used(book)}
    tables = {key for book in books for level in book.keys for key in level}
    layers = {key.rpartition(".")[0] + "." for key in used - tables if "." in key}  # a weight's bias and magnitude
    modules = {table.rpartition(".")[0] + "." for table in tables}
    parts = [(part, {part.key(name): name for name in part}) for part in sections(ckpt)]
    return [
        _told(book, [key for key in _beside(parts, book) if key not in used and not _within(key, layers, modules)])
        for book in books
    ]


def _told(book: Codebook, keys: list[str]) -> Codebook:
    if not keys or book.evidence not in ("by structure", "assumed"):
        return book
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    shown = ", ".join(printable(key, 80) for key in keys[:SHOWN])
    note = f"{shown}{more} beside the table {'are' if len(keys) > 1 else 'is'} not used by this reading"
    return replace(book, evidence="assumed", warnings=(*book.warnings, note))


def _within(key: str, layers: set[str], modules: set[str]) -> bool:
    """Whether a tensor belongs to a layer that is used, other than the module of a table itself."""
    module = key.rpartition(".")[0] + "."
    return module in layers and module not in modules


def _used(book: Codebook) -> Iterator[str]:
    """Every tensor that a reading takes into account."""
    yield from (key for level in book.keys for key in level)
    yield from book.ema_twins
    yield from (relied.key for relied in book.relies)
    for site in book.sites:
        yield site.key
        yield from (key for key in (site.bias, site.counts) if key)


def _beside(parts: list[tuple[Section, dict[str, str]]], book: Codebook) -> Iterator[str]:
    """Tensors of the module of a table, or of a module of layers within it, with one number per dimension."""
    wide = {book.dim, book.heads * book.dim}
    for part, names in parts:
        own = [names[key] for level in book.keys for key in level if key in names]
        prefixes = tuple(dict.fromkeys(prefix for name in own for prefix in beside(name) if prefix))
        for name in dict.fromkeys(name for prefix in prefixes for name in part.under(prefix)):
            inside = next(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix))
            info = part.infos[name]
            if inside.count(".") > 1 or is_statistic(name) or not info.is_floating:
                continue
            lengths = [n for n in info.shape if n > 1]
            if lengths and len(lengths) <= 2 and all(n in wide for n in lengths):
                yield part.key(name)
