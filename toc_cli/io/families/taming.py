"""Image tokenizers in the layout of taming-transformers: `quantize.*` between `quant_conv` and `post_quant_conv`.

Covers VQGAN, EMAVQ and GumbelVQ of taming-transformers, LlamaGen, and VAR; files with a Hugging Face config belong to `image_vq`.
"""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.layers import affine, pointwise
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import plain, reader

MIXING = "the residual of each scale passes through 3x3 convolutions (quant_resi) that mix kept and dropped dimensions"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The tables named `quantize.embedding.weight` or `quantize.embed.weight`."""
    found = []
    for part in sections(ckpt):
        for match in part.matches(r"((?:.*\.)?)quantize\.embedding\.weight"):
            if len(part.shape(match.group())) == 2:
                found.append(_codebook(ckpt, part, match[1]))
        for match in part.matches(r"((?:.*\.)?)quantize\.embed\.weight"):
            if f"{match[1]}quantize.proj.weight" in part:
                found.append(_gumbel(part, match[1]))
    return found


def _codebook(ckpt: Checkpoint, part: Section, root: str) -> Codebook:
    name = f"{root}quantize.embedding.weight"
    dim = part.shape(name)[1]
    after = reader(part, f"{root}post_quant_conv", dim)
    if any(other.startswith(f"{root}quantize.quant_resi.") for other in part):
        return _var(part, root, name, after)
    if f"{root}quantize.codebook_used" in part or any(name.startswith(f"{root}encoder.conv_blocks.") for name in part):
        return plain(
            part,
            [name],
            family="LlamaGen VQ",
            metric="cosine",
            unit_vectors=True,
            before=f"{root}quant_conv",
            after=after,
            zero_fill=True,
            load_hint=lambda size: f"VQModel(ModelArgs(codebook_embed_dim={size}, …))",
        )
    refusals: dict[Mode, str] = {}
    if not after or f"{root}quant_conv.weight" not in part:
        refusals["sliced"] = "quant_conv and post_quant_conv are not both in this file"
    path = (*part.path[:-1], "hyper_parameters", "embed_dim")
    return plain(
        part,
        [name],
        family="taming-transformers VQGAN",
        twins=[(f"{root}quantize.embedding.embed_avg", f"{root}quantize.embedding.cluster_size")],
        before=f"{root}quant_conv",
        after=after,
        refusals=refusals,
        value_edits=(lambda kept: {path: kept.shape[-1]}) if ckpt.values.get(path) == dim else None,
        load_hint=lambda size: f"embed_dim: {size} in the model's yaml",
    )


def _var(part: Section, root: str, name: str, after: list[Site]) -> Codebook:
    hits = f"{root}quantize.ema_vocab_hit_SV"
    scales = part.shape(hits)[0] if hits in part else "several"
    return plain(
        part,
        [name],
        family="VAR multi-scale VQ-VAE",
        after=after,
        refusals={"masked": MIXING, "sliced": MIXING},
        warnings=(f"one table serves {scales} scales of one residual; tokens here are those of a single lookup",),
    )


def _gumbel(part: Section, root: str) -> Codebook:
    """taming's GumbelQuantize: tokens are the argmax of `proj`, vectors are looked up in `embed`."""
    name, logits = f"{root}quantize.embed.weight", f"{root}quantize.proj"
    width = part.shape(f"{logits}.weight")[1]

    def parts(ckpt: Checkpoint) -> Parts:
        return Parts((ckpt.get(part.key(name)).unsqueeze(0),), logits=affine(ckpt, part, logits))

    codes, dim = part.shape(name)
    after = reader(part, f"{root}post_quant_conv", dim)
    return Codebook(
        family="taming-transformers GumbelVQ",
        keys=((part.key(name),),),
        num_codes=(codes,),
        dim=dim,
        heads=1,
        metric="logits",
        dtype=part.infos[name].dtype,
        parts=parts,
        outer_width=width,
        sites=(Site(part.key(name), 1, "codes", 0), *after),
        refusals={"sliced": "embed_dim also sizes quant_conv, whose output the logits are made of"},
        zero_fill=not (after and after[0].bias and pointwise(part, f"{root}post_quant_conv")),
        warnings=("assignment comes from logits: codes never change, only the looked-up vectors",),
    )
