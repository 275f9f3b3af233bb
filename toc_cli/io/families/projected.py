"""Residual codecs in which every level has its own projections: DAC, Higgs audio v2, BigCodec, FACodec, BiCodec, Qwen3-TTS.

The residual lives in the outer space, so each level may keep its own dimensions, and the projection out of a level is
part of what later levels see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Metric, Mode, Parts, Site
from toc_cli.io.families.config import section
from toc_cli.io.families.encodec import table_sites
from toc_cli.io.families.layers import affine, consumer, levels, producer, relied, shape
from toc_cli.io.families.names import Section, sections
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

AFTER_OTHERS = "FACodec's third quantiser reads what the first two left of the features: give it those rows"
UNSTATED = "use_l2_normlize of its settings, which says how codes are looked up, is not here: --metric cosine or euclidean says it"
DECODER_UNIT = r".*decoder\.model\.\d+\.block\.\d+\.block\.\d+\.(?:weight|weight_v|parametrizations\.weight\.original1)"
NOISE_BLOCK = r".*decoder\.model\.\d+\.block\.\d+\.linear\..*"
ORIGINAL_DAC = ("metadata", "kwargs", "codebook_dim")


@dataclass(frozen=True)
class _Kind:
    family: str
    codes: str
    """Pattern of the code tables."""
    table: str
    """What follows the stem of a level in the name of its table."""
    before: str
    after: str
    metric: Metric
    config: str
    """`model_type` of its config."""
    beside: str = ""
    """A name that stands beside every table."""
    assumed: bool = False
    """Whether its settings, which the file does not hold, say how codes are looked up."""


_KINDS = (
    _Kind(
        "dac",
        r"(?P<root>.*?)quantizer\.quantizers\.(?P<level>\d+)\.codebook\.weight",
        "codebook.weight",
        "in_proj",
        "out_proj",
        "cosine",
        "dac",
    ),
    _Kind(
        "higgs audio v2",
        r"(?P<root>.*?)quantizer\.quantizers\.(?P<level>\d+)\.codebook\.embed",
        "codebook.embed",
        "project_in",
        "project_out",
        "euclidean",
        "higgs_audio_v2_tokenizer",
    ),
    _Kind(
        "factorized VQ (BigCodec, FACodec)",
        r"(?P<root>.*?quantizer\.(?:\d+\.)?)layers\.(?P<level>\d+)\._codebook\.weight",
        "_codebook.weight",
        "in_proj",
        "out_proj",
        "cosine",
        "",
    ),
    _Kind(
        "Amphion factorized VQ",
        r"(?P<root>.*?)quantizer\.quantizers\.(?P<level>\d+)\.codebook\.weight",
        "codebook.weight",
        "in_project",
        "out_project",
        "cosine",
        "",
        assumed=True,
    ),
    _Kind(
        "BiCodec",
        r"(?P<root>.*?)quantizer\.codebook\.weight",
        "codebook.weight",
        "in_project",
        "out_project",
        "cosine",
        "",
    ),
    _Kind(
        "encodec with projections (Qwen3-TTS 25 Hz)",
        r"(?P<root>.*?)layers\.(?P<level>\d+)\._codebook\.embed",
        "_codebook.embed",
        "project_in",
        "project_out",
        "euclidean",
        "",
        "_codebook.inited",
    ),
)


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The residual levels of every DAC-like quantiser in the file."""
    return [
        book
        for part in sections(ckpt)
        for kind in _KINDS
        for names in levels(part, kind.codes).values()
        for book in _codebooks(ckpt, part, kind, names)
    ]


def _codebooks(ckpt: Checkpoint, part: Section, kind: _Kind, names: list[str]) -> list[Codebook]:
    stems = [name.removesuffix(kind.table) for name in names]
    if not all(len(shape(part, stem + layer)) >= 2 for stem in stems for layer in (kind.before, kind.after)):
        return []
    if kind.beside and not all(stem + kind.beside in part for stem in stems):
        return []
    _refuse_unread(ckpt, part, kind, names)
    if len({part.sizes(name, "K D")[1] for name in names}) == 1:
        return [_codebook(ckpt, part, kind, names, stems)]
    alone = "levels of different widths cannot be optimised together: features must be what this level alone quantises"
    return [_codebook(ckpt, part, kind, [name], [stem], alone) for name, stem in zip(names, stems, strict=True)]


def _depthwise(part: Section) -> bool:
    """Whether a decoder has convolutions of one channel each, which DAC's has not."""
    sizes = [part.shape(match.group()) for match in part.matches(DECODER_UNIT)]
    return any(len(size) == 3 and size[0] > 1 == size[1] < size[2] for size in sizes)


def _refuse_unread(ckpt: Checkpoint, part: Section, kind: _Kind, names: list[str]) -> None:
    """InputError for SNAC, whose levels have token rates of their own, and for several residuals that share one input."""
    first = printable(part.key(names[0]))
    if kind.family == "dac":
        strides = (ckpt.config or {}).get("vq_strides")
        coarse = isinstance(strides, list) and any(stride != 1 for stride in strides)
        noisy, depthwise = bool(part.matches(NOISE_BLOCK)), _depthwise(part)
        if coarse or (strides is None and (noisy or depthwise)):
            seen = "noise blocks in its decoder" if noisy else "depthwise convolutions in its decoder"
            said = f"vq_strides {printable(strides)} in config.json" if coarse else seen
            raise InputError(
                f"{first} is SNAC's ({said}): each level pools its own number of rows, so its levels have no common token"
                " rate, and toc does not read them.",
                "--codebook KEY takes one table, with features of that level past its in_proj.",
            )
    other = re.sub(r"rvqs\.\d+\.", "rvqs.1.", names[0])
    if "rvqs." in names[0] and other in part:
        raise InputError(
            f"{first} is one of several groups whose levels have projections of their own, which toc does not read together.",
            "--codebook KEY takes one table.",
        )


def _codebook(
    ckpt: Checkpoint, part: Section, kind: _Kind, names: list[str], stems: list[str], alone: str = ""
) -> Codebook:
    found = section(ckpt, (kind.config,)) if kind.config else None
    original = ckpt.values.get(ORIGINAL_DAC) if kind.family == "dac" else None
    later = re.search(r"quantizer\.([2-9]|\d\d+)\.layers\.", names[0]) is not None
    refusals: dict[Mode, str] = {}
    if len(names) > 1 or alone:
        refusals["consumer"] = (
            "the residual passes through each level's projection out, so zeroed columns there change the later tokens"
        )
    if alone:
        refusals["sliced"] = "the config gives all levels one codebook_dim"
    sites, twins = _sites(part, kind, names, stems)

    def parts(opened: Checkpoint) -> Parts:
        return Parts(
            tables=tuple(opened.get(part.key(name))[None] for name in names),
            level_in=tuple(affine(opened, part, stem + kind.before) for stem in stems),
            level_out=tuple(affine(opened, part, stem + kind.after) for stem in stems),
        )

    def config_edits(kept: torch.Tensor) -> Mapping[tuple[str, ...], Any]:
        return {} if found is None else {(*found[1], "codebook_dim"): kept.shape[-1]}

    def value_edits(kept: torch.Tensor) -> Mapping[tuple[str, ...], Any]:
        if original is None:
            return {}
        size = kept.shape[-1]
        return {ORIGINAL_DAC: [size] * len(original) if isinstance(original, list) else size}

    return Codebook(
        family=kind.family,
        keys=tuple((part.key(name),) for name in names),
        num_codes=tuple(part.shape(name)[0] for name in names),
        dim=part.shape(names[0])[-1],
        heads=1,
        metric=kind.metric,
        dtype=ckpt.infos[part.key(names[0])].reads,
        parts=parts,
        evidence="assumed" if later or kind.assumed else "stated" if found or original is not None else "by structure",
        residual=len(names) > 1,
        own_dims_per_level=True,
        outer_width=shape(part, stems[0] + kind.before)[1],
        ema_twins=twins,
        sites=sites,
        config_edits=config_edits,
        value_edits=value_edits,
        load_hint=lambda size: f"codebook_dim={size}",
        relies=tuple(
            one
            for stem in stems
            for one in (*relied(part, stem + kind.before, "D", "W"), *relied(part, stem + kind.after, "W", "D"))
        ),
        refusals=refusals,
        zero_fill=kind.metric == "cosine",
        warnings=(
            *((alone,) if alone else ()),
            *((AFTER_OTHERS,) if later else ()),
            *((UNSTATED,) if kind.assumed else ()),
        ),
    )


def _sites(part: Section, kind: _Kind, names: list[str], stems: list[str]) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    if kind.table.endswith("embed"):
        sites, twins = table_sites(part, names)
    else:
        sites, twins = [Site(part.key(name), axis=1, role="codes", level=n) for n, name in enumerate(names)], ()
    for level, stem in enumerate(stems):
        sites.append(producer(part, stem + kind.before, level=level))
        sites.append(consumer(part, stem + kind.after, level=level))
    return tuple(sites), twins
