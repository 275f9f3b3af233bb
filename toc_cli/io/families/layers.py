"""Layers as checkpoints spell them: a plain weight, or weight norm (w = g v / |v|) in one of its two spellings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Affine, Relied, Site
from toc_cli.io.families.names import Section, misfit

if TYPE_CHECKING:
    import torch

NormSpelling = Literal["", "weight_g", "original0"]

_WEIGHTS: dict[str, NormSpelling] = {
    "weight": "",
    "weight_v": "weight_g",
    "parametrizations.weight.original1": "original0",
}
_MAGNITUDES = {"weight_v": "weight_g", "parametrizations.weight.original1": "parametrizations.weight.original0"}


def spelling(part: Section, layer: str) -> tuple[str, NormSpelling] | None:
    """Name of the weight of `layer` (of its direction under weight norm) and how the norm is spelt; None if absent."""
    for name, norm in _WEIGHTS.items():
        if f"{layer}.{name}" in part:
            if norm:
                check_magnitude(part, f"{layer}.{_MAGNITUDES[name]}", f"{layer}.{name}")
            return f"{layer}.{name}", norm
    return None


def check_magnitude(part: Section, magnitude: str, direction: str) -> None:
    """InputError where g of weight norm is missing or does not go with v: as many axes, each of length one or as long."""
    v = part.shape(direction)
    g = part.shape(magnitude) if magnitude in part else ()
    fits = len(g) == len(v) and all(n in (1, size) for n, size in zip(g, v, strict=True)) and 1 in g and all(v)
    if not fits:
        raise misfit(part.key(direction).removesuffix(direction) + magnitude, g, (*v[:1], *(1 for _ in v[1:])))


def shape(part: Section, layer: str) -> tuple[int, ...]:
    """Shape of the weight of `layer`, `()` if it is not in the file."""
    found = spelling(part, layer)
    return () if found is None else part.shape(found[0])


def pointwise(part: Section, layer: str) -> bool:
    """Whether `layer` is there and acts on each position alone: linear, or a convolution of kernel size 1."""
    size = shape(part, layer)
    return len(size) >= 2 and all(n == 1 for n in size[2:])


def affine(ckpt: Checkpoint, part: Section, layer: str) -> Affine:
    """A pointwise layer as its matrix (out, in) and bias, weight norm applied. KeyError if it is not in the file."""
    name, norm = _required(part, layer)
    weight = ckpt.get(part.key(name))
    if norm:
        weight = weight_norm(ckpt.get(part.key(f"{layer}.{_MAGNITUDES[name.removeprefix(layer + '.')]}")), weight)
    bias = part.optional(f"{layer}.bias")
    if weight.dim() < 2:
        raise misfit(part.key(name), tuple(weight.shape), ("out", "in"))
    return Affine(weight.flatten(1), None if bias is None else ckpt.get(bias))


def relied(part: Section, layer: str, out: str, into: str) -> tuple[Relied, ...]:
    """The shapes of a pointwise layer from `into` to `out`, each a product of H, D and W; none where it is not in the file."""
    found = spelling(part, layer)
    if found is None:
        return ()
    bias = part.optional(f"{layer}.bias")
    weight = Relied(part.key(found[0]), (out, into), kernel=True)
    return (weight, Relied(bias, (out,))) if bias else (weight,)


def weight_norm(magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """w = g v / |v| (Salimans and Kingma 2016, eq. 2), |v| over the axes where g has length one."""
    import torch

    axes = [axis for axis, n in enumerate(magnitude.shape) if n == 1]
    return magnitude * direction / torch.linalg.vector_norm(direction, dim=axes, keepdim=True)


def single(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 where the file holds fewer bits: codes that are computed are not rounded to them."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (…, J) times b (J, I) in float64, the same bits whatever the thread count: plain sums, no BLAS."""
    import numpy as np
    import torch

    rows = a.double().reshape(-1, a.shape[-1]).numpy()
    found = np.einsum("ij,kj->ik", rows, b.double().T.contiguous().numpy(), optimize=False)
    return torch.from_numpy(found).reshape(*a.shape[:-1], b.shape[-1])


def producer(part: Section, layer: str, **where: Any) -> Site:
    """The site of the rows (and bias) of the layer before a codebook. KeyError if it is not in the file."""
    return _site(part, layer, axis=0, role="producer", **where)


def consumer(part: Section, layer: str, **where: Any) -> Site:
    """The site of the input columns of the layer after a codebook. KeyError if it is not in the file."""
    return _site(part, layer, axis=1, role="consumer", **where)


def levels(part: Section, pattern: str) -> dict[str, list[str]]:
    """Names that match `pattern` in full, in order of their level, by what its group `root` matched."""
    found: dict[str, list[str]] = {}
    for match in part.matches(pattern):
        found.setdefault(match["root"], []).append(match.group())
    return found


def last_layer(part: Section, stem: str, tail: str) -> str | None:
    """The layer `{stem}.N.{tail}` of the highest N in the file, None without one."""
    weights = "|".join(map(re.escape, _WEIGHTS))
    matches = part.matches(rf"(?P<layer>{re.escape(stem)}\.\d+\.{re.escape(tail)})\.(?:{weights})")
    return matches[-1]["layer"] if matches else None


def _site(part: Section, layer: str, **where: Any) -> Site:
    name, norm = _required(part, layer)
    return Site(key=part.key(name), norm=norm, bias=part.optional(f"{layer}.bias"), **where)


def _required(part: Section, layer: str) -> tuple[str, NormSpelling]:
    found = spelling(part, layer)
    if found is None:
        raise KeyError(layer)
    return found
