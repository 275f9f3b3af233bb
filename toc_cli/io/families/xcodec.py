"""X-Codec: residual levels between three linear layers, D fixed by the widths of its two encoders."""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts
from toc_cli.io.families.encodec import table_sites
from toc_cli.io.families.layers import consumer, levels, producer, shape
from toc_cli.io.families.names import Section, sections

CODES = r"(?P<root>.*?)quantizer\.quantizers\.(?P<level>\d+)\.codebook\.embed"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The residual levels of every X-Codec in the file; Higgs has projections per level and is another family."""
    return [
        _codebook(ckpt, part, root, names)
        for part in sections(ckpt)
        for root, names in levels(part, CODES).items()
        if not shape(part, names[0].replace("codebook.embed", "project_in"))
    ]


def _codebook(ckpt: Checkpoint, part: Section, root: str, names: list[str]) -> Codebook:
    dim, *_ = (part.sizes(name, "K D")[1] for name in names)
    sites, twins = table_sites(part, names)
    readers = [layer for layer in (root + "fc1", root + "fc2") if shape(part, layer)[1:] == (dim,)]
    before = root + "fc" if shape(part, root + "fc")[:1] == (dim,) else None
    sites += [consumer(part, layer) for layer in readers]
    sites += [producer(part, before)] if before else []
    refusals: dict[Mode, str] = {
        "sliced": "the config derives codebook_dim from the widths of its two encoders, a read-only property:"
        " a cut file loads and then fails to encode"
    }
    if not readers:
        refusals["consumer"] = "the layers that read the quantised vector are not in this file"
    return Codebook(
        family="xcodec",
        keys=tuple((part.key(name),) for name in names),
        num_codes=tuple(part.shape(name)[0] for name in names),
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=ckpt.infos[part.key(names[0])].reads,
        parts=lambda opened: Parts(tables=tuple(opened.get(part.key(name))[None] for name in names)),
        residual=len(names) > 1,
        ema_twins=twins,
        sites=tuple(sites),
        refusals=refusals,
    )
