"""Image tokenizers in the layout of taming-transformers: `quantize.*` between `quant_conv` and `post_quant_conv`.

Covers VQGAN, EMAVQ and GumbelVQ of taming-transformers, LlamaGen, VAR and TiTok; files with a Hugging Face config belong to `image_vq`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Evidence, Mode, Parts, Site
from toc_cli.io.families.layers import affine, pointwise, relied, shape
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import plain, reader
from toc_cli.io.names import printable

MIXING = "the residual of each scale passes through 3x3 convolutions (quant_resi) that mix kept and dropped dimensions"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The tables named `quantize.embedding.weight` or `quantize.embed.weight`."""
    found = []
    for part in sections(ckpt):
        for match in part.matches(r"((?:.*\.)?)quantize\.embedding_vqkd\.weight"):
            _refuse_second_table(part, match[1], match.group())
        for match in part.matches(r"((?:.*\.)?)quantize\.embedding\.weight"):
            _refuse_second_table(part, match[1], match.group())
            found.append(_codebook(ckpt, part, match[1]))
        for match in part.matches(r"((?:.*\.)?)quantize\.embed\.weight"):
            if f"{match[1]}quantize.proj.weight" in part:
                found.append(_gumbel(part, match[1]))
    return found


def _refuse_second_table(part: Section, root: str, name: str) -> None:
    """InputError where one index looks up two tables at once, as in TokenFlow."""
    codes = part.sizes(name, "K D")[0]
    tables = [
        one
        for one in part.under(f"{root}quantize.")
        if re.fullmatch(r"quantize\.\w*embed\w*\.weight", one[len(root) :])
    ]
    others = [one for one in tables if one != name and part.shape(one)[:1] == (codes,)]
    if others:
        raise InputError(
            f"{printable(part.key(name))} and {printable(part.key(others[0]))} are looked up by one index (as in TokenFlow):"
            " the nearest code is that of a weighted sum of two distances, which is not read.",
            "--codebook KEY takes one table as it is.",
        )


def _codebook(ckpt: Checkpoint, part: Section, root: str) -> Codebook:
    name = f"{root}quantize.embedding.weight"
    dim = part.sizes(name, "K D")[1]
    after = reader(part, f"{root}post_quant_conv", dim)
    before = f"{root}quant_conv" if shape(part, f"{root}quant_conv")[:1] == (dim,) else None
    if part.under(f"{root}quantize.quant_resi."):
        return _var(part, root, name, after)
    if f"{root}latent_tokens" in part and shape(part, f"{root}decoder.decoder_embed"):
        return _titok(ckpt, part, root, name)
    if f"{root}quantize.codebook_used" in part or part.under(f"{root}encoder.conv_blocks."):
        return plain(
            part,
            [name],
            family="LlamaGen VQ",
            metric="cosine",
            unit_vectors=True,
            before=before,
            after=after,
            zero_fill=True,
            load_hint=lambda size: f"VQModel(ModelArgs(codebook_embed_dim={size}, …))",
        )
    refusals: dict[Mode, str] = {}
    if not after or before is None:
        refusals["sliced"] = "quant_conv and post_quant_conv are not both in this file"
    path = (*part.path[:-1], "hyper_parameters", "embed_dim")
    evidence = _evidence(ckpt, part, root)
    return plain(
        part,
        [name],
        family="taming-transformers VQGAN" if evidence != "assumed" else "VQGAN layout",
        evidence=evidence,
        before=before,
        after=after,
        refusals=refusals,
        value_edits=(lambda kept: {path: kept.shape[-1]}) if ckpt.values.get(path) == dim else None,
        load_hint=lambda size: f"embed_dim: {size} in the model's yaml",
    )


def _evidence(ckpt: Checkpoint, part: Section, root: str) -> Evidence:
    """IBQ and others store the same names and take the largest dot product; so only a class name or taming's EMA tells."""
    if any("hyper_parameters" in path and str(value).startswith("taming.") for path, value in ckpt.values.items()):
        return "stated"
    return "by structure" if f"{root}quantize.embedding.embed_avg" in part else "assumed"


def _titok(ckpt: Checkpoint, part: Section, root: str, name: str) -> Codebook:
    """TiTok: the config says whether rows and features are brought to unit length."""
    stated = _nested(ckpt.config or {}, "use_l2_norm")
    if not isinstance(stated, bool):
        raise InputError(
            f"{printable(part.key(name))} is TiTok's, whose config.json (use_l2_norm) is not here: it says how codes are looked up.",
            "Put config.json beside the file, or give --codebook KEY with --metric cosine or euclidean.",
        )
    dim = part.sizes(name, "K D")[1]
    into, out = f"{root}encoder.conv_out", f"{root}decoder.decoder_embed"
    before = into if shape(part, into)[:1] == (dim,) else None
    after = reader(part, out, dim) if shape(part, out)[1:] == (dim,) else []
    return plain(
        part,
        [name],
        family="TiTok",
        evidence="stated",
        metric="cosine" if stated else "euclidean",
        unit_vectors=stated,
        before=before,
        after=after,
        zero_fill=stated,
        refusals={"sliced": "token_size of its config also sizes its generator"},
    )


def _nested(config: Mapping[str, Any], name: str) -> Any:
    """A setting wherever a config nests it, None without it."""
    if name in config:
        return config[name]
    inner = (_nested(value, name) for value in config.values() if isinstance(value, Mapping))
    return next((value for value in inner if value is not None), None)


def _var(part: Section, root: str, name: str, after: list[Site]) -> Codebook:
    hits = f"{root}quantize.ema_vocab_hit_SV"
    scales = part.sizes(hits, "scales K")[0] if hits in part else "several"
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
    width = shape(part, logits)[1] if pointwise(part, logits) else part.sizes(f"{logits}.weight", "K W")[1]

    def parts(ckpt: Checkpoint) -> Parts:
        return Parts((ckpt.get(part.key(name)).unsqueeze(0),), logits=affine(ckpt, part, logits))

    codes, dim = part.sizes(name, "K D")
    after = reader(part, f"{root}post_quant_conv", dim)
    return Codebook(
        family="taming-transformers GumbelVQ",
        keys=((part.key(name),),),
        num_codes=(codes,),
        dim=dim,
        heads=1,
        metric="logits",
        dtype=part.infos[name].reads,
        parts=parts,
        outer_width=width,
        sites=(Site(part.key(name), 1, "codes", 0), *after),
        relies=relied(part, logits, "K", "W"),
        refusals={"sliced": "embed_dim also sizes quant_conv, whose output the logits are made of"},
        zero_fill=not (after and after[0].bias and pointwise(part, f"{root}post_quant_conv")),
        warnings=("assignment comes from logits: codes never change, only the looked-up vectors",),
    )
