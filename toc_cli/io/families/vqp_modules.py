"""Where the quantisers of vector-quantize-pytorch are in a file: the prefixes of their tables and projections, by level and group.

Legend: H heads (groups of a GroupedResidualVQ count as heads), K codes, D dimensions, W outer width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.names import Section, misfit, sections


def modules_of(ckpt: Checkpoint) -> Iterator[Module]:
    """Every quantiser of the library, in the order of the file."""
    for section in sections(ckpt):
        modules: dict[str, dict[tuple[int, int], str]] = {}
        for match in section.matches(r"((?:.*\.)?)_codebook\.embed"):
            root, group, level = _place(match[1])
            modules.setdefault(root, {})[level, group] = match[1]
        for root, books in modules.items():
            stack = Module(section, root, books)
            alone = [Module(section, prefix, {(0, 0): prefix}) for prefix in books.values()]
            yield from [stack] if _is_stack(stack) else alone


def _is_stack(module: Module) -> bool:
    """Whether this is one quantiser of the library, not a list `layers` of a model that holds quantisers among others.

    A ResidualVQ numbers its levels from 0 without a gap, of one width, and projects around all of them.
    """
    whole = len(module.books) == module.levels * module.groups
    if not whole or len({module.shape(level, group)[::2] for level, group in module.books}) > 1:
        return False
    own = tuple(f"{prefix}project_in" for prefix in module.books.values())
    return not module.residual or not any(name.startswith(own) for name in module.section)


def _place(prefix: str) -> tuple[str, int, int]:
    """(root, group, level) of a VectorQuantize by its prefix: `b.rvqs.1.layers.2.` is level 2 of group 1 of `b.`."""
    match = re.fullmatch(r"((?:.*?\.)??)(?:rvqs\.(\d+)\.)?layers\.(\d+)\.", prefix)
    return (match[1], int(match[2] or 0), int(match[3])) if match else (prefix, 0, 0)


@dataclass(frozen=True)
class Module:
    """One quantiser module: where its VectorQuantize parts and its projections are."""

    section: Section
    root: str
    books: Mapping[tuple[int, int], str]
    """Prefix of the VectorQuantize of (level, group)."""

    @property
    def levels(self) -> int:
        return 1 + max(level for level, _ in self.books)

    @property
    def groups(self) -> int:
        return 1 + max(group for _, group in self.books)

    @property
    def residual(self) -> bool:
        """Whether this is a ResidualVQ (a stack of one level still is one)."""
        return self.books[0, 0] != self.root

    def name(self, level: int, group: int, leaf: str) -> str:
        """Name of a tensor of one `_codebook`."""
        return f"{self.books[level, group]}_codebook.{leaf}"

    def shape(self, level: int = 0, group: int = 0) -> tuple[int, int, int]:
        """(tables, K, D) of one level."""
        name = self.name(level, group, "embed")
        if len(self.section.shape(name)) == 2:
            return (1, *self.section.sizes(name, "K D"))  # type: ignore[return-value]
        return self.section.sizes(name, "H K D")  # type: ignore[return-value]

    def around(self, group: int) -> str:
        """Prefix of the projections around all levels of a group."""
        return f"{self.root}rvqs.{group}." if f"{self.root}rvqs." in self.books[0, 0] else self.root

    def projection(self, group: int, which: str) -> str | None:
        """Name of a projection without `.weight`; inside a Sequential with its LayerNorm it is number 0."""
        names = (f"{self.around(group)}{which}", f"{self.around(group)}{which}.0")
        return next((name for name in names if f"{name}.weight" in self.section), None)

    @property
    def heads(self) -> int:
        """H: groups, or tables, or what the rows of the projection say where one table serves all heads."""
        tables, _, dim = self.shape()
        into = self.projection(0, "project_in")
        rows = self.section.sizes(f"{into}.weight", "H*D W")[0] if into else dim
        if rows % dim:
            raise misfit(self.section.key(f"{into}.weight"), self.section.shape(f"{into}.weight"), (f"H*{dim}", "W"))
        shared = rows // dim
        return max(self.groups, tables, shared)

    @property
    def shared_table(self) -> bool:
        """Whether several heads look up one table."""
        return self.heads > max(self.groups, self.shape()[0])

    @property
    def shared_levels(self) -> bool:
        """Whether all levels are one storage (`shared_codebook=True`)."""
        first = self.section.infos[self.name(0, 0, "embed")].storage
        return self.levels > 1 and first is not None and first == self.section.infos[self.name(1, 0, "embed")].storage

    @property
    def outer_width(self) -> int | None:
        """W, None without projections."""
        into = self.projection(0, "project_in")
        return self.section.sizes(f"{into}.weight", "H*D W")[1] * self.groups if into else None

    @property
    def width(self) -> int:
        """Width of what the module reads and gives."""
        return self.outer_width or self.heads * self.shape()[2]

    def has(self, part: str) -> bool:
        """Whether the module or its `_codebook` owns a sub-module or buffer of this name."""
        return any(name.startswith((f"{self.root}{part}", self.name(0, 0, part))) for name in self.section)
