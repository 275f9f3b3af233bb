"""The generic engine of the emit modes: from the sites of a codebook to the tensors of an edited copy.

Legend: as of `space`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families import moments
from toc_cli.io.families.base import Codebook, Mode, Site
from toc_cli.io.families.copies import sites_of
from toc_cli.io.families.layers import product, weight_norm
from toc_cli.io.families.offered import cut_keys, supported
from toc_cli.io.families.space import Space, space
from toc_cli.io.names import printable

DIRECTION_TO_MAGNITUDE = {"weight_g": ("weight_v", "weight_g"), "original0": ("original1", "original0")}


@dataclass(frozen=True)
class Dimensions:
    """A cut of dimensions, or a rotation into fewer: the arguments of `edits`."""

    kept: torch.Tensor
    fill: torch.Tensor
    rotation: torch.Tensor | None = None

    def edits(self, ckpt: Checkpoint, book: Codebook, mode: Mode, on: Edits) -> Edits:
        """As of `cut.Cut`."""
        return edits(ckpt, book, mode, kept=self.kept, fill=self.fill, rotation=self.rotation, on=on)


def edits(
    ckpt: Checkpoint,
    codebook: Codebook,
    mode: Mode,
    *,
    kept: torch.Tensor,
    fill: torch.Tensor,
    rotation: torch.Tensor | None = None,
    on: Edits | None = None,
) -> Edits:
    """The edits of one mode for one codebook, on top of those made before it for other codebooks of the file.

    Args:
        kept: (L|1, H, D') int64, ascending, then -1 for a level that keeps fewer; ignored under a rotation.
        fill: (L, H, D) float64, the constant c; values at kept dimensions do not matter.
        rotation: (D, D') or (L|1, H, D, D'), orthonormal columns, then zeros for a level that keeps fewer.

    Raises:
        UsageError: the mode is not offered, or two codebooks ask for different values of one configuration entry.
    """
    where = space(codebook, kept, fill, rotation)
    reason = supported(ckpt, codebook, where.sizes, rotated=rotation is not None)[mode]
    if reason:
        raise UsageError(
            f"--emit {mode} is not possible for {printable(codebook.shown)}: {reason}.", "Try another --emit."
        )
    edit = _Edit(ckpt, codebook, where, on or Edits())
    {"codebook": lambda: None, "masked": edit.masked, "sliced": edit.sliced, "consumer": edit.consumer}[mode]()
    edit.tensors = keep_sharing(ckpt, edit.tensors, edit.on)
    return edit.result(mode)


class _Edit:
    """The growing set of tensors of one mode."""

    def __init__(self, ckpt: Checkpoint, codebook: Codebook, where: Space, on: Edits) -> None:
        self.ckpt, self.codebook, self.space, self.on = ckpt, codebook, where, on
        self.tensors: dict[str, torch.Tensor] = dict(on.tensors)
        self.moments = moments.of_parameters(ckpt, cut_keys(codebook), codebook.copies).found

    def get(self, key: str) -> torch.Tensor:
        return self.tensors[key] if key in self.tensors else self.ckpt.get(key)

    def sites(self, *roles: str) -> Iterator[Site]:
        return sites_of(self.ckpt, self.codebook, *roles)

    def masked(self) -> None:
        values = self.space.constant
        if self.codebook.stored_fill:
            values = self.codebook.stored_fill(self.ckpt, values)
        for site in self.sites("codes", "sums"):
            tensor = self.get(site.key).clone()
            part = narrow(tensor, site)
            constant = self.space.constants(site, tensor.shape[site.axis], values)
            if self.space.kept is None:
                shifted = self.space.project(part, site).double().movedim(site.axis, -1) + self._times(
                    site, tensor, constant
                )
                part.movedim(site.axis, -1).copy_(shifted)
            else:
                dropped = self.space.dropped(site, tensor.shape[site.axis])
                filled = self._times(site, tensor, constant[dropped])
                part.movedim(site.axis, -1)[..., dropped] = filled.to(tensor.dtype)
            if site.role == "codes" and self.codebook.stored_unit:
                rows = part.movedim(site.axis, -1)
                rows.copy_(renormalised(rows))
            self.tensors[site.key] = tensor

    def _times(self, site: Site, tensor: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        """A constant along the axis as a site stores it: of `sums`, times the count of each code."""
        if site.role != "sums":
            return constant
        assert site.counts is not None
        counts = self.get(site.counts).double().clamp(min=site.floor)
        counts = counts.reshape([n for i, n in enumerate(tensor.shape) if i != site.axis]).unsqueeze(site.axis)
        return narrow(counts, site).movedim(site.axis, -1) * constant

    def sliced(self) -> None:
        for site in self.sites("consumer"):
            self.fold(site)
        before: dict[tuple[str, int], torch.Tensor] = {}
        for site in self.sites("codes", "sums", "scale", "producer", "consumer"):
            if site.norm:
                self.cut_normed(site)
            else:
                self.cut(site, before)
            for key in self.moments.get(site.key, ()):
                self.tensors[key] = self.space.reduce(self.ckpt.get(key), site)
            if site.role == "producer" and site.bias:
                bias = Site(site.bias, 0, "producer", site.level, site.head, offset=site.offset)
                for key in (site.bias, *self.moments.get(site.bias, ())):
                    self.tensors[key] = self.space.reduce(self.get(key), bias)
        if self.codebook.additions:
            self.tensors.update(self.codebook.additions(self.space.basis, self.space.constant))

    def cut(self, site: Site, before: dict[tuple[str, int], torch.Tensor]) -> None:
        """Reduce one tensor; the further heads or levels inside it then write their own windows."""
        whole = before.get((site.key, site.axis))
        if whole is None:
            whole = before[site.key, site.axis] = self.get(site.key)
            self.tensors[site.key] = self.space.reduce(whole, site)
        elif site.window:
            narrow(self.tensors[site.key], site).copy_(self.space.reduce(narrow(whole, site), site))
        if site.role == "codes" and self.codebook.stored_unit:
            part = narrow(self.tensors[site.key], site).movedim(site.axis, -1)
            part.copy_(renormalised(part))

    def cut_normed(self, site: Site) -> None:
        """Reduce a weight-normed layer: exact along the axis of its magnitude, else through the weight itself."""
        size = self.get(magnitude_key(site))
        if self.space.kept is not None and size.shape[site.axis] > 1:
            self.tensors[magnitude_key(site)] = self.space.reduce(size, site)
            self.tensors[site.key] = self.space.reduce(self.get(site.key), site)
        else:
            self.set_weight(site, self.space.reduce(self.weight(site), site))

    def consumer(self) -> None:
        for site in self.sites("consumer"):
            self.fold(site)
            weight = self.weight(site) if site.norm else self.get(site.key)
            if self.space.kept is None:
                weight = self.space.project(weight, site)
            else:
                weight = weight.index_fill(site.axis, self.space.dropped(site, weight.shape[site.axis]), 0)
            if site.norm:
                self.set_weight(site, weight)
            else:
                self.tensors[site.key] = weight

    def fold(self, site: Site) -> None:
        """Add W[:, dropped] c to the bias of a consumer; sum over its kernel, output channels first or right after the axis."""
        tensor = self.get(site.key)
        constant = self.space.constants(site, tensor.shape[site.axis], self.space.constant)
        if not constant.any():
            return
        if not (site.folds and site.bias):
            raise UsageError(
                f"The constant of the dropped dimensions does not fold into {printable(site.key)} exactly.",
                "Use --fill zero.",
            )
        moved = product(self.weight(site).movedim(site.axis, -1), constant[:, None])
        bias = self.get(site.bias)
        self.tensors[site.bias] = (bias.double() + moved.reshape(bias.shape[0], -1).sum(1)).to(bias.dtype)

    def weight(self, site: Site) -> torch.Tensor:
        """The weight of a layer in float64: g v / |v| where it is weight-normed, |v| over the axes where g has length one."""
        tensor = self.get(site.key).double()
        if not site.norm:
            return tensor
        return weight_norm(self.get(magnitude_key(site)).double(), tensor)

    def set_weight(self, site: Site, weight: torch.Tensor) -> None:
        """Write a weight as magnitude and direction; a channel that lost all of its weight gets magnitude 0 and any direction."""
        stored = self.get(magnitude_key(site))
        size = norm_beside(weight, stored)
        self.tensors[magnitude_key(site)] = size.to(stored.dtype)
        direction = torch.where(size > 0, weight, torch.ones_like(weight))
        self.tensors[site.key] = direction.to(stored.dtype).contiguous()

    def result(self, mode: Mode) -> Edits:
        """The tensors, and what the sliced form changes in the configuration."""
        codebook, kept = self.codebook, self.space.kept
        config, values = dict(self.on.config), dict(self.on.values)
        if mode == "sliced":
            if kept is None:
                kept = torch.arange(self.space.size).expand(*self.space.basis.shape[:2], self.space.size)
            for target, change in ((config, codebook.config_edits), (values, codebook.value_edits)):
                for path, value in (change(kept) if change else {}).items():
                    if target.setdefault(path, value) != value:
                        raise UsageError(
                            f"Two codebooks ask for {'.'.join(path)} = {target[path]} and {value}.",
                            "Give them the same --keep.",
                        )
        return Edits(self.tensors, config, values)


def keep_sharing(ckpt: Checkpoint, tensors: Mapping[str, torch.Tensor], on: Edits) -> dict[str, torch.Tensor]:
    """The edited tensors and, where the file has others that share their storage with the same content, the same edit of those."""
    infos, found = ckpt.infos, dict(tensors)
    mine = [key for key in tensors if key in infos and key not in on.tensors and infos[key].storage is not None]
    shared: dict[tuple[object, ...], list[str]] = {}
    for info in infos.values():
        shared.setdefault((info.storage, info.shape), []).append(info.key)
    done: set[str] = set()
    for key in mine:
        if key not in done:
            group = shared[infos[key].storage, infos[key].shape]
            same = [other for other in group if other == key or torch.equal(ckpt.get(other), ckpt.get(key))]
            found.update(dict.fromkeys(same, tensors[key]))
            done.update(same)
    return found


def narrow(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    """The view of a site's window."""
    for axis, start, stop in site.window:
        tensor = tensor.narrow(axis, start, stop - start)
    return tensor


def renormalised(rows: torch.Tensor) -> torch.Tensor:
    """Rows (..., D) of unit length; rows of zeros stay."""
    return torch.nn.functional.normalize(rows.double(), dim=-1).to(rows.dtype)


def norm_beside(weight: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """|v| over the axes where a magnitude `size` has length one, kept as axes."""
    return torch.linalg.vector_norm(weight, dim=[axis for axis, n in enumerate(size.shape) if n == 1], keepdim=True)


def magnitude_key(site: Site) -> str:
    """The key of the magnitude g beside the direction v of a weight-normed layer."""
    direction, size = DIRECTION_TO_MAGNITUDE[site.norm]
    return site.key.removesuffix(direction) + size
