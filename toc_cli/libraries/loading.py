"""Loading a Hugging Face folder in its own library, with nothing missing and nothing left over."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.config import read_json
from toc_cli.io.names import printable


def load(folder: Path, *, wanted: str = "--verify") -> tuple[torch.nn.Module, str]:
    """The model of a folder in float32, in evaluation mode, and the name and version of its library; `wanted` says what for.

    Raises:
        UsageError: the library is not installed.
        InputError: the config names no class of it, or the file does not fit the class exactly.
    """
    config = read_json(folder / "config.json")
    if "_class_name" in config:
        library, names = "diffusers", [config["_class_name"]]
    else:
        library, names = "transformers", config.get("architectures") or []
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    module = _import(library, library, wanted)
    kind = _class(library, module, name, wanted)
    if kind is None and config.get("auto_map"):
        raise InputError(
            f"{printable(folder)} is of the class {printable(name)!r}, which needs its own code (auto_map); toc never runs it.",
            "Record from your own script: with toc_cli.capture(model.quantizer, 'feats.h5'): model(batch)",
        )
    if kind is None:
        raise InputError(f"{printable(folder)} is of the class {printable(name)!r}, which {library} does not have.")
    try:
        with _quiet(library):
            model, info = kind.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{library} does not load {printable(folder)}: {printable(error)}") from error
    for word in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(word) or ())):
            raise InputError(f"{library} loads {printable(folder)} with {word.replace('_', ' ')}: {printable(keys)}.")
    return model.float().eval(), f"{library} {module.__version__}"


def _import(name: str, library: str, wanted: str) -> Any:
    """A module of a library, or the sentence that names what is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name if error.name and not error.name.startswith(f"{library}.") else library
        sentence = f"{wanted} runs this model in {library}, and {missing} is not installed."
        raise UsageError(sentence, f"pip install {missing}") from None


def _class(library: str, module: Any, name: str, wanted: str) -> Any:
    """A model class by name: from the top of its library, or from deeper inside."""
    if name in _DEEPER:
        module = _import(f"{library}.{_DEEPER[name]}", library, wanted)
    kind = getattr(module, name, None) if name.isidentifier() else None
    return kind if isinstance(kind, type) and issubclass(kind, torch.nn.Module) else None


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Without the library's own progress bars and log lines: what they would say is in the loading info."""
    logging = importlib.import_module(f"{library}.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_DEEPER = {
    # The top of transformers offers a placeholder without torchaudio, which only resampling needs.
    "HiggsAudioV2TokenizerModel": "models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer",
    "PaellaVQModel": "pipelines.deprecated.wuerstchen.modeling_paella_vq_model",
    "GlmImageVQVAE": "models.glm_image.modeling_glm_image",
}
