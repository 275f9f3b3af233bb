"""The part of a Hugging Face `config.json` that belongs to a codec, wherever a larger model nests it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from toc_cli.io.checkpoint.base import Checkpoint

CODES = ("codebook_size", "num_vq_embeddings", "num_embeddings", "n_embed")
DIMS = ("codebook_dim", "vq_embed_dim", "embed_dim")
"""What configs call K and D, where both stand in one part."""
_OWN_DIMS = {"PaellaVQModel": ("latent_channels",)}
"""Where a type's `embed_dim` is another number."""

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


def contradiction(config: Mapping[str, Any], sizes: Collection[tuple[int, int]]) -> str:
    """What a config says of a codebook that no (K, D) of the file has; "" where a part of it agrees, or none says anything."""
    said = []
    for part in _mappings(config):
        codes = next((part[name] for name in CODES if _is_count(part.get(name))), None)
        dims = next((part[name] for name in _OWN_DIMS.get(_type(part), DIMS) if _is_count(part.get(name))), None)
        if codes is not None and dims is not None:
            said.append((codes, dims))
    if not sizes or not said or set(said) & set(sizes):
        return ""
    held = " and ".join(f"{k} of {d}" for k, d in sorted(set(sizes))[:3])
    return f"config.json says {said[0][0]} codes of {said[0][1]} dimensions, the file holds {held}"


def _mappings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (part for part in config.values() if isinstance(part, Mapping))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type") or config.get("_class_name")
    return kind if isinstance(kind, str) else ""
