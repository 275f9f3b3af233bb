"""Mimi (the original, and in transformers, CSM and Moshi): two residual groups, codes stored as sums to be divided by usage.

Each group has a pair of projections without bias, so the constant of dropped dimensions cannot fold and is zero. The
library leaves the projections out where the inner width equals the outer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Relied, Site
from toc_cli.io.families.config import section
from toc_cli.io.families.layers import affine, consumer, levels, pointwise, producer, relied, shape, single
from toc_cli.io.families.names import Section, sections

if TYPE_CHECKING:
    import torch

LEAST_USAGE = 1e-5
"""`epsilon` of MimiEuclideanCodebook."""
CODES = r"(?P<root>.*?quantizer\.(?:semantic|acoustic)_residual_vector_quantizer\.)layers\.(?P<level>\d+)\.codebook\.embed_sum"
ORIGINAL = r"(?P<root>.*?quantizer\.rvq_(?:first|rest)\.)vq\.layers\.(?P<level>\d+)\._codebook\.embedding_sum"
"""The names of kyutai's own files; the projections and the usage are called as in transformers."""


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The semantic and the acoustic group of every Mimi in the file."""
    return [
        _codebook(ckpt, part, family, root, names)
        for part in sections(ckpt)
        for family, codes in (("mimi", CODES), ("mimi (original)", ORIGINAL))
        for root, names in levels(part, codes).items()
        if all(usage_name(name) in part for name in names)
    ]


def usage_name(name: str) -> str:
    """The per-code usage that a sum is divided by."""
    return name[: name.rindex(".") + 1] + "cluster_usage"


def _codebook(ckpt: Checkpoint, part: Section, family: str, root: str, names: list[str]) -> Codebook:
    dim = part.sizes(names[0], "K D")[1]
    projected = pointwise(part, root + "input_proj") and pointwise(part, root + "output_proj")
    outer = shape(part, root + "input_proj")[1] if projected else None
    found = section(ckpt, ("mimi",))
    hidden = found[2].get("hidden_size") if found else outer
    sites = [
        Site(part.key(name), axis=1, role="sums", level=n, counts=part.key(usage_name(name)), floor=LEAST_USAGE)
        for n, name in enumerate(names)
    ]
    refusals: dict[Mode, str] = {}
    if projected:
        sites += [producer(part, root + "input_proj"), consumer(part, root + "output_proj")]
    else:
        refusals["consumer"] = "without projections, both groups are summed before a layer reads them"

    def parts(opened: Checkpoint) -> Parts:
        tables = []
        for name in names:
            usage = single(opened.get(part.key(usage_name(name)))).clamp(min=LEAST_USAGE)
            tables.append((single(opened.get(part.key(name))) / usage[:, None])[None])
        around = [affine(opened, part, root + layer) if projected else None for layer in ("input_proj", "output_proj")]
        return Parts(tables=tuple(tables), project_in=around[0], project_out=around[1])

    def selection(basis: torch.Tensor, _: torch.Tensor) -> Mapping[str, torch.Tensor]:
        rows = basis[0, 0].T.to(ckpt.infos[part.key(names[0])].dtype)  # (D', D)
        prefix = part.key(names[0]).removesuffix(names[0]) + root
        return {
            f"{prefix}input_proj.weight": rows[..., None].contiguous(),
            f"{prefix}output_proj.weight": rows.T[..., None].contiguous(),
        }

    def config_edits(kept: torch.Tensor) -> Mapping[tuple[str, ...], Any]:
        if found is None:
            return {}
        path, size = found[1], kept.shape[-1]
        return {(*path, "codebook_dim"): size, (*path, "vector_quantization_hidden_dimension"): size}

    def kept_refusal(mode: Mode, size: int) -> str:
        if mode != "sliced" or size != hidden:
            return ""
        return f"at D' = {size} = hidden_size the library leaves the projections out; another --keep works"

    return Codebook(
        family=family,
        keys=tuple((part.key(name),) for name in names),
        num_codes=tuple(part.shape(name)[0] for name in names),
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=ckpt.infos[part.key(names[0])].reads,
        parts=parts,
        evidence="stated" if found else "by structure",
        residual=len(names) > 1,
        outer_width=outer,
        sites=tuple(sites),
        additions=None if projected else selection,
        config_edits=config_edits,
        relies=(
            *(Relied(part.key(name), ("K", "D"), level=level) for level, name in enumerate(names)),
            *(Relied(part.key(usage_name(name)), ("K",), level=level) for level, name in enumerate(names)),
            *(
                relied(part, root + "input_proj", "D", "W") + relied(part, root + "output_proj", "W", "D")
                if projected
                else ()
            ),
        ),
        refusals=refusals,
        kept_refusal=kept_refusal,
        load_hint=lambda size: (
            f"codebook_dim={size}, vector_quantization_hidden_dimension={size}"
            if family == "mimi"
            else f"SplitResidualVectorQuantizer(dimension={size}, …)"
        ),
        together=f"{part.key(names[0]).removesuffix(names[0])}mimi",
        zero_fill=True,
    )
