"""Checkpoints of vector-quantize-pytorch: VectorQuantize and what is built from it (SimVQ has its own file).

Legend: L levels, H heads (groups of a GroupedResidualVQ count as heads), K codes, D dimensions, W outer width.
Read from the source of version 1.32.0; older releases store [K, D] tables without the leading axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Affine, Codebook, Mode, Norm, Parts, Relied, Site
from toc_cli.io.families.layers import single
from toc_cli.io.families.names import Section
from toc_cli.io.families.tables import has_unit_rows
from toc_cli.io.families.vqp_modules import Module, modules_of
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

FAMILY = "vector-quantize-pytorch"
NO_CONSUMER = "the module ends with its codebook: which layer reads the quantised vector only the code around it knows"
AFFINE = ("codebook_mean", "codebook_variance", "batch_mean", "batch_variance")
MIXING = "the residual of each scale passes through convolutions (phi) that mix kept and dropped dimensions"
EPS = 1e-5
"""The clamp of the variances in the library's affine form."""


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Every quantiser of the library, in the order of the file."""
    return [_quantiser(ckpt, module) for module in modules_of(ckpt)]


def _relied(module: Module) -> Iterator[Relied]:
    """The shapes of the tables, the projections of each group, the LayerNorm and the affine form."""
    section, (tables, _, dim) = module.section, module.shape()
    for level, group in module.books:
        stored = module.name(level, group, "embed")
        lead = (tables,) if len(section.shape(stored)) == 3 else ()
        yield Relied(section.key(stored), (*lead, module.shape(level)[1], dim))
        affine = [module.name(level, group, leaf) for leaf in AFFINE]
        if any(name in section for name in affine):
            for name in affine:
                if name not in section:
                    raise InputError(f"{printable(name)} is not in the file, though others of its affine form are.")
                yield Relied(section.key(name), (tables if section.shape(name)[:1] == (tables,) else 1, 1, dim))
    inner = dim if module.groups > 1 else module.heads * dim
    outer = (module.outer_width or inner) // module.groups
    for group in range(module.groups):
        for which, axes in (("project_in", (inner, outer)), ("project_out", (outer, inner))):
            layer = module.projection(group, which)
            if layer:
                yield Relied(section.key(f"{layer}.weight"), axes)
                if f"{layer}.bias" in section:
                    yield Relied(section.key(f"{layer}.bias"), axes[:1])
            elif group and module.projection(0, which):
                raise InputError(
                    f"{printable(module.around(group) + which)} is not in the file, though that of group 0 is."
                )
    for leaf in ("weight", "bias"):
        norm = f"{module.root}project_in.1.{leaf}"
        if norm in section:
            yield Relied(section.key(norm), (inner,))


def _quantiser(ckpt: Checkpoint, module: Module) -> Codebook:
    _, _, dim = module.shape()
    section, info = module.section, module.section.infos[module.name(0, 0, "embed")]
    random = any(name == f"{module.root.removesuffix('vq.')}rand_projs" for name in section)
    cosine = random or has_unit_rows(ckpt, info.key)
    qinco, affine, normed = (
        module.has("mlps."),
        module.has("batch_mean"),
        module.projection(0, "project_in.1") is not None,
    )
    sites = _sites(module)
    refusals: dict[Mode, str] = {}
    warnings = []
    if normed:
        refusals["sliced"] = "the LayerNorm after project_in spans all dimensions, so its statistics would change"
    if qinco:
        refusals["masked"] = (
            "every level after the first passes through an MLP (QINCo), which mixes the dimensions again"
        )
        refusals["sliced"] = refusals["masked"]
        warnings.append("only level 0 is a fixed table: the codes of the others come out of an MLP (QINCo)")
    if random:
        refusals["sliced"] = (
            "RandomProjectionQuantizer has no codebook_dim: the library always builds codes of its own width"
        )
        refusals["consumer"] = "only the indices of a RandomProjectionQuantizer are used, nothing reads its vectors"
        warnings.append(
            "codebook and projection are random by design: the scores of the dimensions carry no learned meaning"
        )
    if cosine and not random:
        warnings.append("all codes have unit norm: read as a cosine codebook (--metric euclidean says otherwise)")
    if affine:
        warnings.append(
            "the library moves batch_mean and batch_variance at every forward pass; tokens here are those of the stored statistics"
        )
    if _scales(module):
        refusals |= dict.fromkeys(("masked", "sliced"), MIXING)
        warnings.append("scales of a HierarchicalVQ share one residual; tokens here are those of a single lookup")
    if module.has("vq_bridge."):
        refusals |= dict.fromkeys(
            ("masked", "sliced"), "the table passes through a vq_bridge network before it is looked up"
        )
    if module.projection(0, "project_out") is None:
        refusals.setdefault("consumer", NO_CONSUMER)
    return Codebook(
        family=FAMILY,
        keys=tuple(
            tuple(_head_key(module, level, head) for head in range(module.heads)) for level in range(module.levels)
        ),
        num_codes=tuple(module.shape(level)[1] for level in range(module.levels)),
        dim=dim,
        heads=module.heads,
        metric="cosine" if cosine else "euclidean",
        dtype=info.reads,
        parts=lambda ckpt: _parts(ckpt, module, 1 if qinco else module.levels),
        residual=module.residual,
        own_dims_per_head=not module.shared_table,
        unit_vectors=cosine,
        stored_unit=cosine,
        exact_levels=1 if qinco else None,
        outer_width=module.outer_width,
        ema_twins=tuple(site.key for site in sites if site.role == "sums"),
        sites=tuple(sites),
        relies=tuple(_relied(module)),
        additions=None
        if module.outer_width
        else lambda basis, constant: _selections(module, basis, constant, info.dtype),
        stored_fill=(lambda ckpt, fill: _before_affine(ckpt, module, fill)) if affine else None,
        refusals=refusals,
        kept_refusal=lambda mode, size: _identity_trap(module, mode, size),
        load_hint=lambda size: _constructor(module, size),
        zero_fill=cosine or module.shared_levels,
        warnings=tuple(warnings),
    )


def _scales(module: Module) -> bool:
    """Whether this is one table of a HierarchicalVQ, whose scales pass through convolutions `phi*`."""
    around = re.sub(r"vqs?\.(?:\d+\.)?$", "", module.root)
    return around != module.root and any(name.startswith(f"{around}phi") for name in module.section)


def _head_key(module: Module, level: int, head: int) -> str:
    return module.section.key(module.name(level, head if module.groups > 1 else 0, "embed"))


def _sites(module: Module) -> list[Site]:
    section, (tables, _, _) = module.section, module.shape()
    sites: list[Site] = []
    for level in range(module.levels):
        for head in range(max(module.groups, tables)):
            group = head if module.groups > 1 else 0
            where = None if module.shared_table or module.heads == 1 else head
            for leaf, role in (("embed", "codes"), ("embed_avg", "sums"), *((name, "scale") for name in AFFINE)):
                name = module.name(level, group, leaf)
                if name not in section:
                    continue
                shape = section.shape(name)
                window = ((0, head, head + 1),) if tables > 1 else ()
                counts = section.optional(module.name(level, group, "cluster_size")) if role == "sums" else None
                if role == "sums" and counts is None:
                    continue
                sites.append(Site(section.key(name), len(shape) - 1, role, level, where, window, counts=counts))  # type: ignore[arg-type]
    for group in range(module.groups):
        where = group if module.groups > 1 else None
        into, out = module.projection(group, "project_in"), module.projection(group, "project_out")
        if into:
            bias = section.optional(f"{into}.bias")
            sites.append(Site(section.key(f"{into}.weight"), 0, "producer", head=where, bias=bias))
        if out:
            bias = section.optional(f"{out}.bias")
            sites.append(Site(section.key(f"{out}.weight"), 1, "consumer", head=where, bias=bias))
    return sites


def _tables(ckpt: Checkpoint, module: Module, level: int) -> torch.Tensor:
    """The effective codes (H, K, D) of a level."""
    import torch

    if module.has("vq_bridge."):
        name = printable(module.name(level, 0, "embed"))
        raise InputError(f"{name} passes through a vq_bridge network: the effective codes are not in the file.")
    parts = []
    for group in range(module.groups):
        table = ckpt.get(module.section.key(module.name(level, group, "embed")))
        table = table.reshape(-1, *table.shape[-2:])
        if module.name(level, group, "batch_mean") in module.section:
            mean, scale, shift = _affine(ckpt, module, level, group)
            table = (single(table) - mean) * scale + shift
        parts.append(table)
    stacked = torch.cat(parts)
    return stacked.expand(module.heads, *stacked.shape[1:]) if module.shared_table else stacked


def _affine(
    ckpt: Checkpoint, module: Module, level: int, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codebook mean, batch std / codebook std, batch mean), each (H, 1, D): code -> (code - mean) * ratio + batch mean."""
    codebook_mean, codebook_variance, batch_mean, batch_variance = (
        single(ckpt.get(module.section.key(module.name(level, group, name)))) for name in AFFINE
    )
    return codebook_mean, batch_variance.clamp(min=EPS).sqrt() / codebook_variance.clamp(min=EPS).sqrt(), batch_mean


def _before_affine(ckpt: Checkpoint, module: Module, fill: torch.Tensor) -> torch.Tensor:
    """What must stand in the table (L, H, D) so that the affine makes the constant of it."""
    stored = fill.clone()
    for level in range(module.levels):
        for group in range(module.groups):
            mean, scale, shift = (t.double().squeeze(1) for t in _affine(ckpt, module, level, group))
            rows = slice(group, group + 1) if module.groups > 1 else slice(None)
            stored[level, rows] = (fill[level, rows] - shift) / scale + mean
    return stored


def _parts(ckpt: Checkpoint, module: Module, levels: int) -> Parts:
    import torch

    section = module.section

    def affine(which: str) -> Affine | None:
        weights, biases = [], []
        for group in range(module.groups):
            name = module.projection(group, which)
            if name is None:
                return None
            weights.append(ckpt.get(section.key(f"{name}.weight")))
            bias = section.optional(f"{name}.bias")
            biases.append(ckpt.get(bias) if bias else weights[-1].new_zeros(weights[-1].shape[0]))
        return Affine(torch.block_diag(*weights) if len(weights) > 1 else weights[0], torch.cat(biases))

    norm, name = None, f"{module.root}project_in.1"
    if f"{name}.weight" in section:
        shift = section.optional(f"{name}.bias")
        norm = Norm(ckpt.get(section.key(f"{name}.weight")), ckpt.get(shift) if shift else None)
    tables = tuple(_tables(ckpt, module, level) for level in range(levels))
    return Parts(tables, affine("project_in"), norm, affine("project_out"))


def _selections(
    module: Module, basis: torch.Tensor, constant: torch.Tensor, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Projections for a module that had none: x -> P^T x before, q -> P q + c after, block by block over the heads."""
    import torch

    if basis.shape[-1] == basis.shape[-2]:
        return {}
    section, first = module.section, next(iter(module.section.infos.values()))
    lead = first.key[: len(first.key) - len(first.name)]
    offset = constant.sum(0)
    added = {}
    for group in range(module.groups):
        heads = [group] if module.groups > 1 else list(range(module.heads))
        blocks = torch.block_diag(*(basis[0, head] for head in heads)).to(dtype)
        around = module.around(group).replace(".", _dot(section))
        added[f"{lead}{around}project_in{_dot(section)}weight"] = blocks.T.contiguous()
        added[f"{lead}{around}project_in{_dot(section)}bias"] = torch.zeros(blocks.shape[1], dtype=dtype)
        added[f"{lead}{around}project_out{_dot(section)}weight"] = blocks.contiguous()
        added[f"{lead}{around}project_out{_dot(section)}bias"] = offset[heads].flatten().to(dtype)
    return added


def _dot(section: Section) -> str:
    """How the container writes the dots of a name."""
    return "/" if any("/" in info.name for info in section.infos.values()) else "."


def _identity_trap(module: Module, mode: Mode, size: int) -> str:
    """The library builds no projections where heads x codebook_dim equals dim, and then cannot load those of the file."""
    inner = (1 if module.groups > 1 else module.heads) * size
    outer = module.width // module.groups
    if mode == "sliced" and inner == outer and size != module.shape()[2]:
        wide = f"{module.heads} heads of {size} dimensions make {inner}, the width of the module"
        return f"{wide}, and the library then builds no projections to load"
    return ""


def _constructor(module: Module, size: int) -> str:
    if not module.residual:
        heads = f", heads={module.heads}" if module.heads > 1 else ""
        return f"VectorQuantize(dim={module.width}{heads}, codebook_dim={size}, …)"
    if module.groups > 1:
        return f"GroupedResidualVQ(dim={module.width}, groups={module.groups}, codebook_dim={size}, …)"
    return f"ResidualVQ(dim={module.width}, codebook_dim={size}, …)"
