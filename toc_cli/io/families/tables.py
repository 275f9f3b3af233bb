"""Codebooks that are plain (K, D) tables between two known layers: what most hand-written checkpoints hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Parts, Site
from toc_cli.io.families.layers import affine, pointwise, producer, shape, spelling
from toc_cli.io.families.names import Section


def plain(
    part: Section,
    names: Sequence[str],
    *,
    family: str,
    transposed: bool = False,
    padding: bool = False,
    twins: Sequence[tuple[str, str]] = (),
    before: str | None = None,
    after: Sequence[Site] = (),
    zero_fill: bool = False,
    **more: Any,
) -> Codebook:
    """One codebook of one head whose level l is the table `names[l]`.

    Args:
        transposed: the tables are (D, K).
        padding: the last row is never chosen, and is not a code.
        twins: (sum of features, count) names of each level, where a running mean is kept; shaped like the table less its padding.
        before: the layer that gives the features, cut with the codebook; where it is pointwise its input may serve as features.
        after: the sites of the layers that read the quantised vector.
        more: further fields of `Codebook`.
    """
    axis = 0 if transposed else 1
    sizes = [part.shape(name)[1 - axis] - padding for name in names]
    levels: list[int | None] = list(range(len(names)))
    sites = [
        Site(part.key(name), axis, "codes", level, window=((0, 0, size),) if padding else ())
        for name, level, size in zip(names, levels, sizes, strict=True)
    ]
    for level, (sums, counts) in enumerate(twins):
        if sums in part and counts in part:
            sites.append(Site(part.key(sums), axis, "sums", level, counts=part.key(counts)))
    if before and spelling(part, before):
        sites.append(producer(part, before))
    folds = all(site.folds and site.bias for site in after)

    def parts(ckpt: Checkpoint) -> Parts:
        tables = [ckpt.get(part.key(name)) for name in names]
        rows = [(table.T if transposed else table)[:size] for table, size in zip(tables, sizes, strict=True)]
        into = affine(ckpt, part, before) if before and pointwise(part, before) else None
        return Parts(tuple(table.unsqueeze(0) for table in rows), project_in=into)

    return Codebook(
        family=family,
        keys=tuple((part.key(name),) for name in names),
        num_codes=tuple(sizes),
        dim=part.shape(names[0])[axis],
        heads=1,
        dtype=part.infos[names[0]].dtype,
        parts=parts,
        residual=more.pop("residual", len(names) > 1),
        metric=more.pop("metric", "euclidean"),
        outer_width=shape(part, before)[1] if before and pointwise(part, before) else None,
        ema_twins=tuple(site.key for site in sites if site.role == "sums"),
        sites=(*sites, *after),
        zero_fill=zero_fill or not folds,
        **more,
    )


def reader(
    part: Section, layer: str, dim: int, *, axis: int = 1, offset: int = 0, level: int | None = None
) -> list[Site]:
    """The site of a layer that reads the quantised vector at `offset` of its input axis; none where it is absent or too narrow.

    A kernel wider than one is taken as zero padded: a constant does not fold into the bias at the borders.
    """
    found = spelling(part, layer)
    if found is None or part.shape(found[0])[axis] < offset + dim:
        return []
    name, norm = found
    bias = part.optional(f"{layer}.bias")
    return [
        Site(part.key(name), axis, "consumer", level, offset=offset, bias=bias, norm=norm, folds=pointwise(part, layer))
    ]


def heads_of(part: Section, name: str, *, axes: str) -> tuple[int, int, int]:
    """(H, K, D) of a three-dimensional table whose axes are named, such as "KHD"."""
    sizes = dict(zip(axes, part.shape(name), strict=True))
    return sizes["H"], sizes["K"], sizes["D"]


def to_heads(table: torch.Tensor, axes: str) -> torch.Tensor:
    """A three-dimensional table as (H, K, D)."""
    return table.permute([axes.index(name) for name in "HKD"])
