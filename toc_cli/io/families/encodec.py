"""EnCodec: residual levels straight on the encoder's output, no projection.

Covers transformers (also nested in MusicGen and others), the original library, AudioCraft and SpeechTokenizer. D is the
width of the last encoder convolution and of the first decoder one, mostly under weight norm; the sliced form cuts both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Site
from toc_cli.io.families.config import section
from toc_cli.io.families.layers import consumer, last_layer, levels, producer, shape
from toc_cli.io.families.names import Section, sections

FOLDING_PADS = ("reflect", "replicate", "circular")
"""Paddings that repeat what is inside, so that a constant stays constant up to the border."""
AUDIOCRAFT = ("xp.cfg",)
"""AudioCraft keeps its settings as YAML text in the file."""
SEANET = r"(?m)^(seanet:[ \t]*\n(?:[ \t]+.*\n)*?[ \t]+{name}:[ \t]*)([\w-]+)[ \t]*$"


@dataclass(frozen=True)
class _Spelling:
    codes: str
    """Pattern of the code tables."""
    encoder: str
    tail: str
    """Layers are `{encoder}.N.{tail}`; the decoder spells them alike."""


_SPELLINGS = {
    "encodec": _Spelling(
        r"(?P<root>.*?)quantizer\.layers\.(?P<level>\d+)\.codebook\.embed",
        "encoder.layers",
        "conv",
    ),
    "encodec (original)": _Spelling(
        r"(?P<root>.*?)quantizer\.vq\.layers\.(?P<level>\d+)\._codebook\.embed",
        "encoder.model",
        "conv.conv",
    ),
}


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The residual levels of every EnCodec in the file."""
    return [
        _codebook(ckpt, part, family, root, names)
        for part in sections(ckpt)
        for family, spelt in _SPELLINGS.items()
        for root, names in levels(part, spelt.codes).items()
        if len(part.shape(names[0])) == 2
    ]


def _codebook(ckpt: Checkpoint, part: Section, family: str, root: str, names: list[str]) -> Codebook:
    dim, spelt = part.sizes(names[0], "K D")[1], _SPELLINGS[family]
    before = last_layer(part, root + spelt.encoder, spelt.tail)
    after = f"{root}{spelt.encoder.replace('encoder', 'decoder')}.0.{spelt.tail}"
    head = re.sub(r"feature_extractor\.encodec\.$", "backbone.embed", root)
    unused = None
    if head != root and shape(part, head)[1:2] == (dim,):
        # WavTokenizer: its own head reads the codes; the decoder of encodec is in the file and never called
        family, unused, after = "wavtokenizer", after, head
    semantic = root + "transform"  # SpeechTokenizer reads its first level once more, for the semantic teacher
    if family == "encodec (original)" and AUDIOCRAFT in ckpt.values:
        family = "audiocraft"
    elif family == "encodec (original)" and shape(part, semantic)[1:] == (dim,):
        family = "speechtokenizer"
    sites, twins = table_sites(part, names)
    refusals: dict[Mode, str] = {}
    if shape(part, after)[1:2] == (dim,):
        sites.append(consumer(part, after, folds=_pad_mode(ckpt, family) in FOLDING_PADS))
    else:
        refusals["consumer"] = "the decoder that reads the quantised vector is not in this file"
    if unused and shape(part, unused)[1:2] == (dim,):
        sites.append(replace(consumer(part, unused), role="scale"))
    if family == "speechtokenizer":
        sites.append(consumer(part, semantic, level=0))
    if before is None or shape(part, before)[:1] != (dim,) or "consumer" in refusals:
        refusals["sliced"] = "the layers around the codebook are not in this file"
    else:
        sites.append(producer(part, before))
        if f"{before.removesuffix('conv')}norm.weight" in part:
            refusals["sliced"] = (
                "the encoder ends in a group norm over all dimensions, whose statistics change when some are cut"
            )
    return Codebook(
        family=family,
        keys=tuple((part.key(name),) for name in names),
        num_codes=tuple(part.shape(name)[0] for name in names),
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=ckpt.infos[part.key(names[0])].reads,
        parts=lambda opened: Parts(tables=tuple(opened.get(part.key(name))[None] for name in names)),
        evidence="stated" if section(ckpt, ("encodec",)) or family == "audiocraft" else "by structure",
        residual=len(names) > 1,
        ema_twins=twins,
        sites=tuple(sites),
        config_edits=lambda kept: _config_edits(ckpt, family, dim, kept.shape[-1]),
        value_edits=lambda kept: _value_edits(ckpt, family, dim, kept.shape[-1]),
        load_hint=lambda size: f"dimension={size}",
        refusals=refusals,
        zero_fill=not all(site.folds and site.bias for site in sites if site.role == "consumer"),
    )


def table_sites(part: Section, names: list[str]) -> tuple[list[Site], tuple[str, ...]]:
    """Sites of the tables `….embed` and of their EMA sums, one per level, and the full keys of the sums."""
    sites, twins = [], []
    for level, name in enumerate(names):
        sites.append(Site(part.key(name), axis=1, role="codes", level=level))
        sums, counts = f"{name}_avg", f"{name.removesuffix('embed')}cluster_size"
        if sums in part and counts in part:
            twins.append(part.key(sums))
            sites.append(Site(twins[-1], axis=1, role="sums", level=level, counts=part.key(counts)))
    return sites, tuple(twins)


def _pad_mode(ckpt: Checkpoint, family: str) -> str:
    """The padding of the convolutions, "" where the file does not tell."""
    if family == "audiocraft":
        found = re.search(SEANET.format(name="pad_mode"), str(ckpt.values[AUDIOCRAFT]))
        return found[2] if found else ""
    config = section(ckpt, ("encodec",))
    return config[2].get("pad_mode", "reflect") if config and family == "encodec" else ""


def _config_edits(ckpt: Checkpoint, family: str, dim: int, size: int) -> Mapping[tuple[str, ...], Any]:
    config = section(ckpt, ("encodec",))
    if family == "encodec" and config:
        return {(*config[1], "hidden_size"): size, (*config[1], "codebook_dim"): size}
    if family == "speechtokenizer" and (ckpt.config or {}).get("dimension") == dim:
        return {("dimension",): size}
    return {}


def _value_edits(ckpt: Checkpoint, family: str, dim: int, size: int) -> Mapping[tuple[str, ...], Any]:
    if family != "audiocraft":
        return {}
    pattern = SEANET.format(name="dimension").replace(r"[\w-]+", str(dim))
    return {AUDIOCRAFT: re.sub(pattern, rf"\g<1>{size}", str(ckpt.values[AUDIOCRAFT]))}
