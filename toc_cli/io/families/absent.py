"""What to say of a file without a codebook that can be pruned: the sentence that fits what is in it."""

from __future__ import annotations

import math
import re

from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo
from toc_cli.io.families.names import Section, sections
from toc_cli.io.names import printable

EMPTY = "it holds no tensors: FSQ keeps its levels in code, so there is no codebook to prune"
GRID = (
    "it holds a scalar quantiser: the code is a fixed grid (product of per-dim levels), not learned; "
    "pruning a dim divides K by its level count and renumbers every token. Not supported"
)
SIGNS = (
    "it holds a lookup-free quantiser: the code is a fixed grid of sign bits, not learned; "
    "pruning a dim halves K and renumbers every token. Not supported"
)
HEAD = "indices come from a learned head; no vectors are looked up"
TOKENS = "it holds token tables, not codebooks; the codebook is in the tokenizer or codec checkpoint"
NETWORK = (
    "its codes come out of a network (SimVQ's code_transform) whose activations are not in the file, only its weights"
)
SCALAR_INDEX = "it holds a scalar quantiser, which quantises every dimension by itself: there are no code vectors"
OTHER_INDEX = (
    "it is a faiss index of kind {}, in which toc reads no code vectors: "
    "it reads product and residual quantisers, flat vectors and the coarse level of inverted files"
)
ENCODER = (
    "it holds an encoder without its quantiser: no vectors are looked up; the codebook is in the pretraining checkpoint"
)

TOKEN_TABLES = (
    r"(?:.*\.)?(?:lm_heads?(?:\.\d+)?|embed_tokens(?:\.\d+)?|codebooks_head|embed_audio_tokens|word_embeddings|wte|tok_embeddings)\.weight",
    r"(?:.*\.)?latent_image_embedding\.emb\.weight",
    r"(?:.*\.)?(?:label_embs_concat|linear\.\d+\.weight|emb\.\d+\.weight|embeddings?\.word_embeddings\.weight)",
)
SIGN_MARKERS = (
    r"(?:.*\.)?(?:power_vals|group_basis|bit_basis)",
    r"(?:.*\.)?(?:bsq|lfq)\w*\..*",
)  # fmt: skip
GRID_MARKERS = (
    r"(?:.*\.)?(?:_levels|implicit_codebook|dim_base_index|num_levels)",
    r"(?:.*\.)?(?:_codebook|fsq\w*)\.project_down\.weight",
    r"(?:.*\.)?fsqs?\..*",
)
QUANTISER = re.compile(r"quant|codebook|vq|embedding$", re.IGNORECASE)
MOST_SCALARS = 16
"""Dimensions beyond which no scalar quantiser is looked for: a grid of 2 levels has 65,536 codes by then."""
GRID_CONFIGS = ("quantization_levels", "fsq_levels")
ENCODERS = r"(?:.*\.)?(?:feature_projection\.projection|masked_spec_embed|mask_emb)(?:\.weight)?"


def reason(ckpt: Checkpoint) -> str | None:
    """The sentence for a file known to hold no codebook; None for an unknown one."""
    parts = sections(ckpt)
    if ckpt.container == "faiss":
        return _index(ckpt)
    if not any(list(part) for part in parts):
        return EMPTY
    for part in parts:
        said = _lookup_free(ckpt, part) or _markers(part) or _network(part) or _grid(ckpt, part) or _tables(part)
        if said:
            return said
    return None


def _index(ckpt: Checkpoint) -> str:
    kind = str(ckpt.values.get(("faiss", "fourcc")))
    return SCALAR_INDEX if kind == "IxSQ" else OTHER_INDEX.format(printable(kind))


def grid(ckpt: Checkpoint, info: TensorInfo) -> str | None:
    """The sentence for a table (K, D) that is a fixed grid: sign bits, or the product of equally spaced levels."""
    if len(info.shape) != 2 or not info.is_floating or 0 in info.shape:
        return None
    import torch

    values = ckpt.get(info.key).double()
    several, both = info.shape[0] > 2 and info.shape[1] > 1, bool((values < 0).any()) and bool((values > 0).any())
    if several and both and bool((values.abs() == values[0, 0].abs()).all()):
        return SIGNS
    levels = [column.unique() for column in values.T] if info.shape[1] <= MOST_SCALARS else []
    spaced = all(len(steps) > 1 and torch.allclose(steps.diff(), steps.diff()[:1]) for steps in levels)
    if levels and spaced and math.prod(len(steps) for steps in levels) == info.shape[0] > 4:
        return GRID if info.shape[1] > 1 else None
    return None


def _markers(part: Section) -> str | None:
    if any(part.matches(pattern) for pattern in SIGN_MARKERS):
        return SIGNS
    return GRID if any(part.matches(pattern) for pattern in GRID_MARKERS) else None


def _lookup_free(ckpt: Checkpoint, part: Section) -> str | None:
    for info in part.infos.values():
        if QUANTISER.search(info.name) and grid(ckpt, info):
            return grid(ckpt, info)
    for match in part.matches(r"((?:.*\.)?)mask"):
        info = part.infos[match.group()]
        if info.reads == "int64" and len(info.shape) == 1 and info.shape[0] < 64:
            import torch

            powers = 2 ** torch.arange(info.shape[0])
            if torch.equal(ckpt.get(info.key).sort().values, powers):
                return SIGNS
    return None


def _grid(ckpt: Checkpoint, part: Section) -> str | None:
    """A module of nothing but a narrow projection and its way back, or a config that lists levels."""
    config = ckpt.config or {}
    if any(isinstance(config.get(name), list) for name in GRID_CONFIGS) or "VidTok" in str(
        config.get("_class_name", "")
    ):
        return GRID
    for match in part.matches(r"((?:.*\.)?)project_in(?:\.0)?\.weight"):
        own = [name.removeprefix(match[1]) for name in part if name.startswith(match[1])]
        narrow = (
            len(set(part.shape(match.group()))) == 2 and part.shape(match.group())[0] < part.shape(match.group())[1]
        )
        if narrow and all(
            re.fullmatch(r"project_(?:in|out)\..*|values_per_latent\..*|implicit_codebook", name) for name in own
        ):
            return GRID
    return None


def _network(part: Section) -> str | None:
    for match in part.matches(r"((?:.*\.)?)frozen_codebook"):
        if part.matches(re.escape(match[1]) + r"code_transform\..*"):
            return NETWORK
    return None


def _tables(part: Section) -> str | None:
    if part.matches(r"(?:.*\.)?blocks\.output\.conv\.w(?:eight)?"):
        return HEAD
    if any(part.matches(pattern) for pattern in TOKEN_TABLES):
        return TOKENS
    return ENCODER if part.matches(ENCODERS) else None
