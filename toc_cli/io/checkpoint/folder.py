"""A Hugging Face folder: weights, `config.json`, and small files that travel with an edited copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_folder
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.checkpoint.config import config_in, patched, stays_inside, write_config
from toc_cli.io.checkpoint.sharded import Sharded
from toc_cli.io.containers import checkpoint_suffixes, open_file
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

USUAL = (
    "model.safetensors", "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "diffusion_pytorch_model.bin",
)  # fmt: skip
"""Weights of the Hugging Face libraries, in the order in which they prefer them."""

COMPANIONS = {".json", ".txt", ".md", ".yaml", ".yml", ".model", ".py", ".jinja"}
"""Files that a library may need beside the weights (tokenizer, preprocessor, generation settings)."""


class Folder(Checkpoint):
    """The weights of a folder under the folder's name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        weights = weights_of(path)
        self._inner = open_file(weights)
        self.container = self._inner.container
        self.infos, self.values = self._inner.infos, self._inner.values
        self.read_only, self.can_omit = self._inner.read_only, self._inner.can_omit
        self.files = self._inner.files
        self.config = config_in(path)

    def get(self, key: str) -> torch.Tensor:
        return self._inner.get(key)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        with atomic_folder(target) as folder:
            weights = Edits(edits.tensors, values=edits.values, without=edits.without)
            if isinstance(self._inner, Sharded):
                names = self._inner.write_parts(folder, weights)
            else:
                names = [self._inner.path.name]
                self._inner.write(folder / names[0], weights)
            if self.config is not None or edits.config:
                write_config(folder / "config.json", patched(self.config, edits.config))
                names.append("config.json")
            for companion in sorted(self.path.iterdir()):
                if companion.name not in names and self._travels(companion):
                    shutil.copyfile(companion, folder / companion.name)
                    names.append(companion.name)
        return [target / name for name in names]

    def _travels(self, path: Path) -> bool:
        is_index = path.name.endswith(".index.json")
        return path.is_file() and path.suffix in COMPANIONS and not is_index and stays_inside(path, self.path)

    def close(self) -> None:
        self._inner.close()


def cached_model(path: Path) -> Folder:
    """A model's folder in a Hugging Face cache: the snapshot that `refs/main` names, or the only one."""
    snapshots = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
    main = path / "refs" / "main"
    named = main.read_text(errors="replace")[:100].strip() if main.is_file() else ""
    chosen = [entry for entry in snapshots if entry.name == named] or snapshots
    if len(chosen) != 1:
        names = ", ".join(printable(entry.name, 40) for entry in chosen[:5]) or "none"
        raise InputError(f"{printable(path)} holds {len(chosen)} snapshots ({names}).", "Name one of them.")
    return Folder(chosen[0])


def weights_of(folder: Path) -> Path:
    """The weights file (or index) of a folder. InputError if there is none, or more than one without a usual name."""
    for name in USUAL:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in checkpoint_suffixes())
    if len(found) == 1:
        return found[0]
    shown = printable(folder)
    if found:
        names = ", ".join(printable(path.name, 60) for path in found[:5])
        raise InputError(f"{shown} holds {len(found)} weights files ({names}).", "Name one of them.")
    models = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if models:
        raise InputError(
            f"{shown} holds no weights itself.",
            f"Name one of its models: {', '.join(printable(m, 60) for m in models)}.",
        )
    raise InputError(f"{shown} is a folder without weights.", "Name a checkpoint file, or a folder that holds one.")
