"""Quantisers that keep their codes at unit length by a running mean (NormEMA): BEiT v2, BEATs, LaBraM, NeuroLM; S3 tokenizer v1.

Features are brought to unit length, the rows are taken as they are stored. Where those have unit length too, the nearest is the one
of the largest dot product; else (S3's mean of unit vectors) it is the nearest to the features at unit length.
"""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook
from toc_cli.io.families.layers import shape
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import has_unit_rows, plain, reader

NORM_EMA, S3 = "NormEMA (BEiT v2, BEATs, LaBraM)", "S3 tokenizer v1"
WIDTH = "the width of the codes is set in code around the layers that make and read them"
READER = "the layer that reads the quantised vector is not in this file, or not known"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """`quantize.embedding.weight` with the buffer `initted` of its EMA, and `quantizer._codebook.embed` behind a speech encoder."""
    found = []
    for part in sections(ckpt):
        for match in part.matches(r"((?:.*\.)?)quantize\.embedding\.weight"):
            stem = f"{match[1]}quantize."
            if f"{stem}embedding.initted" in part and f"{stem}cluster_size" in part:
                found.append(_codebook(ckpt, part, NORM_EMA, match.group(), match[1]))
        for match in part.matches(r"((?:.*\.)?)quantizer\._codebook\.embed"):
            statistics = [f"{match[1]}quantizer._codebook.{leaf}" for leaf in ("initted", "inited", "cluster_size")]
            if f"{match[1]}encoder.conv1.weight" in part and not any(name in part for name in statistics):
                found.append(_codebook(ckpt, part, S3, match.group(), match[1]))
    return found


def _codebook(ckpt: Checkpoint, part: Section, family: str, name: str, root: str) -> Codebook:
    dim = part.sizes(name, "K D")[1]
    unit = has_unit_rows(ckpt, part.key(name))
    decoder = f"{root}decoder.patch_embed.proj"
    after = reader(part, decoder, dim) if shape(part, decoder)[1:] == (dim, 1, 1) else []
    return plain(
        part,
        [name],
        family=family,
        metric="cosine" if unit else "euclidean",
        unit_vectors=unit,
        stored_unit=unit,
        unit_in=not unit,
        after=after,
        zero_fill=unit,
        refusals={"sliced": WIDTH} if after else {"sliced": WIDTH, "consumer": READER},
    )
