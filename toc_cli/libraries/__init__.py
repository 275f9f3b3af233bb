"""What `--verify` does: load a written checkpoint in the library it belongs to, and run it there.

"It loaded" proves nothing: a library may load a file with a key of the wrong name and leave zeros in its place, or fail
only when it encodes or decodes. So every run is a quantisation of given rows and a pass through the whole codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.families.base import Codebook
from toc_cli.io.names import printable
from toc_cli.libraries.codecs import CODECS
from toc_cli.libraries.loading import load

__all__ = ["CODECS", "Run", "require", "run"]


@dataclass(frozen=True)
class Run:
    """What the library made of the file."""

    library: str
    """Name and version."""
    tokens: torch.Tensor
    """(N, L, H) int64 of the given rows."""
    outputs: torch.Tensor
    """What the whole codec gave for noise of a fixed seed: audio, an image, or the projected codes."""


def run(path: str | Path, codebook: Codebook, rows: torch.Tensor, *, inner: bool = False, seed: int = 0) -> Run:
    """Load the folder `path` in the library of the codebook's family and run it there.

    Args:
        path: A folder with `config.json`, as `optimize` writes it.
        codebook: The codebook in the file at `path`, as its family found it.
        rows: (N, W) float32, what the quantiser of the file reads.
        inner: The rows are in the codebook space already: skip the projection before the codes.

    Raises:
        UsageError: no library is known for the family, or it is not installed (the sentence names it).
        InputError: the library does not take the file, or fails to run it.
    """
    require(codebook)
    codec = CODECS[codebook.family]
    model, library = load(Path(path))
    try:
        module = _submodule(model, codec.root(codebook.keys[0][0]))
        with torch.inference_mode():
            tokens = codec.tokens(module, codebook, rows.float(), inner)
            outputs = codec.outputs(module, torch.Generator().manual_seed(seed))
    except (AttributeError, RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{library} loads {printable(path)}, but does not run it: {printable(error)}") from error
    return Run(library, tokens.long(), outputs)


def require(codebook: Codebook) -> None:
    """UsageError where no library is known for the family of a codebook."""
    if codebook.family not in CODECS:
        raise UsageError(
            f"--verify knows no library that loads a {codebook.family} checkpoint from its file alone.",
            f"It can run: {', '.join(sorted(CODECS))}.",
        )


def _submodule(model: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module at a path of the file, which some models of a library hold one level deeper (`model.vqmodel` for `vqmodel`)."""
    deeper = [name for name, _ in model.named_modules() if path and name.endswith(f".{path}")]
    return model.get_submodule(deeper[0] if len(deeper) == 1 and not hasattr(model, path.partition(".")[0]) else path)
