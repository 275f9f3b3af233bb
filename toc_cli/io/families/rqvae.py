"""Residual quantisers of recommenders and image models: Kakao's RQ-VAE, and the RQ-VAE of LC-Rec and MiniOneRec."""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode
from toc_cli.io.families.layers import levels, shape
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import plain, reader


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Stacks named `quantizer.codebooks.N.weight` and `rq.vq_layers.N.embedding.weight`."""
    found = []
    for part in sections(ckpt):
        for root, names in levels(part, r"(?P<root>(?:.*\.)?)quantizer\.codebooks\.\d+\.weight").items():
            found.append(_kakao(part, root, names))
        for root, names in levels(part, r"(?P<root>(?:.*\.)?)rq\.vq_layers\.\d+\.embedding\.weight").items():
            found.append(_recommender(part, root, names))
    return found


def _kakao(part: Section, root: str, names: list[str]) -> Codebook:
    stems = [name.removesuffix("weight") for name in names]
    counts = f"{stems[0]}cluster_size_ema"
    padding = counts not in part or part.sizes(counts, "K")[0] == part.sizes(names[0], "K D")[0] - 1
    after = reader(part, f"{root}post_quant_conv", part.sizes(names[0], "K D")[1])
    before = f"{root}quant_conv"
    shared = part.infos[names[0]].storage is not None and len({part.infos[name].storage for name in names}) == 1
    refusals: dict[Mode, str] = {}
    if not after or shape(part, before)[:1] != part.shape(names[0])[1:]:
        refusals["sliced"] = (
            "quant_conv and post_quant_conv do not border on the codes: code_shape regroups the dimensions"
        )
    return plain(
        part,
        names,
        family="Kakao RQ-VAE",
        padding=padding,
        before=None if refusals else before,
        after=() if refusals else after,
        residual=True,
        refusals=refusals,
        zero_fill=len(names) > 1 and shared,
        load_hint=lambda size: (
            f"embed_dim: {size} and the last number of latent_shape and code_shape {size} in the model's yaml"
        ),
    )


def _recommender(part: Section, root: str, names: list[str]) -> Codebook:
    dim = part.sizes(names[0], "K D")[1]
    before = _last_linear(part, f"{root}encoder.mlp_layers")
    first = next((m["layer"] for m in part.matches(rf"(?P<layer>{root}decoder\.mlp_layers\.\d+)\.weight")), None)
    after = reader(part, first, dim) if first else []
    refusals: dict[Mode, str] = {}
    if before is None or shape(part, before)[0] != dim or not after:
        refusals["sliced"] = "the last layer of the encoder and the first of the decoder are not in this file"
    return plain(
        part,
        names,
        family="LC-Rec RQ-VAE",
        before=None if refusals else before,
        after=after,
        residual=True,
        refusals=refusals,
        load_hint=lambda size: f"--e_dim {size}",
    )


def _last_linear(part: Section, stem: str) -> str | None:
    """The last layer of an MLP whose weight is a matrix (batch norms have vectors)."""
    matrices = [m["layer"] for m in part.matches(rf"(?P<layer>{stem}\.\d+)\.weight") if len(part.shape(m.group())) == 2]
    return matrices[-1] if matrices else None
