"""How each library quantises rows and runs its whole codec.

Legend: N rows, W their width, L levels, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from toc_cli.io.families.base import Codebook

Tokens = Callable[[Any, Codebook, torch.Tensor, bool], torch.Tensor]
Outputs = Callable[[Any, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Codec:
    """One family in its library."""

    table: str
    """Where the names of the codec's own modules start in the key of its table."""
    tokens: Tokens
    """(module, codebook, rows (N, W), whether they are in the codebook space) -> (N, L, H)."""
    outputs: Outputs
    """A pass through the whole codec on noise."""

    def root(self, key: str) -> str:
        """The module path of the codec that holds the table `key`."""
        return re.split(rf"(?:^|\.){re.escape(self.table)}", key, maxsplit=1)[0]


def _noise(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.3


def _channels_first(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, W) as one sequence (1, W, N)."""
    return rows.T[None].contiguous()


# Audio codecs: a residual quantiser over (1, W, N)


def _encode(module: Any, codebook: Codebook, rows: torch.Tensor, inner: bool) -> torch.Tensor:
    return module.quantizer.encode(_channels_first(rows)).permute(2, 0, 1)  # (L, 1, N) -> (N, L, 1)


def _dac(module: Any, codebook: Codebook, rows: torch.Tensor, inner: bool) -> torch.Tensor:
    return module.quantizer(_channels_first(rows))[1].permute(2, 1, 0)  # (1, L, N) -> (N, L, 1)


def _mimi(module: Any, codebook: Codebook, rows: torch.Tensor, inner: bool) -> torch.Tensor:
    name = "semantic" if "semantic_" in codebook.keys[0][0] else "acoustic"
    group = getattr(module.quantizer, f"{name}_residual_vector_quantizer")
    return group.encode(_channels_first(rows)).permute(2, 0, 1)


def _audio(module: Any, generator: torch.Generator) -> torch.Tensor:
    config = module.config
    hop = getattr(config, "hop_length", None) or config.sampling_rate // 50
    channels = getattr(config, "audio_channels", 1)
    return module(_noise(generator, 1, channels, 32 * int(hop))).audio_values


# wav2vec 2.0: learned logits


def _logits(module: Any, codebook: Codebook, rows: torch.Tensor, inner: bool) -> torch.Tensor:
    scores = module.quantizer.weight_proj(rows)
    return scores.unflatten(-1, (codebook.heads, -1)).argmax(-1)[:, None]


def _pretraining(module: Any, generator: torch.Generator) -> torch.Tensor:
    stride = 1
    for step in module.config.conv_stride:
        stride *= step
    return module(_noise(generator, 1, 32 * stride)).projected_quantized_states


# Images: one table between two convolutions


def _grid(module: Any, codebook: Codebook, rows: torch.Tensor, inner: bool) -> torch.Tensor:
    z = _channels_first(rows)[..., None]  # (1, W, N, 1)
    if not inner and codebook.outer_width is not None:
        z = module.quant_conv(z)
    found = getattr(module, "quantize", None) or module.vquantizer
    indices = found(z)[2]
    return (indices[-1] if isinstance(indices, tuple) else indices).reshape(-1, 1, 1)


def _video(module: Any, codebook: Codebook, rows: torch.Tensor, inner: bool) -> torch.Tensor:
    return module.quantize(_channels_first(rows)[:, None, ..., None]).reshape(-1, 1, 1)  # (1, 1, W, N, 1)


def _pixels(module: Any, generator: torch.Generator, patches: int = 8) -> torch.Tensor:
    size = patches << (len(module.config.channel_multiplier) - 1)
    return _noise(generator, 1, module.config.in_channels, size, size)


def _chameleon(module: Any, generator: torch.Generator) -> torch.Tensor:
    return module.post_quant_conv(module.encode(_pixels(module, generator)).quantized_last_hidden_state)


def _glm_image(module: Any, generator: torch.Generator) -> torch.Tensor:
    hidden = _noise(generator, 1, module.config.latent_channels, 8, 8)
    return module.post_quant_conv(module.encode(hidden).quantized_last_hidden_state)


def _janus(module: Any, generator: torch.Generator) -> torch.Tensor:
    return module(_pixels(module, generator, module.config.num_patches))[0]


def _emu3(module: Any, generator: torch.Generator) -> torch.Tensor:
    pixels = _pixels(module, generator)
    tokens = module.encode(pixels, image_sizes=torch.tensor([pixels.shape[-2:]])).image_tokens
    return module.decode(tokens[0][None])


def _diffusers(module: Any, generator: torch.Generator) -> torch.Tensor:
    image = _noise(generator, 1, module.config.in_channels, 32, 32)
    return module(image).sample


def _paella(module: Any, generator: torch.Generator) -> torch.Tensor:
    image = _noise(generator, 1, module.config.in_channels, 32, 32)
    return module.decode(module.encode(image).latents, force_not_quantize=False).sample


CODECS = {
    "encodec": Codec("quantizer.", _encode, _audio),
    "dac": Codec("quantizer.quantizers.", _dac, _audio),
    "higgs audio v2": Codec("quantizer.quantizers.", _encode, _audio),
    "xcodec": Codec("quantizer.quantizers.", _encode, _audio),
    "mimi": Codec("quantizer.", _mimi, _audio),
    "wav2vec2": Codec("quantizer.codevectors", _logits, _pretraining),
    "chameleon vq": Codec("quantize.embedding", _grid, _chameleon),
    "janus vq": Codec("quantize.embedding", _grid, _janus),
    "glm-image vq": Codec("quantize.embedding", _grid, _glm_image),
    "emu3 vq": Codec("quantize.embedding", _video, _emu3),
    "diffusers vqmodel": Codec("quantize.embedding", _grid, _diffusers),
    "diffusers paella": Codec("vquantizer.embedding", _grid, _paella),
}
