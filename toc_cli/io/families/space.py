"""What is kept of a codebook's dimensions, and what that makes of a tensor along one axis.

Legend: L levels, H heads, D dimensions, D' kept ones, c the constant of the dropped dimensions.

A selection is the basis P (D, D') of unit vectors at the kept dimensions; a rotation is any P with orthonormal columns.
The reduced code is P^T e; what stands for it in full width is P P^T e + (I - P P^T) c (toc-math, "Sliced equivalence").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from toc_cli.io.checkpoint.stored_types import torch_type
from toc_cli.io.families.base import Codebook, Site
from toc_cli.io.families.layers import product


@dataclass(frozen=True)
class Space:
    """The kept space of a codebook: basis and constant, level by level and head by head."""

    basis: torch.Tensor
    """(L|1, H, D, D') float64, orthonormal columns, and columns of zeros where a level keeps fewer than another."""
    constant: torch.Tensor
    """(L, H, D) float64: what the dropped part of every code becomes, (I - P P^T) c."""
    kept: torch.Tensor | None
    """(L|1, H, D') int64 of a selection, -1 where a level keeps fewer than another; None for a rotation."""

    @property
    def size(self) -> int:
        """D', the largest over the levels."""
        return self.basis.shape[-1]

    @property
    def sizes(self) -> int | tuple[int, ...]:
        """D', or that of each level where they differ."""
        sizes = tuple(int(level[0].any(0).sum()) for level in self.basis)
        return sizes if len(set(sizes)) > 1 else self.size

    def blocks(self, site: Site, length: int) -> list[int]:
        """Heads whose dimensions stand one after the other along an axis of `length`; a shared axis counts as head 0."""
        heads, dim = self.basis.shape[1:3]
        if site.head is not None:
            return [site.head]
        return list(range(heads)) if length >= site.offset + heads * dim else [0]

    def level(self, site: Site) -> int:
        """The row of `basis` that serves a site."""
        return min(site.level or 0, self.basis.shape[0] - 1)

    def positions(self, site: Site, length: int) -> torch.Tensor:
        """Kept positions along the whole axis, neighbours of the code dimensions included."""
        assert self.kept is not None
        dim = self.basis.shape[2]
        blocks = self.blocks(site, length)
        starts = [site.offset + i * dim for i in range(len(blocks))]
        own = [self.kept[self.level(site), head] for head in blocks]
        inner = [start + kept[kept >= 0] for start, kept in zip(starts, own, strict=True)]
        return torch.cat([torch.arange(site.offset), *inner, torch.arange(starts[-1] + dim, length)])

    def dropped(self, site: Site, length: int) -> torch.Tensor:
        """Positions along the whole axis that a selection drops."""
        gone = torch.ones(length, dtype=torch.bool)
        gone[self.positions(site, length)] = False
        return gone.nonzero().flatten()

    def constants(self, site: Site, length: int, values: torch.Tensor) -> torch.Tensor:
        """`values` (L, H, D) along the axis (length,), zero beside the code dimensions; one consumer of all levels reads their sum."""
        row = values.sum(0) if site.role == "consumer" and site.level is None else values[site.level or 0]
        flat = row[self.blocks(site, length)].flatten()
        return torch.nn.functional.pad(flat, (site.offset, length - site.offset - flat.numel()))

    def reduce(self, tensor: torch.Tensor, site: Site) -> torch.Tensor:
        """The tensor in the kept space along the site's axis: a copy with its own storage."""
        length = tensor.shape[site.axis]
        if self.kept is not None:
            return tensor.index_select(site.axis, self.positions(site, length))
        return self._through(tensor, site, lambda basis: basis)

    def project(self, tensor: torch.Tensor, site: Site) -> torch.Tensor:
        """The tensor at full length with only its part in the kept space, P P^T v, along the site's axis: for a rotation."""
        return self._through(tensor, site, lambda basis: product(basis, basis.T))

    def _through(
        self, tensor: torch.Tensor, site: Site, matrix: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Each head's dimensions along the axis times what `matrix` makes of its basis (D, D'); what stands beside them stays."""
        dim = self.basis.shape[2]
        moved = tensor.double().movedim(site.axis, -1)
        blocks = self.blocks(site, tensor.shape[site.axis])
        pieces = [moved[..., : site.offset]]
        for i, head in enumerate(blocks):
            start = site.offset + i * dim
            pieces.append(product(moved[..., start : start + dim], matrix(self.basis[self.level(site), head])))
        pieces.append(moved[..., site.offset + len(blocks) * dim :])
        return torch.cat(pieces, -1).movedim(-1, site.axis).to(tensor.dtype).contiguous()


def space(codebook: Codebook, kept: torch.Tensor, fill: torch.Tensor, rotation: torch.Tensor | None = None) -> Space:
    """The kept space from indices (L|1, H, D', -1: none), the constant (L, H, D) and perhaps a rotation (D, D') or (L|1, H, D, D')."""
    fill = fill.to(torch_type(codebook.dtype)).double()  # the constant as the table's dtype holds it
    if rotation is not None:
        basis = rotation.double()
        basis = basis.expand(1, codebook.heads, *basis.shape) if basis.dim() == 2 else basis
        inside = (basis * (basis * fill.unsqueeze(-1)).sum(-2, keepdim=True)).sum(-1)  # P P^T c
        return Space(basis, fill - inside, None)
    basis = torch.nn.functional.one_hot(kept.clamp(min=0), codebook.dim).double() * (kept >= 0).unsqueeze(-1)
    basis = basis.transpose(-1, -2)
    return Space(basis, fill * (1 - basis.sum(-1)), kept)
