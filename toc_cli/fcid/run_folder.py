"""A run's folder: what `toc train-fcid` leaves, and what `--resume`, `toc optimize` and `toc evaluate` take up.

    config.toml         every setting of the run
    model.safetensors   the best model so far; its metadata hold the settings, so that the file stands alone
    resume.ckpt         everything a bit-for-bit continuation needs
    log.jsonl           one line of figures every few steps, and one per validation

Each is written beside its place and moved there whole, so that a reader never meets a half of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.aligner import Aligner, load_into, refuse_misfit
from toc_cli.fcid.config import ModalitySpec
from toc_cli.fcid.model import build_model
from toc_cli.fcid.settings import read_settings, to_toml
from toc_cli.fcid.train_config import DTYPES, RunConfig, run_config
from toc_cli.io.atomic import atomic_file, write_errors
from toc_cli.io.names import printable

SETTINGS_KEY = "toc.fcid"
"""Of the metadata of model.safetensors: JSON of `settings` and `specs`. One key, so that the bytes are the same each
time."""


class RunFolder:
    """The files of one run. Only rank 0 writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.model = self.path / "model.safetensors"
        self.state = self.path / "resume.ckpt"
        self.log = self.path / "log.jsonl"

    def require_new(self) -> None:
        """A folder that already holds a run is left alone: UsageError."""
        if self.config.exists() or self.state.exists():
            raise UsageError(
                f"{str(self.path)!r} already holds a run.", "Continue it with --resume, or name another folder."
            )
        for left in self.path.glob(f".{self.config.name}.*.tmp"):  # of a run that was killed before it had begun
            left.unlink(missing_ok=True)

    def create(self, settings: Mapping[str, Any]) -> None:
        """Start a run here."""
        self.require_new()
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.config) as temporary:
            temporary.write_text(to_toml(settings), encoding="utf-8")

    def settings(self) -> dict[str, Any]:
        """The settings of the run that lies here."""
        if not self.config.is_file():
            raise InputError(
                f"{str(self.path)!r} holds no run: config.toml is not there.", "Start one without --resume."
            )
        return read_settings(self.config)

    def write_model(self, model: Aligner[Any], settings: Mapping[str, Any]) -> None:
        """The model's tensors; settings and shapes go into the metadata."""
        specs = {name: dataclasses.asdict(spec) for name, spec in model.specs.items()}
        metadata = {SETTINGS_KEY: json.dumps({"settings": settings, "specs": specs}, sort_keys=True)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        with atomic_file(self.model) as temporary, write_errors(self.model, SafetensorError):
            save_file(tensors, temporary, metadata)
            shutil.copymode(self.config, temporary)  # safetensors writes for the owner alone

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Tensors and plain containers only, so that reading it back can run nothing."""
        with atomic_file(self.state) as temporary, write_errors(self.state, RuntimeError):
            torch.save(dict(state), temporary)

    def read_state(self) -> dict[str, Any] | None:
        """What `write_state` saved last, on the CPU; None where a run stopped before its first save."""
        if not self.state.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its reader met
            raise InputError(f"{str(self.state)!r} can't be read ({error}).", "Start the run again.") from error
        return state

    def append_log(self, record: Mapping[str, Any]) -> None:
        """One line of log.jsonl, flushed."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def log_size(self) -> int:
        """Bytes of log.jsonl now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def cut_log(self, size: int) -> None:
        """Forget the lines after a saved state: the continued run writes them again."""
        if self.log_size() > size:
            os.truncate(self.log, size)

    def sweep(self) -> None:
        """Remove what a killed write left behind: temporary files are hidden and end in .tmp."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def load_model(path: str | Path) -> tuple[Aligner[Any], RunConfig]:
    """The trained model of a run folder or of a `model.safetensors`, in eval mode on the CPU, with the settings of
    its run."""
    file = RunFolder(path).model if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"There is no model {str(file)!r}.", "Train one: toc train-fcid DATA -o RUN.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(file)!r} can't be read ({error}).") from error
    if SETTINGS_KEY not in metadata:
        raise InputError(f"{str(file)!r} was not written by toc train-fcid.", "Its metadata have no settings.")
    config, specs = _described(file, metadata[SETTINGS_KEY])
    with torch.device("meta"):  # shapes alone: settings that do not fit the tensors must not take memory
        refuse_misfit(build_model(config.model, specs), tensors)
    model = build_model(config.model, specs)
    load_into(model, tensors)
    return model.to(DTYPES[config.train.precision]).eval(), config


def _described(file: Path, text: str) -> tuple[RunConfig, dict[str, ModalitySpec]]:
    """The settings and shapes in the metadata of a model. InputError where they are none, or of a version to come."""
    try:
        saved = json.loads(text)
        config = run_config(saved["settings"])
        specs = {
            name: ModalitySpec(**{**spec, "spatial": tuple(spec["spatial"])}) for name, spec in saved["specs"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"The metadata of {str(file)!r} are damaged, or of a version of toc that is to come ({type(error).__name__}: "
            f"{printable(str(error), 100)}).",
            "Copy the file again, or bring toc up to date.",
        ) from None
    return config, specs
