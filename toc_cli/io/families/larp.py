"""LARP's video tokenizer: one table between two linear layers, its codes drawn by (or, deterministic, the largest) cosine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Evidence, Mode
from toc_cli.io.families.layers import shape
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import plain, reader

DRAWN = "LARP draws its codes at random unless it is set to be deterministic: the likeliest is read"
PRIOR = "prior_model reads the codes too, and is sized by bottleneck_dim"
READER = "the layer that reads the quantised vector is not in this file"
AROUND = "the layers around the codebook are not in this file, or a norm stands between them"
SETTINGS = ("bottleneck", "args", "regularizer", "args")


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The tables named `bottleneck.regularizer.embedding.weight`."""
    return [
        _codebook(ckpt, part, match[1])
        for part in sections(ckpt)
        for match in part.matches(r"((?:.*\.)?)bottleneck\.regularizer\.embedding\.weight")
    ]


def _codebook(ckpt: Checkpoint, part: Section, root: str) -> Codebook:
    stem = f"{root}bottleneck."
    name = f"{stem}regularizer.embedding.weight"
    dim = part.sizes(name, "K D")[1]
    said = _setting(ckpt, "l2_normalized")
    drawn = f"{stem}regularizer.stochastic_temperature_inv" in part  # only of codes at unit length
    cosine = said is not False or drawn
    evidence: Evidence = "by structure" if drawn else "stated" if isinstance(said, bool) else "assumed"
    normed = bool(part.matches(rf"{stem.replace('.', '[.]')}norm_layer\..*"))
    before = f"{stem}in_linear" if shape(part, f"{stem}in_linear")[:1] == (dim,) and not normed else None
    after = reader(part, f"{stem}out_linear", dim) if shape(part, f"{stem}out_linear")[1:] == (dim,) else []
    refusals: dict[Mode, str] = {}
    if before is None or not after:
        refusals["sliced"] = AROUND
    elif part.matches(rf"{root.replace('.', '[.]')}prior_model\..*"):
        refusals["sliced"] = PRIOR
    if not after:
        refusals["consumer"] = READER
    return plain(
        part,
        [name],
        family="LARP",
        metric="cosine" if cosine else "euclidean",
        unit_vectors=cosine,
        before=before,
        after=after,
        evidence=evidence,
        zero_fill=cosine,
        refusals=refusals,
        load_hint=lambda size: f"bottleneck_dim: {size} in the model's yaml",
        warnings=() if not cosine or _setting(ckpt, "stochastic") is False else (DRAWN,),
    )


def _setting(ckpt: Checkpoint, name: str) -> object:
    """A setting of the quantiser in `config.json` or in the file, under the model's arguments; None where none is there."""
    for root in ((), ("args",), ("model", "args")):
        value = _within(ckpt.config or {}, (*root, *SETTINGS, name))
        value = ckpt.values.get((*root, *SETTINGS, name)) if value is None else value
        if value is not None:
            return value
    return None


def _within(config: Mapping[str, Any], path: tuple[str, ...]) -> object:
    value: object = config
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
