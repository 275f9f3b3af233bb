"""Checkpoints of the published code: their state-dict names, in our model.

The converted model computes the same in the `published` profile. Left behind are the tensors that the published forward
never reads: the template layers registered beside their copies, and the class heads of the baseline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from toc_cli.errors import InputError
from toc_cli.fcid.aligner import Aligner
from toc_cli.fcid.config import Alignment, ModalitySpec, ModelConfig, published, with_options
from toc_cli.fcid.model import build_model

NAMES = {"v": "video", "a": "audio", "t": "text"}

# What tells the modules of a checkpoint apart: a tensor that each has, and nothing else.
LANDMARKS: dict[Alignment, dict[str, str]] = {
    "fine-coarse": {
        "Encoder": "va2vat.linear.weight",
        "Decoder": "v_fine_decoder.video_linear.weight",
        "CPC": "video_ar_lstm.weight_ih_l0",
    },
    "uniform": {
        "Encoder": "video_self_att.affine_matrix.weight",
        "Decoder": "Video_decoder.video_linear.weight",
        "Text_ar_lstm": "weight_ih_l1_reverse",
        "CPC": "video_ar_lstm.weight_ih_l0",
    },
}
MI_LANDMARK = "p_mu.0.weight"
MI_NETS = ("AudioVisual", "Audio", "Video", "Text")
TEXT_WIDTH = 768
"""Of the published word vectors, where the file holds no LSTM to tell."""

# Published name -> ours; groups of the pattern fill the fields, letters v, a, t become names of modalities.
TRANSPOSED = r"inverse_conv_block\.[024]\.weight$"
LAYER = r"\.encoder\.layers\.(\d+)\."
RULES: dict[Alignment, list[tuple[str, str]]] = {
    "fine-coarse": [
        (r"Encoder\.v_spe_encoder\.", "encoder.modality.video.specific."),
        (r"Encoder\.a_spe_encoder\.audio_linear\.", "encoder.modality.audio.specific.linear."),
        (r"Encoder\.v_gen_encoder\.", "encoder.modality.video.semantic."),
        (r"Encoder\.([vat])_self_att" + LAYER, "encoder.modality.{0}.temporal.layers.{1}."),
        (r"Encoder\.([vat])_self_att\.affine_matrix\.", "encoder.modality.{0}.temporal.affine."),
        (r"Encoder\.va2vat\.linear\.", "encoder.heads.fine.clip."),
        (r"Encoder\.va_gen_encoder\.input_linear\.", "encoder.heads.fine.general."),
        (r"Encoder\.va_spe_encoder\.input_linear\.", "encoder.heads.fine.specific."),
        (r"Encoder\.t2vat\.linear\.", "encoder.heads.text.clip."),
        (r"Encoder\.t_gen_encoder\.input_linear\.", "encoder.heads.text.general."),
        (r"Encoder\.t_spe_encoder\.input_linear\.", "encoder.heads.text.specific."),
        (r"Decoder\.v_fine_decoder\.", "decoder.fine.video.decode."),
        (r"Decoder\.a_fine_decoder\.audio_", "decoder.fine.audio.decode."),
        (r"Decoder\.([vat])_coarse_decoder\.simple_", "decoder.coarse.{0}."),
        (r"AudioVisual_mi_net\.p_", "mi.clip."),
    ],
    "uniform": [
        (r"Encoder\.Video_encoder\.", "encoder.video.specific."),
        (r"Encoder\.(?:Audio|Text)_encoder\.(audio|text)_linear\.", "encoder.{0}.specific.linear."),
        (r"Encoder\.video_semantic_encoder\.", "encoder.video.semantic."),
        (r"Encoder\.(video|audio|text)_self_att" + LAYER, "encoder.{0}.temporal.layers.{1}."),
        (r"Encoder\.(video|audio|text)_self_att\.affine_matrix\.", "encoder.{0}.temporal.affine."),
        (r"Text_ar_lstm\.", "sequence.text."),
        (r"Decoder\.Video_decoder\.", "decoder.video.decode."),
        (r"Decoder\.(?:Audio|Text)_decoder\.(audio|text)_", "decoder.{0}.decode."),
    ],
}
SHARED_RULES = [
    (r"CPC\.(video|audio|text)_ar_lstm\.", "cpc.{0}.lstm."),
    (r"CPC\.(video|audio|text)_predictors\.", "cpc.{0}.predictors."),
    (r"(Video|Audio|Text)_mi_net\.p_", "mi.{0}."),
]
ENDINGS = [
    (r"conv_stack\.0\.", "first."),
    (r"conv_stack\.2\.", "second."),
    (r"conv_stack\.4\.", "third."),
    (r"conv_stack\.5\.stack\.0\.res_block\.1\.", "residual.mix."),
    (r"conv_stack\.5\.stack\.0\.res_block\.3\.", "residual.project."),
    (r"feed_forward\.", "pool."),
    (r"se_layer\.0\.", "squeeze."),
    (r"se_layer\.2\.", "excite."),
    (r"affine_video_ave\.", "attention.mean."),
    (r"affine_video_self\.", "attention.position."),
    (r"ave_v_att\.", "attention.score."),
    (r"self_attn\.in_proj_", "projection."),
    (r"self_attn\.out_proj\.", "output."),
    (r"linear1\.", "expand."),
    (r"linear2\.", "contract."),
    (r"norm1\.", "norm_attention."),
    (r"norm2\.", "norm_feedforward."),
    (r"inverse_conv_block\.0\.", "first."),
    (r"inverse_conv_block\.1\.stack\.0\.res_block\.1\.", "residual.mix."),
    (r"inverse_conv_block\.1\.stack\.0\.res_block\.3\.", "residual.project."),
    (r"inverse_conv_block\.2\.", "second."),
    (r"inverse_conv_block\.4\.", "third."),
    (r"video_linear\.", "shared."),
    (r"rec\.", "reconstruct."),
    (r"linear\.", "shared."),
]
BUFFERS = {"embedding": "embedding", "ema_weight": "ema_weight", "ema_count": "ema_count", "unactivated_count": "age"}


@dataclass(frozen=True)
class Converted:
    """A published checkpoint as our model."""

    model: Aligner[Any]
    fresh: list[str] = field(default_factory=list)
    """Our modules that the checkpoint does not hold; they keep their initial weights."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the checkpoint that the model does not need."""


def convert_published(
    state: Mapping[str, Tensor], *, length: int = 10, spatial: tuple[int, int] = (7, 7), codebook: str = ""
) -> Converted:
    """A model of the `published` profile with the checkpoint's weights, in their precision.

    `state` holds the tensors of all saved modules by dotted names, whatever stands before the module's own. What shapes
    do not say is given: seconds per clip and the video's map; `codebook` is the codebook's prefix where several stand
    there. Errors: `InputError` where no published encoder or codebook is found, or a shape does not fit.
    """
    alignment, found = _modules(state)
    found |= _codebook(found, codebook)
    config, specs = _sizes(alignment, {name: state[key] for name, key in found.items()}, length, spatial)
    model = build_model(config, specs)
    own = model.state_dict()
    loaded, read = {}, set()
    for name, key in found.items():
        ours = our_name(name, alignment)
        if ours in own:
            loaded[ours] = _fitting(name, our_layout(name, state[key]), own[ours])
            read.add(key)
    loaded[f"codebook.{_level(alignment)}.started"] = torch.tensor(True)
    model.load_state_dict(own | loaded)
    fresh = sorted({".".join(name.split(".")[:2]) for name in own if name not in loaded})
    dtype = next(t.dtype for t in loaded.values() if t.is_floating_point())
    return Converted(model.to(dtype), fresh, sorted(set(state) - read))


def our_name(name: str, alignment: Alignment) -> str | None:
    """Our name of a published tensor, with its module in front (`Encoder.v_self_att...`); None where we have none."""
    if name.startswith("Codebook."):
        buffer = BUFFERS.get(name.removeprefix("Codebook."))
        return buffer and f"codebook.{_level(alignment)}.{buffer}"
    for pattern, ours in RULES[alignment] + SHARED_RULES:
        match = re.match(pattern, name)
        if match:
            parts = [NAMES.get(part, part.lower()) for part in match.groups()]
            return ours.format(*parts) + _ending(name[match.end() :])
    return None


def our_layout(name: str, tensor: Tensor) -> Tensor:
    """Kernels (O, C, kh, kw), transposed ones (C, O, kh, kw), as (kh * kw, C, O); the rest as it is."""
    if tensor.dim() != 4:
        return tensor
    return tensor.permute((2, 3, 0, 1) if re.search(TRANSPOSED, name) else (2, 3, 1, 0)).flatten(0, 1).contiguous()


def _ending(rest: str) -> str:
    for pattern, ours in ENDINGS:
        match = re.match(pattern, rest)
        if match:
            return ours + rest[match.end() :]
    return rest


def _level(alignment: Alignment) -> str:
    return "fine" if alignment == "uniform" else "coarse"


def _modules(state: Mapping[str, Tensor]) -> tuple[Alignment, dict[str, str]]:
    """The alignment, and published name with the module in front -> key in the file."""
    for alignment, landmarks in LANDMARKS.items():
        prefixes = {m: key.removesuffix(mark) for m, mark in landmarks.items() for key in state if _ends(key, mark)}
        if "Encoder" in prefixes:
            for key in state:
                if _ends(key, MI_LANDMARK):
                    prefix = key.removesuffix(MI_LANDMARK)
                    net = next((net for net in MI_NETS if net.lower() in prefix.lower().replace("_", "")), "")
                    prefixes[f"{net}_mi_net"] = prefix
            return alignment, {
                f"{module}.{key.removeprefix(prefix)}": key
                for module, prefix in prefixes.items()
                for key in state
                if key.startswith(prefix)
            }
    raise InputError(
        "No encoder of the published FCID or DCID code is in this checkpoint: neither va2vat.linear.weight nor "
        "video_self_att.affine_matrix.weight.",
        "Run toc inspect CHECKPOINT to see what it holds.",
    )


def _ends(key: str, name: str) -> bool:
    return key == name or key.endswith("." + name)


def _codebook(found: Mapping[str, str], chosen: str) -> dict[str, str]:
    """The codebook's buffers, as `Codebook.<buffer>`."""
    prefixes = [
        key.removesuffix("embedding")
        for name, key in found.items()
        if name.startswith("Encoder.")
        and _ends(key, "embedding")
        and key[: -len("embedding")] + "ema_weight" in found.values()
    ]
    if chosen:
        prefixes = [prefix for prefix in prefixes if prefix.rstrip(".") == chosen.rstrip(".")]
    if len(prefixes) != 1:
        names = ", ".join(prefix.rstrip(".") for prefix in prefixes) or "none"
        raise InputError(f"The encoder must hold one EMA codebook; found {names}.", "Name one with --codebook.")
    keys = set(found.values())
    return {f"Codebook.{buffer}": prefixes[0] + buffer for buffer in BUFFERS if prefixes[0] + buffer in keys}


def _fitting(name: str, tensor: Tensor, ours: Tensor) -> Tensor:
    if tensor.shape != ours.shape:
        raise InputError(f"{name} has the shape {tuple(tensor.shape)}; the model has {tuple(ours.shape)}.")
    return tensor if ours.is_floating_point() else tensor.to(ours.dtype)


def _sizes(
    alignment: Alignment, found: Mapping[str, Tensor], length: int, spatial: tuple[int, int]
) -> tuple[ModelConfig, dict[str, ModalitySpec]]:
    """Config and modalities, read from shapes."""

    def shape(name: str, axis: int, default: int | None = None) -> int:
        if name not in found and default is None:
            raise InputError(f"The published checkpoint lacks {name}, which tells a size.")
        return found[name].shape[axis] if name in found else default  # type: ignore[return-value]

    fcid = alignment == "fine-coarse"
    blocks = {"video": "v", "audio": "a", "text": "t"} if fcid else {n: n for n in ("video", "audio", "text")}
    widths = {name: shape(f"Encoder.{block}_self_att.affine_matrix.weight", 1) for name, block in blocks.items()}
    video = f"Encoder.{blocks['video']}_self_att"
    own = {"video": shape(f"Encoder.{'v_spe' if fcid else 'Video'}_encoder.conv_stack.2.weight", 0)}
    own["audio"] = shape(f"Encoder.{'a_spe' if fcid else 'Audio'}_encoder.audio_linear.weight", 0)
    if not fcid:
        own["text"] = shape("Encoder.Text_encoder.text_linear.weight", 0)
        widths["text"] = shape("Text_ar_lstm.weight_ih_l0", 1, TEXT_WIDTH)
    options = {
        "width": shape(f"{video}.affine_matrix.weight", 0),
        "layers": sum(bool(re.fullmatch(re.escape(video) + LAYER + r"norm1\.weight", name)) for name in found),
        "feedforward": shape(f"{video}.encoder.layers.0.linear1.weight", 0),
        "codebook.size": shape("Codebook.embedding", 0),
        "cpc_hidden": shape("CPC.video_ar_lstm.weight_hh_l0", 1, 0),
        "cpc_steps": max(1, sum(bool(re.fullmatch(r"CPC\.video_predictors\.\d+\.bias", name)) for name in found)),
    }
    config = with_options(published(alignment), options | {f"specific_widths.{n}": w for n, w in own.items()})
    specs = {n: ModalitySpec(n, length, w, spatial if n == "video" else ()) for n, w in widths.items()}
    return config, specs
