"""Further layouts read in their repositories' sources: rosinality's VQ-VAE-2, ReVQ, Jukebox."""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Parts, Site
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import heads_of, plain, reader


def find(ckpt: Checkpoint) -> list[Codebook]:
    """`quantize_{t,b}.embed`, `embeddings` of a section `quantizer`, `bottleneck.level_blocks.N.k`."""
    found = []
    for part in sections(ckpt):
        for match in part.matches(r"((?:.*\.)?)quantize_(t|b)\.embed"):
            found.append(_vqvae2(part, match[1], match[2]))
        if part.path[-1:] == ("quantizer",) and "embeddings" in part and len(part.shape("embeddings")) == 3:
            found.append(_revq(part))
        for match in part.matches(r"((?:.*\.)?)bottleneck\.level_blocks\.(\d+)\.k"):
            found.append(_jukebox(part, match[1], int(match[2])))
    return found


def _vqvae2(part: Section, root: str, which: str) -> Codebook:
    """Tables are (D, K). The bottom codes are read behind the upsampled top ones in one concatenation."""
    name = f"{root}quantize_{which}.embed"
    dim = part.sizes(name, "D K")[0]
    if which == "t":
        after = reader(part, f"{root}dec_t.blocks.0", dim) + reader(part, f"{root}upsample_t", dim, axis=0)
    else:
        upsampled = (
            part.sizes(f"{root}upsample_t.weight", "in out k k")[1] if f"{root}upsample_t.weight" in part else dim
        )
        after = reader(part, f"{root}dec.blocks.0", dim, offset=upsampled)
    return plain(
        part,
        [name],
        family="rosinality VQ-VAE-2",
        transposed=True,
        before=f"{root}quantize_conv_{which}",
        after=after,
        refusals={"sliced": "embed_dim also sizes upsample_t, the output of dec_t and the input of quantize_conv_b"},
    )


def _revq(part: Section) -> Codebook:
    heads, codes, dim = heads_of(part, "embeddings", axes="HKD")
    key = part.key("embeddings")
    return Codebook(
        family="ReVQ",
        keys=((key,) * heads,),
        num_codes=(codes,),
        dim=dim,
        heads=heads,
        metric="euclidean",
        dtype=part.infos["embeddings"].reads,
        parts=lambda ckpt: Parts((ckpt.get(key),)),
        sites=tuple(Site(key, 2, "codes", 0, head, ((0, head, head + 1),)) for head in range(heads)),
    )


def _jukebox(part: Section, root: str, level: int) -> Codebook:
    """The levels are independent time scales, each with its own features; `k` is all that the table is called."""
    name = f"{root}bottleneck.level_blocks.{level}.k"
    first = f"{root}decoders.{level}.level_blocks.{level}.model.0"
    return plain(
        part,
        [name],
        family="Jukebox VQ-VAE",
        after=reader(part, first, part.sizes(name, "K D")[1]),
        refusals={"sliced": "emb_width also sizes the blocks between the levels of the encoders and decoders"},
    )
