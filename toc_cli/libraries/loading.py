"""Loading a Hugging Face folder in its own library, with nothing missing and nothing left over."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.config import read_json
from toc_cli.io.names import printable


def load(folder: Path) -> tuple[torch.nn.Module, str]:
    """The model of a folder in float32, in evaluation mode, and the name and version of its library.

    Raises:
        UsageError: the library is not installed.
        InputError: the config names no class of it, or the file does not fit the class exactly.
    """
    config = read_json(folder / "config.json")
    if "_class_name" in config:
        library, names = "diffusers", [config["_class_name"]]
    else:
        library, names = "transformers", config.get("architectures") or []
    module = _import(library)
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    kind = _class(library, module, name)
    if kind is None:
        raise InputError(f"{printable(folder)} is of the class {printable(name)!r}, which {library} does not have.")
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{library} does not load {printable(folder)}: {printable(error)}") from error
    for word in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(word) or ())):
            raise InputError(f"{library} loads {printable(folder)} with {word.replace('_', ' ')}: {printable(keys)}.")
    return model.float().eval(), f"{library} {module.__version__}"


def _import(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        sentence = f"--verify runs this file in {library}, which is not installed."
        raise UsageError(sentence, f"pip install {library}") from None


def _class(library: str, module: Any, name: str) -> Any:
    """A model class by name; transformers also knows more classes in its models than at its top."""
    if not name.isidentifier():
        return None
    kind = getattr(module, name, None)
    if kind is None or not isinstance(kind, type) or not issubclass(kind, torch.nn.Module):
        kind = _DEEPER.get(name) and getattr(importlib.import_module(f"{library}.{_DEEPER[name]}"), name, None)
    return kind


_DEEPER = {
    # The top of transformers offers a placeholder without torchaudio, which only resampling needs.
    "HiggsAudioV2TokenizerModel": "models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer",
    "PaellaVQModel": "pipelines.deprecated.wuerstchen.modeling_paella_vq_model",
    "JanusVQVAE": "models.janus.modeling_janus",
    "GlmImageVQVAE": "models.glm_image.modeling_glm_image",
    "ChameleonVQVAE": "models.chameleon.modeling_chameleon",
    "Emu3VQVAE": "models.emu3.modeling_emu3",
}
