"""One codebook between two convolutions, told apart by the config: Chameleon, Janus, GLM-Image, Emu3, diffusers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Metric, Mode, Parts, Relied, Site
from toc_cli.io.families.config import section
from toc_cli.io.families.layers import affine, consumer, pointwise, producer, relied, shape
from toc_cli.io.families.names import Section, sections

EMU3_SLICED = "the decoder joins the quantised vector to features of latent_channels, which embed_dim must equal"
EMU3_CONSUMER = "the quantised vector shares the temporal layers of the decoder, so no layer reads its dimensions alone"
MOVQ_SLICED = "the decoder's spatial norms are sized by latent_channels, not by vq_embed_dim"
JANUS_SLICED = "vq_config.embed_dim also sizes the language model's generation_embeddings and generation_aligner"


@dataclass(frozen=True)
class _Kind:
    family: str
    size: str
    """Config value that holds D."""
    metric: Metric = "euclidean"
    unit_vectors: bool = False
    before: str = "quant_conv"
    after: str = "post_quant_conv"
    table: str = "quantize.embedding.weight"


_KINDS = {
    "chameleon_vqgan": _Kind("chameleon vq", "embed_dim"),
    "janus_vqgan": _Kind("janus vq", "embed_dim", unit_vectors=True),
    "glm_image_vqmodel": _Kind("glm-image vq", "embed_dim", "cosine", unit_vectors=True),
    "emu3_vqgan": _Kind("emu3 vq", "embed_dim", before="quant_conv.conv", after="post_quant_conv.conv"),
    "VQModel": _Kind("diffusers vqmodel", "vq_embed_dim"),
    "PaellaVQModel": _Kind(
        "diffusers paella",
        "latent_channels",
        before="down_blocks",
        after="up_blocks.0.0",
        table="vquantizer.embedding.weight",
    ),
}


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The codebook of every such tokenizer in the file whose config names it."""
    found = section(ckpt, tuple(_KINDS))
    if found is None:
        return []
    kind, path = _KINDS[found[0]], found[1]
    return [
        _codebook(ckpt, part, kind, match["root"], path)
        for part in sections(ckpt)
        for match in part.matches(rf"(?P<root>.*?)\b{kind.table.replace('.', '[.]')}")
    ]


def _codebook(ckpt: Checkpoint, part: Section, kind: _Kind, root: str, path: tuple[str, ...]) -> Codebook:
    name, after = root + kind.table, root + kind.after
    dim = part.sizes(name, "K D")[1]
    before = _producer_layer(part, kind, root)
    sites = [Site(part.key(name), axis=1, role="codes")]
    refusals = _refusals(part, kind, root)
    readers = [] if "consumer" in refusals else [after, *_spatial_norms(part, root)]
    if not all(shape(part, layer)[1:2] == (dim,) for layer in readers):
        refusals.setdefault("consumer", "the layer that reads the quantised vector is not in this file")
        refusals.setdefault("sliced", "the layers around the codebook are not in this file")
    else:
        sites += [consumer(part, layer, folds=pointwise(part, layer)) for layer in readers]
    if before is None or shape(part, before)[:1] != (dim,):
        refusals.setdefault("sliced", "the layer before the codebook is not in this file")
    else:
        sites.append(producer(part, before))
        sites += _batch_norm(part, before)
    inward = before is not None and kind.before == "quant_conv" and pointwise(part, before)

    def parts(opened: Checkpoint) -> Parts:
        return Parts(
            tables=(opened.get(part.key(name))[None],),
            project_in=affine(opened, part, before) if inward and before else None,
            project_out=affine(opened, part, after) if pointwise(part, after) else None,
        )

    return Codebook(
        family=kind.family,
        keys=((part.key(name),),),
        num_codes=(part.shape(name)[0],),
        dim=dim,
        heads=1,
        metric=kind.metric,
        dtype=ckpt.infos[part.key(name)].reads,
        parts=parts,
        evidence="stated",
        unit_vectors=kind.unit_vectors,
        outer_width=shape(part, before)[1] if inward and before else None,
        sites=tuple(sites),
        relies=(
            *(relied(part, before, "D", "W") if inward and before else ()),
            *(
                (Relied(part.key(f"{after}.weight"), (shape(part, after)[0], "D"), kernel=True),)
                if pointwise(part, after)
                else ()
            ),
        ),
        config_edits=lambda kept: {(*path, kind.size): kept.shape[-1]},
        refusals=refusals,
        # a normalised row would carry the constant into its length
        zero_fill=kind.unit_vectors or not all(site.folds and site.bias for site in sites if site.role == "consumer"),
    )


def _refusals(part: Section, kind: _Kind, root: str) -> dict[Mode, str]:
    if kind.family == "emu3 vq":
        return {"sliced": EMU3_SLICED, "consumer": EMU3_CONSUMER}
    if _spatial_norms(part, root):
        return {"sliced": MOVQ_SLICED}
    if kind.family == "janus vq" and any(n.endswith("generation_embeddings.weight") for n in part):
        return {"sliced": JANUS_SLICED}
    return {}


def _producer_layer(part: Section, kind: _Kind, root: str) -> str | None:
    if kind.family != "diffusers paella":
        return root + kind.before if shape(part, root + kind.before) else None
    blocks = part.matches(rf"(?P<layer>{re.escape(root + kind.before)}\.\d+\.0)\.weight")
    return blocks[-1]["layer"] if blocks else None


def _batch_norm(part: Section, before: str) -> list[Site]:
    """Paella normalises after its producer; batch statistics belong to one dimension each, so they are cut along."""
    norm = before.removesuffix("0") + "1"
    if f"{norm}.running_mean" not in part:
        return []
    names = [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return [Site(part.key(name), axis=0, role="scale") for name in names if name in part]


def _spatial_norms(part: Section, root: str) -> list[str]:
    """The layers of the spatial norms, which read the quantised vector at every scale."""
    return [match["layer"] for match in part.matches(rf"(?P<layer>{re.escape(root)}decoder\..*\.conv_[yb])\.weight")]
