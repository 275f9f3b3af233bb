"""Codebooks that are a product of a table and a linear layer: SimVQ (of vector-quantize-pytorch, of its own repository, of RQ-VAE
recommenders) and VQGAN-LC.

Legend: K codes, F width of the frozen table, D dimensions: codes (K, D) = table (K, F) @ weight (D, F)^T + bias (D,).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.layers import affine, pointwise, product, relied, shape, single
from toc_cli.io.families.names import Section, misfit, sections
from toc_cli.io.families.tables import reader
from toc_cli.io.families.vqp import NO_CONSUMER
from toc_cli.io.names import printable

LIBRARY = "vector-quantize-pytorch SimVQ"
LEVEL = r"(?:.*\.)?layers\.\d+\."


@dataclass(frozen=True)
class _Spelling:
    family: str
    root: str
    """Pattern of what stands before the names of a table and of its layer."""
    table: str
    layer: str
    beside: str = ""
    """A name under the root of the levels that must be there too."""
    neighbours: tuple[str, str] | None = None
    """The layers before and after, under the root of the model."""


_SPELLINGS = (
    _Spelling(LIBRARY, r"(?:.*\.)?", "frozen_codebook", "code_transform"),
    _Spelling("SimVQ", r"(?:.*\.)?quantize\.", "embedding.weight", "embedding_proj", neighbours=("quant_conv", "post_quant_conv")),
    _Spelling("VQGAN-LC", r"(?:.*\.)?", "tok_embeddings.weight", "codebook_projection", neighbours=("quant_conv", "post_quant_conv")),
    _Spelling("RQ-VAE recommender", LEVEL, "embedding.weight", "out_proj.0"),
    _Spelling("RQ-VAE recommender", LEVEL, "embedding.weight", "out_proj", beside="encoder.mlp.0.weight"),
    _Spelling("RQ-VAE recommender", LEVEL, "embedding.weight", "embedding_proj"),
)  # fmt: skip


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Every such codebook, alone or as the level of a residual."""
    return [book for section in sections(ckpt) for spelt in _SPELLINGS for book in _stacks(section, spelt)]


def _stacks(section: Section, spelt: _Spelling) -> list[Codebook]:
    stacks: dict[str, list[str]] = {}
    for match in section.matches(rf"({spelt.root}){re.escape(spelt.table)}"):
        layer = re.fullmatch(r"((?:.*\.)?)layers\.\d+\.", match[1])
        stacks.setdefault(layer[1] if layer else match[1], []).append(match[1])
    found = []
    for root, prefixes in stacks.items():
        turned = [prefix for prefix in prefixes if f"{prefix}{spelt.layer}.weight" in section]
        if turned and (not spelt.beside or f"{root}{spelt.beside}" in section):
            _refuse_mixed(section, spelt, prefixes, turned)
            found.append(_codebook(section, spelt, root, prefixes))
    return found


def _refuse_mixed(section: Section, spelt: _Spelling, prefixes: list[str], turned: list[str]) -> None:
    """InputError where some levels of a residual have the layer and others do not."""
    missing = [prefix for prefix in prefixes if prefix not in turned]
    if missing:
        bare, product = (printable(section.key(prefix + spelt.table)) for prefix in (missing[0], turned[0]))
        raise InputError(
            f"{bare} has no {spelt.layer}, {product} has one: some levels are products and others are not.",
            "--codebook KEY takes one table.",
        )


def _codebook(section: Section, spelt: _Spelling, root: str, prefixes: list[str]) -> Codebook:
    layers = [f"{prefix}{spelt.layer}" for prefix in prefixes]
    tables = [f"{prefix}{spelt.table}" for prefix in prefixes]
    dim, frozen = section.sizes(f"{layers[0]}.weight", "D F")
    for table, layer in zip(tables, layers, strict=True):
        if section.sizes(table, "K F")[1] != frozen:
            raise misfit(section.key(table), section.shape(table), ("K", frozen))
        if section.sizes(f"{layer}.weight", "D F") != (dim, frozen):
            raise misfit(section.key(f"{layer}.weight"), section.shape(f"{layer}.weight"), (dim, frozen))
        if f"{layer}.bias" in section and section.shape(f"{layer}.bias") != (dim,):
            raise misfit(section.key(f"{layer}.bias"), section.shape(f"{layer}.bias"), (dim,))
    before, after = _neighbours(section, spelt, root, dim)

    def parts(ckpt: Checkpoint) -> Parts:
        made = []
        for layer, table in zip(layers, tables, strict=True):
            rows, turn = ckpt.get(section.key(table)), affine(ckpt, section, layer)
            codes = product(rows, turn.weight.T)
            made.append((codes if turn.bias is None else codes + turn.bias).to(single(rows).dtype).unsqueeze(0))
        return Parts(tuple(made), project_in=affine(ckpt, section, before) if before else None)

    names = [name for layer in layers for name in (f"{layer}.weight", f"{layer}.bias")]
    sites = [Site(section.key(name), 0, "codes", level // 2) for level, name in enumerate(names) if name in section]
    if before:
        sites.append(Site(section.key(f"{before}.weight"), 0, "producer", bias=section.optional(f"{before}.bias")))
    name = f"{spelt.table} and {spelt.layer}"
    return Codebook(
        family=spelt.family,
        keys=tuple((section.key(table),) for table in tables),
        num_codes=tuple(section.shape(table)[0] for table in tables),
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=section.infos[f"{layers[0]}.weight"].reads,
        parts=parts,
        residual=tables[0] != f"{root}{spelt.table}",
        outer_width=shape(section, before)[1] if before else None,
        sites=(*sites, *after),
        relies=relied(section, before, "D", "W") if before else (),
        refusals=_refusals(section, spelt, prefixes, bool(before and after), bool(after)),
        load_hint=lambda size: _hint(spelt, size, frozen),
        zero_fill=True,
        warnings=(f"the codes are the product of {name}: the product is scored, {spelt.layer} is cut",),
    )


def _neighbours(section: Section, spelt: _Spelling, root: str, dim: int) -> tuple[str | None, list[Site]]:
    """The pointwise layer before the codes, and the sites of the one after them."""
    if spelt.neighbours is None:
        return None, []
    before, after = (root.removesuffix("quantize.") + layer for layer in spelt.neighbours)
    fits = pointwise(section, before) and shape(section, before)[0] == dim and f"{before}.weight" in section
    return before if fits else None, reader(section, after, dim)


def _refusals(section: Section, spelt: _Spelling, prefixes: list[str], known: bool, read: bool) -> dict[Mode, str]:
    refusals: dict[Mode, str] = {}
    alone = spelt.family == LIBRARY and all(name.startswith(tuple(prefixes)) for name in section)
    if not read:
        refusals["consumer"] = NO_CONSUMER
    if not known and not alone:
        refusals["sliced"] = (
            "the module must then read and give fewer dimensions, and the layers around it are not known"
        )
    return refusals


def _hint(spelt: _Spelling, size: int, frozen: int) -> str:
    if spelt.family == LIBRARY:
        return f"SimVQ(dim={size}, frozen_codebook_dim={frozen}, …), fed with the kept dimensions"
    return f"embed_dim: {size} in the model's yaml, with a frozen table of {frozen} dimensions"
