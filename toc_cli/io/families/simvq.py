"""SimVQ and ResidualSimVQ of vector-quantize-pytorch: the codes are a product, never a stored table.

Legend: K codes, F width of the frozen table, D dimensions: codes (K, D) = frozen_codebook (K, F) @ code_transform.weight (D, F)^T.
"""

from __future__ import annotations

import re

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.layers import product, single
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.vqp import NO_CONSUMER

FAMILY = "vector-quantize-pytorch SimVQ"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Every SimVQ, alone or as the level of a residual."""
    return [codebook for section in sections(ckpt) for codebook in _stacks(section)]


def _stacks(section: Section) -> list[Codebook]:
    stacks: dict[str, list[str]] = {}
    for match in section.matches(r"((?:.*\.)?)frozen_codebook"):
        if f"{match[1]}code_transform.weight" in section:
            layer = re.fullmatch(r"((?:.*\.)?)layers\.\d+\.", match[1])
            stacks.setdefault(layer[1] if layer else match[1], []).append(match[1])
    return [_codebook(section, root, prefixes) for root, prefixes in stacks.items()]


def _codebook(section: Section, root: str, prefixes: list[str]) -> Codebook:
    weights = [f"{prefix}code_transform.weight" for prefix in prefixes]
    tables = [f"{prefix}frozen_codebook" for prefix in prefixes]
    dim, frozen = section.shape(weights[0])
    alone = all(name.startswith(tuple(prefixes)) for name in section)
    around = "the module must then read and give fewer dimensions, and the layers around it are not known"
    refusals: dict[Mode, str] = {"consumer": NO_CONSUMER} if alone else {"consumer": NO_CONSUMER, "sliced": around}

    def parts(ckpt: Checkpoint) -> Parts:
        made = []
        for prefix, weight, table in zip(prefixes, weights, tables, strict=True):
            rows = ckpt.get(section.key(table))
            codes = product(rows, ckpt.get(section.key(weight)).T)
            bias = section.optional(f"{prefix}code_transform.bias")
            made.append((codes + ckpt.get(bias) if bias else codes).to(single(rows).dtype).unsqueeze(0))
        return Parts(tuple(made))

    biases = [f"{prefix}code_transform.bias" for prefix in prefixes]
    sites = [Site(section.key(weight), 0, "codes", level) for level, weight in enumerate(weights)]
    sites += [Site(section.key(bias), 0, "codes", level) for level, bias in enumerate(biases) if bias in section]
    return Codebook(
        family=FAMILY,
        keys=tuple((section.key(table),) for table in tables),
        num_codes=tuple(section.shape(table)[0] for table in tables),
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=section.infos[weights[0]].dtype,
        parts=parts,
        residual=tables[0] != f"{root}frozen_codebook",
        sites=tuple(sites),
        refusals=refusals,
        load_hint=lambda size: f"SimVQ(dim={size}, frozen_codebook_dim={frozen}, …), fed with the kept dimensions",
        zero_fill=True,
        warnings=(
            "the codes are the product of frozen_codebook and code_transform: the product is scored, code_transform is cut",
        ),
    )
