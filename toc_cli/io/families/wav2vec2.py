"""wav2vec 2.0 pretraining (also Conformer, UniSpeech, WavLM): groups of codevectors chosen by learned logits.

The index is the argmax of `weight_proj`, so pruning the vectors never changes a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Mode, Parts, Relied, Site
from toc_cli.io.families.layers import affine, consumer, relied, shape
from toc_cli.io.families.names import Section, sections
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

CODES = r"(?P<root>.*?)quantizer\.codevectors"
WARNING = "assignment comes from logits: codes never change, only the looked-up vectors"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The codevectors of every pretraining quantiser in the file."""
    return [_codebook(ckpt, part, match["root"]) for part in sections(ckpt) for match in part.matches(CODES)]


def _codebook(ckpt: Checkpoint, part: Section, root: str) -> Codebook:
    name, chooser, reader = root + "quantizer.codevectors", root + "quantizer.weight_proj", root + "project_q"
    _, rows, dim = part.sizes(name, "1 H*K D")
    heads = _groups(ckpt, part, reader, rows, dim)
    codes = rows // heads
    sites = [
        Site(part.key(name), axis=2, role="codes", head=head, window=((1, head * codes, (head + 1) * codes),))
        for head in range(heads)
    ]
    refusals: dict[Mode, str] = {}
    if shape(part, reader)[1:] == (heads * dim,):
        sites.append(consumer(part, reader))
    else:
        refusals["sliced"] = refusals["consumer"] = "project_q, which reads the codevectors, is not in this file"
    if shape(part, root + "speaker_proj")[:1] == (heads * dim,):
        refusals["sliced"] = "codevector_dim also sizes speaker_proj and label_embeddings_concat of UniSpeech-SAT"
    if len(shape(part, chooser)) != 2:
        raise InputError(
            f"{printable(part.key(name))} are chosen by the logits of {printable(chooser)}, which is not in the file, or is no matrix."
        )

    def parts(opened: Checkpoint) -> Parts:
        return Parts(
            tables=(opened.get(part.key(name)).reshape(heads, codes, dim),),
            logits=affine(opened, part, chooser),
        )

    def config_edits(kept: torch.Tensor) -> Mapping[tuple[str, ...], Any]:
        return {("codevector_dim",): heads * kept.shape[-1]} if ckpt.config else {}

    return Codebook(
        family="wav2vec2",
        keys=((part.key(name),) * heads,),
        num_codes=(codes,),
        dim=dim,
        heads=heads,
        metric="logits",
        dtype=ckpt.infos[part.key(name)].reads,
        parts=parts,
        outer_width=shape(part, chooser)[1],
        sites=tuple(sites),
        relies=(Relied(part.key(name), (1, "H*K", "D")), *relied(part, chooser, "H*K", "W")),
        config_edits=config_edits,
        load_hint=lambda size: f"codevector_dim={heads * size}",
        refusals=refusals,
        warnings=(WARNING,),
    )


def _groups(ckpt: Checkpoint, part: Section, reader: str, rows: int, dim: int) -> int:
    """G from the width of `project_q`, else from the config, else 1."""
    columns = shape(part, reader)[1:]
    stated = (ckpt.config or {}).get("num_codevector_groups", 1)
    groups = columns[0] // dim if columns else stated
    return groups if isinstance(groups, int) and groups > 0 and rows % groups == 0 else 1
