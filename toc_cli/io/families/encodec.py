"""EnCodec: residual levels straight on the encoder's output, no projection.

Covers transformers (also nested in MusicGen and others) and the original library. D is the width of the last encoder
convolution and of the first decoder convolution, both under weight norm; the sliced form cuts both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.config import section
from toc_cli.io.families.layers import consumer, last_layer, levels, producer, shape
from toc_cli.io.families.names import Section, sections

FOLDING_PADS = ("reflect", "replicate", "circular")
"""Paddings that repeat what is inside, so that a constant stays constant up to the border."""


@dataclass(frozen=True)
class _Spelling:
    family: str
    codes: str
    """Pattern of the code tables."""
    encoder: str
    tail: str
    """Layers are `{encoder}.N.{tail}`; the decoder spells them alike."""


_SPELLINGS = (
    _Spelling("encodec", r"(?P<root>.*?)quantizer\.layers\.(?P<level>\d+)\.codebook\.embed", "encoder.layers", "conv"),
    _Spelling(
        "encodec (original)",
        r"(?P<root>.*?)quantizer\.vq\.layers\.(?P<level>\d+)\._codebook\.embed",
        "encoder.model",
        "conv.conv",
    ),
)


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The residual levels of every EnCodec in the file."""
    return [
        _codebook(ckpt, part, spelt, root, names)
        for part in sections(ckpt)
        for spelt in _SPELLINGS
        for root, names in levels(part, spelt.codes).items()
    ]


def _codebook(ckpt: Checkpoint, part: Section, spelt: _Spelling, root: str, names: list[str]) -> Codebook:
    dim = part.shape(names[0])[-1]
    before = last_layer(part, root + spelt.encoder, spelt.tail)
    after = f"{root}{spelt.encoder.replace('encoder', 'decoder')}.0.{spelt.tail}"
    found = section(ckpt, ("encodec",))
    folds = found is not None and found[2].get("pad_mode", "reflect") in FOLDING_PADS
    sites, twins = table_sites(part, names)
    refusals: dict[Mode, str] = {}

    if shape(part, after)[1:2] == (dim,):
        sites.append(consumer(part, after, folds=folds))
    else:
        refusals["consumer"] = "the decoder that reads the quantised vector is not in this file"
    if before is None or shape(part, before)[:1] != (dim,) or "consumer" in refusals:
        refusals["sliced"] = "the layers around the codebook are not in this file"
    else:
        sites.append(producer(part, before))
        if f"{before.removesuffix('conv')}norm.weight" in part:
            refusals["sliced"] = (
                "the encoder ends in a group norm over all dimensions, whose statistics change when some are cut"
            )

    def config_edits(kept: torch.Tensor) -> Mapping[tuple[str, ...], Any]:
        if found is None:
            return {}
        path, size = found[1], kept.shape[-1]
        return {(*path, "hidden_size"): size, (*path, "codebook_dim"): size}

    return Codebook(
        family=spelt.family,
        keys=tuple((part.key(name),) for name in names),
        num_codes=tuple(part.shape(name)[0] for name in names),
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=ckpt.infos[part.key(names[0])].dtype,
        parts=lambda opened: Parts(tables=tuple(opened.get(part.key(name))[None] for name in names)),
        residual=len(names) > 1,
        ema_twins=twins,
        sites=tuple(sites),
        config_edits=config_edits,
        load_hint=lambda size: f"dimension={size}",
        refusals=refusals,
        zero_fill=not folds,
    )


def table_sites(part: Section, names: list[str]) -> tuple[list[Site], tuple[str, ...]]:
    """Sites of the tables `….embed` and of their EMA sums, one per level, and the full keys of the sums."""
    sites, twins = [], []
    for level, name in enumerate(names):
        sites.append(Site(part.key(name), axis=1, role="codes", level=level))
        sums, counts = f"{name}_avg", f"{name.removesuffix('embed')}cluster_size"
        if sums in part:
            twins.append(part.key(sums))
            sites.append(Site(twins[-1], axis=1, role="sums", level=level, counts=part.key(counts)))
    return sites, tuple(twins)
