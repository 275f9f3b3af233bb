"""fairseq: wav2vec 2.0 and vq-wav2vec, product quantisers of G groups with Gumbel logits or k-means.

Legend: G groups (heads), V codes of a group, D dimensions of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Relied, Site
from toc_cli.io.families.layers import affine, relied
from toc_cli.io.families.names import Section, misfit, sections
from toc_cli.io.families.tables import heads_of, reader, to_heads
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

LOGITS = "assignment comes from logits: codes never change, only the looked-up vectors"
READERS = "the quantised vector is read by the aggregator and by the prediction steps"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Tables named `*quantizer.vars` and `vector_quantizer.embedding`."""
    found = []
    for part in sections(ckpt):
        for match in part.matches(r"((?:.*\.)?)(\w*quantizer)\.vars"):
            found.append(_gumbel(ckpt, part, match[1], f"{match[1]}{match[2]}"))
        for match in part.matches(r"((?:.*\.)?)vector_quantizer\.embedding"):
            if len(part.shape(match.group())) == 3:
                found.append(_kmeans(part, match.group()))
    return found


def _setting(ckpt: Checkpoint, name: str) -> tuple[tuple[str, ...], Any]:
    """Path and value of a model setting, under `cfg/model` or `args`."""
    for path in (("cfg", "model", name), ("args", name)):
        if path in ckpt.values:
            return path, ckpt.values[path]
    return (), None


def _gumbel(ckpt: Checkpoint, part: Section, root: str, stem: str) -> Codebook:
    name, logits = f"{stem}.vars", f"{stem}.weight_proj"
    _, rows, dim = part.sizes(name, "1 H*K D")
    project = f"{root}project_q"
    if f"{logits}.weight" not in part:
        raise InputError(
            f"{printable(part.key(name))} are chosen by the logits of {printable(logits)}, which is not in the file."
        )
    total, outer = part.sizes(f"{logits}.weight", "H*K W")
    width = part.sizes(f"{project}.weight", "W H*D")[1] if f"{project}.weight" in part else 0
    configured = _setting(ckpt, "latent_groups")[1]
    combined = total > rows  # combine_groups: one table for all groups
    groups = total // rows if combined else configured if isinstance(configured, int) else max(1, width // dim)
    if rows % groups or total % rows:
        raise misfit(part.key(name), part.shape(name), (1, f"a multiple of {groups}", "D"))
    codes = rows if combined else rows // groups
    sites = [
        Site(
            part.key(name),
            2,
            "codes",
            0,
            None if combined else g,
            () if combined else ((1, g * codes, (g + 1) * codes),),
        )
        for g in range(1 if combined else groups)
    ]
    after = reader(part, project, groups * dim) if width == groups * dim else []
    path, latent = _setting(ckpt, "latent_dim")
    refusals: dict[Mode, str] = {}
    if not after or latent != groups * dim:
        refusals["sliced"] = (
            "project_q or the latent_dim of the model's settings, which must change with it, is not in this file"
        )

    def parts(ckpt: Checkpoint) -> Parts:
        table = ckpt.get(part.key(name)).reshape(-1, codes, dim)
        return Parts((table.expand(groups, codes, dim),), logits=affine(ckpt, part, logits))

    return Codebook(
        family="fairseq wav2vec 2.0",
        keys=((part.key(name),) * groups,),
        num_codes=(codes,),
        dim=dim,
        heads=groups,
        metric="logits",
        dtype=part.infos[name].reads,
        parts=parts,
        own_dims_per_head=not combined,
        outer_width=outer,
        sites=(*sites, *after),
        relies=(Relied(part.key(name), (1, rows, "D")), *relied(part, logits, "H*K", "W")),
        refusals=refusals,
        value_edits=(lambda kept: {path: groups * kept.shape[-1]}) if path else None,
        zero_fill=not (after and after[0].bias),
        warnings=(LOGITS,),
    )


def _kmeans(part: Section, name: str) -> Codebook:
    """vq-wav2vec's k-means: (V, G, D) codes first, looked up after a GroupNorm over the groups."""
    stored, codes, dim = heads_of(part, name, axes="KHD")
    groups = max(stored, _normed_groups(part, name, dim))  # combine_groups: one table serves them all
    sites = [Site(part.key(name), 2, "codes", 0, g, ((1, g, g + 1),)) for g in range(stored)]
    if groups > stored:
        sites = [Site(part.key(name), 2, "codes", 0)]

    def parts(ckpt: Checkpoint) -> Parts:
        table: torch.Tensor = to_heads(ckpt.get(part.key(name)), "KHD")
        return Parts((table.expand(groups, codes, dim),))

    return Codebook(
        family="fairseq vq-wav2vec",
        keys=((part.key(name),) * groups,),
        num_codes=(codes,),
        dim=dim,
        heads=groups,
        metric="euclidean",
        dtype=part.infos[name].reads,
        parts=parts,
        own_dims_per_head=groups == stored,
        sites=tuple(sites),
        refusals={
            "sliced": "the GroupNorm before the codes spans the dimensions of a group, so its statistics would change",
            "consumer": READERS,
        },
        warnings=("features are taken after the projection and its GroupNorm",),
    )


def _normed_groups(part: Section, name: str, dim: int) -> int:
    """G by the width of the GroupNorm before the codes, 1 without it."""
    norm = f"{name.removesuffix('embedding')}projection.1.weight"
    width = part.sizes(norm, "H*D")[0] if norm in part else dim
    return width // dim if width % dim == 0 else 1
