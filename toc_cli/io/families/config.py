"""The part of a Hugging Face `config.json` that belongs to a codec, wherever a larger model nests it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from toc_cli.io.checkpoint.base import Checkpoint

# Older files nest a sub-config without naming its type: (type of the whole, key of the part) -> type of the part.
_UNNAMED = {
    ("chameleon", "vq_config"): "chameleon_vqgan",
    ("janus", "vq_config"): "janus_vqgan",
    ("emu3", "vq_config"): "emu3_vqgan",
    ("glm_image", "vq_config"): "glm_image_vqmodel",
    ("csm", "codec_config"): "mimi",
    ("moshi", "audio_encoder_config"): "mimi",
}


def section(ckpt: Checkpoint, types: Collection[str]) -> tuple[str, tuple[str, ...], Mapping[str, Any]] | None:
    """Type, path and contents of the part of the config whose type is one of `types`; None without such a part."""
    config = ckpt.config or {}
    kind = _type(config)
    if kind in types:
        return kind, (), config
    for key, part in config.items():
        if isinstance(part, Mapping):
            inner = _type(part) or _UNNAMED.get((kind, key), "")
            if inner in types:
                return inner, (key,), part
    return None


def _type(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type") or config.get("_class_name")
    return kind if isinstance(kind, str) else ""
