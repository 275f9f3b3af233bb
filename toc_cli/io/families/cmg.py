"""The paper's own checkpoints (CMG and FCID) and those of `toc train-fcid`: one shared codebook, read by linear layers."""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Parts, Site
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import plain, reader

WIDTH = "the same width runs through the encoders and their layer norms, so the dimensions cannot be cut out of them exactly"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Tables named `Cross_quantizer*.embedding` and `codebook.{fine,coarse}.embedding`."""
    parts = sections(ckpt)
    found = []
    for part in parts:
        for match in part.matches(r"((?:.*\.)?)(Cross_quantizer(?:_\w+)?)\.embedding"):
            found.append(_published(part, parts, f"{match[1]}{match[2]}"))
        for match in part.matches(r"((?:.*\.)?)codebook\.(fine|coarse)\.embedding"):
            found.append(_trained(part, match[1], match[2]))
    return found


def _published(part: Section, parts: list[Section], stem: str) -> Codebook:
    name, twin, counts = f"{stem}.embedding", f"{stem}.ema_weight", f"{stem}.ema_count"
    flat = len(part.shape(name)) == 2
    width = part.sizes(name, "K D" if flat else "L K D")[-1]
    after = [site for other in parts for site in _decoders(other, width)]
    if flat:
        return plain(part, [name], family="CMG", after=after, refusals={"sliced": WIDTH})
    levels, codes, dim = part.shape(name)
    sites = [Site(part.key(name), 2, "codes", level, window=((0, level, level + 1),)) for level in range(levels)]
    if twin in part and counts in part:
        key = part.key(twin)
        for level in range(levels):
            sites.append(Site(key, 2, "sums", level, window=((0, level, level + 1),), counts=part.key(counts)))
    return Codebook(
        family="CMG",
        keys=((part.key(name),),) * levels,
        num_codes=(codes,) * levels,
        dim=dim,
        heads=1,
        metric="euclidean",
        dtype=part.infos[name].reads,
        parts=lambda ckpt: Parts(tuple(table.unsqueeze(0) for table in ckpt.get(part.key(name)))),
        residual=True,
        ema_twins=tuple(dict.fromkeys(site.key for site in sites if site.role == "sums")),
        sites=(*sites, *after),
        refusals={"sliced": WIDTH},
        zero_fill=not all(site.bias for site in after),
    )


def _decoders(part: Section, dim: int) -> list[Site]:
    """The linear layers of `Decoder_parameters` that read the quantised vector."""
    pattern = r"(?P<layer>(?:.*\.)?(?:\w+_semantic_decoder\.linear|(?:Audio|Text|Video)_decoder\.\w+_linear))\.weight"
    layers = [match["layer"] for match in part.matches(pattern)]
    return [
        site for layer in layers if part.shape(f"{layer}.weight")[1:] == (dim,) for site in reader(part, layer, dim)
    ]


def _trained(part: Section, root: str, level: str) -> Codebook:
    """A run of `toc train-fcid`: decoders of the level, or of the only level of the uniform baseline."""
    stem = f"{root}codebook.{level}"
    pattern = rf"(?P<layer>{root}decoder\.{level}\.\w+(?:\.decode)?\.shared)\.weight"
    if level == "fine" and f"{root}codebook.coarse.embedding" not in part:
        pattern = rf"(?P<layer>{root}decoder\.\w+\.decode\.shared)\.weight"
    dim = part.sizes(f"{stem}.embedding", "K D")[1]
    after = [site for match in part.matches(pattern) for site in reader(part, match["layer"], dim)]
    return plain(
        part,
        [f"{stem}.embedding"],
        family="toc FCID",
        after=after,
        refusals={"sliced": WIDTH},
    )
