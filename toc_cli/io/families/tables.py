"""Codebooks that are plain (K, D) tables between two known layers: what most hand-written checkpoints hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.families.base import Codebook, Parts, Site
from toc_cli.io.families.layers import affine, pointwise, producer, relied, shape, spelling
from toc_cli.io.families.names import Section, misfit, twins

if TYPE_CHECKING:
    import torch


def plain(
    part: Section,
    names: Sequence[str],
    *,
    family: str,
    product: bool = False,
    transposed: bool = False,
    padding: bool = False,
    before: str | None = None,
    after: Sequence[Site] = (),
    zero_fill: bool = False,
    **more: Any,
) -> Codebook:
    """One codebook whose tables are `names`: one per level of a residual, or per head of a product.

    Args:
        product: table h is head h, not level h.
        transposed: the tables are (D, K).
        padding: the last row is never chosen, and is not a code.
        before: the layer that gives the features, cut with the codebook; where it is pointwise its input may serve as features.
        after: the sites of the layers that read the quantised vector.
        more: further fields of `Codebook`.

    Raises:
        InputError: the tables do not fit together.
    """
    grid = [list(names)] if product else [[name] for name in names]
    return stack(
        part,
        grid,
        family=family,
        transposed=transposed,
        padding=padding,
        before=before,
        after=after,
        zero_fill=zero_fill,
        **more,
    )


def stack(
    part: Section,
    grid: Sequence[Sequence[str]],
    *,
    family: str,
    transposed: bool = False,
    padding: bool = False,
    before: str | None = None,
    after: Sequence[Site] = (),
    zero_fill: bool = False,
    **more: Any,
) -> Codebook:
    """`plain` for levels of several heads: `grid[level][head]` names a table of its own."""
    axis, heads = (0, len(grid[0])) if transposed else (1, len(grid[0]))
    dim, sizes = _fitting(part, grid, axis, padding)
    sites = []
    for level, (row, size) in enumerate(zip(grid, sizes, strict=True)):
        for head, name in enumerate(row):
            where = head if heads > 1 else None
            sites.append(Site(part.key(name), axis, "codes", level, where, window=((0, 0, size),) if padding else ()))
            for sums, counts in twins(part, name, padded=padding):
                sites.append(Site(part.key(sums), axis, "sums", level, where, counts=part.key(counts)))
    into = before if before and spelling(part, before) else None
    if into:
        sites.append(producer(part, into))
    folds = all(site.folds and site.bias for site in after)
    entered = into if into and pointwise(part, into) else None

    def table(opened: Checkpoint, name: str, size: int) -> torch.Tensor:
        stored = opened.get(part.key(name))
        return (stored.T if transposed else stored)[:size]

    def parts(opened: Checkpoint) -> Parts:
        import torch

        tables = [
            torch.stack([table(opened, name, size) for name in row]) for row, size in zip(grid, sizes, strict=True)
        ]
        return Parts(tuple(tables), project_in=affine(opened, part, entered) if entered else None)

    return Codebook(
        family=family,
        keys=tuple(tuple(part.key(name) for name in row) for row in grid),
        num_codes=tuple(sizes),
        dim=dim,
        heads=heads,
        dtype=part.infos[grid[0][0]].reads,
        parts=parts,
        residual=more.pop("residual", len(grid) > 1),
        metric=more.pop("metric", "euclidean"),
        outer_width=shape(part, entered)[1] if entered else None,
        ema_twins=tuple(site.key for site in sites if site.role == "sums"),
        sites=(*sites, *after),
        relies=relied(part, entered, "H*D", "W") if entered else (),
        zero_fill=zero_fill or not folds,
        **more,
    )


def _fitting(part: Section, grid: Sequence[Sequence[str]], axis: int, padding: bool) -> tuple[int, list[int]]:
    """(D, K of each level) of tables (K, D), or (D, K) where `axis` of the dimensions is 0. InputError where they do not fit."""
    axes = "K D" if axis else "D K"
    dim = part.sizes(grid[0][0], axes)[axis]
    sizes = []
    for row in grid:
        codes = part.sizes(row[0], axes)[1 - axis]
        for name in row:
            if len(row) != len(grid[0]) or part.sizes(name, axes) != ((codes, dim) if axis else (dim, codes)):
                raise misfit(part.key(name), part.shape(name), (codes, dim) if axis else (dim, codes))
        sizes.append(codes - padding)
    return dim, sizes


def reader(
    part: Section, layer: str, dim: int, *, axis: int = 1, offset: int = 0, level: int | None = None
) -> list[Site]:
    """The site of a layer that reads the quantised vector at `offset` of its input axis; none where it is absent or too narrow.

    A kernel wider than one is taken as zero padded: a constant does not fold into the bias at the borders.
    """
    found = spelling(part, layer)
    if found is None:
        return []
    size = part.shape(found[0])
    if len(size) <= axis:
        raise misfit(part.key(found[0]), size, ("out", dim) if axis else (dim, "out"))
    if size[axis] < offset + dim:
        return []
    name, norm = found
    bias = part.optional(f"{layer}.bias")
    return [
        Site(part.key(name), axis, "consumer", level, offset=offset, bias=bias, norm=norm, folds=pointwise(part, layer))
    ]


def heads_of(part: Section, name: str, *, axes: str) -> tuple[int, int, int]:
    """(H, K, D) of a three-dimensional table whose axes are named, such as "KHD"."""
    sizes = dict(zip(axes, part.sizes(name, " ".join(axes)), strict=True))
    return sizes["H"], sizes["K"], sizes["D"]


def to_heads(table: torch.Tensor, axes: str) -> torch.Tensor:
    """A three-dimensional table as (H, K, D)."""
    return table.permute([axes.index(name) for name in "HKD"])


def has_unit_rows(ckpt: Checkpoint, key: str) -> bool:
    """Whether all rows have unit length, to the precision of their type."""
    import torch

    table = ckpt.get(key).double()
    spread = (torch.linalg.vector_norm(table, dim=-1) - 1).abs()
    return bool((spread < (1e-4 if BYTES[ckpt.infos[key].reads] >= 4 else 2e-2)).all())
