"""What is evaluated: a trained run, or a codebook alone whose features the data holds.

Legend: N clips, T seconds (1 for a clip), D dimensions, B clips encoded at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toc_cli.errors import InputError
from toc_cli.fcid.aligner import Aligner
from toc_cli.fcid.data import Split
from toc_cli.fcid.masks import time_mean
from toc_cli.fcid.run_folder import SETTINGS_KEY, RunFolder
from toc_cli.fcid.train_config import RunConfig
from toc_cli.ops.quantiser import Quantiser, quantiser

BATCH = 128


@dataclass(frozen=True)
class LevelInput:
    """What meets a codebook at one level of one modality of a split."""

    x: Tensor
    """(N, T, D), before quantisation."""
    mask: Tensor
    """(N, T) bool: seconds that exist."""
    book: str
    """Name of the codebook."""

    def clip(self) -> Tensor:
        """(N, D): the mean over the seconds that exist."""
        return time_mean(self.x, self.mask)


class CodeSource(Protocol):
    """Encodes splits and holds codebooks."""

    modalities: tuple[str, ...]
    books: dict[str, Quantiser]
    keys: dict[str, str]
    """Per codebook the tensor that holds it."""

    def encode(self, split: Split, modality: str) -> dict[str, LevelInput]:
        """The readings of a modality, by level."""

    def probed(self, modality: str) -> tuple[str, ...]:
        """Levels whose codes a probe sees, as the run's read-out says."""

    def retrieved(self, modality: str) -> tuple[str, ...]:
        """Levels whose codes stand for a clip."""

    def levels(self, modality: str) -> tuple[str, ...]:
        """All its levels."""

    def describe(self) -> dict[str, Any]:
        """For the record."""


class TrainedModel:
    """A model that `toc train-fcid` trained, in eval mode."""

    def __init__(self, model: Aligner[Any], config: RunConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model.to(device), config, device
        self.modalities = config.model.modalities
        self.dtype = next(model.parameters()).dtype
        tables = {name: model.table(name).embedding.detach().cpu() for name in model.codebook}
        self.books = {name: quantiser([codes[None]]) for name, codes in tables.items()}
        self.keys = {name: f"codebook.{name}.embedding" for name in self.books}

    @torch.no_grad()
    def encode(self, split: Split, modality: str) -> dict[str, LevelInput]:
        self._check(split, modality)
        seconds_book = "fine" if "fine" in self.books else "coarse"
        fine: list[Tensor] = []
        coarse: list[Tensor] = []
        masks: list[Tensor] = []
        for batch in split.batches(BATCH):
            mask = batch.seconds(modality)
            x = batch.x[modality].to(self.device, self.dtype)
            found = self.model.encode(modality, x, None if mask is None else mask.to(self.device))
            masks.append(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)
            if found.fine is not None:
                fine.append(found.fine.cpu())
            if found.coarse_codes is not None and found.coarse is not None:
                coarse.append(found.coarse.cpu())
        mask, readings = torch.cat(masks), {}
        if fine:
            readings["fine"] = LevelInput(torch.cat(fine), mask, seconds_book)
        if coarse:
            readings["coarse"] = LevelInput(torch.cat(coarse)[:, None], mask.any(1, keepdim=True), "coarse")
        return readings

    def probed(self, modality: str) -> tuple[str, ...]:
        if not self.model.two_levels:
            return ("fine",)
        readout = self.config.model.readout
        if modality not in self.config.model.fine:
            return ("coarse",)
        return ("fine", "coarse") if readout == "both" else (readout,)

    def retrieved(self, modality: str) -> tuple[str, ...]:
        if not self.model.two_levels:
            return ("coarse",) if "coarse" in self.books else ("fine",)
        return self.probed(modality)

    def levels(self, modality: str) -> tuple[str, ...]:
        if not self.model.two_levels:
            return self.retrieved(modality)
        return ("fine", "coarse") if modality in self.config.model.fine else ("coarse",)

    @property
    def decoded(self) -> tuple[str, ...]:
        """Modalities that its decoders rebuild: the fine ones, if it was trained with reconstruction."""
        model = self.config.model
        return model.fine if model.weights.fine_reconstruction else ()

    @torch.no_grad()
    def shared(self, split: Split, modality: str) -> Tensor:
        """(N, T, D): what the decoders of a run were trained on that leaves seconds unquantised."""
        found = []
        for batch in split.batches(BATCH):
            mask = batch.seconds(modality)
            x = batch.x[modality].to(self.device, self.dtype)
            shared = self.model.encode(modality, x, None if mask is None else mask.to(self.device)).shared
            assert shared is not None
            found.append(shared.cpu())
        return torch.cat(found)

    @torch.no_grad()
    def specific(self, modality: str, x: Tensor, mask: Tensor | None) -> Tensor:
        """The specific part of clips x (B, T, ...): (B, T, S), or (P', B * T, S) of maps."""
        place = None if mask is None else mask.to(self.device)
        found = self.model.encode(modality, x.to(self.device, self.dtype), place).specific
        assert found is not None
        return found

    @torch.no_grad()
    def decode(self, modality: str, shared: Tensor, specific: Tensor) -> Tensor:
        """Shared vectors (B, T, D) and specific parts -> (B, T, ...) float32 on the CPU."""
        return self.model.decode(modality, shared.to(self.device, self.dtype), specific).float().cpu()

    def describe(self) -> dict[str, Any]:
        model = self.config.model
        return {
            "kind": "run",
            "profile": model.profile,
            "alignment": model.alignment,
            "readout": model.readout if self.model.two_levels else "fine",
            "codebooks": {name: list(book.levels[0].codes.shape[1:]) for name, book in self.books.items()},
        }

    def _check(self, split: Split, modality: str) -> None:
        spec, own = split.specs[modality], self.model.specs[modality]
        if (spec.width, spec.spatial) != (own.width, own.spatial):
            shapes = [("x".join(map(str, ("T", *s.spatial, s.width)))) for s in (spec, own)]
            raise InputError(
                f"{modality} of split {split.name!r} in {split.path.name} has clips of {shapes[0]}; "
                f"the run was trained on {shapes[1]}.",
                "Evaluate it on features of the same extractor.",
            )


class Codes:
    """A codebook alone (an artefact or a checkpoint): the data holds its features, (N, T, W) per modality."""

    def __init__(self, book: Quantiser, key: str, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        self.books = {"codes": book}
        self.keys = {"codes": key}

    def encode(self, split: Split, modality: str) -> dict[str, LevelInput]:
        spec, width = split.specs[modality], self.books["codes"].width
        if spec.spatial or spec.width != width:
            shape = "x".join(map(str, (spec.length, *spec.spatial, spec.width)))
            raise InputError(
                f"{modality} of split {split.name!r} has clips of {shape}; the codebook reads rows of {width}.",
                "Name the modalities that fit with --modality.",
            )
        batches = list(split.batches(BATCH))
        x = torch.cat([batch.x[modality] for batch in batches])
        masks = [batch.seconds(modality) for batch in batches]
        full = torch.ones(x.shape[:2], dtype=torch.bool)
        mask = full if masks[0] is None else torch.cat([m for m in masks if m is not None])
        return {"fine": LevelInput(x, mask, "codes")}

    def probed(self, modality: str) -> tuple[str, ...]:
        return ("fine",)

    def retrieved(self, modality: str) -> tuple[str, ...]:
        return ("fine",)

    def levels(self, modality: str) -> tuple[str, ...]:
        return ("fine",)

    def describe(self) -> dict[str, Any]:
        book = self.books["codes"]
        shapes = [list(level.codes.shape) for level in book.levels]
        return {"kind": "codebook", "key": self.keys["codes"], "levels": shapes, "dim": book.dim}


def shared_levels(source: CodeSource, a: str, b: str, kind: Literal["probed", "retrieved"]) -> tuple[str, ...]:
    """The levels at which codes of two modalities are compared: those of both read-outs, else any that both have."""
    for of in (source.probed if kind == "probed" else source.retrieved, source.levels):
        common = tuple(level for level in of(a) if level in of(b))
        if common:
            return common
    return ()


def is_run(path: Path) -> bool:
    """Whether a folder or file is what `toc train-fcid` wrote; what is not there counts as a run that is missing."""
    folder = RunFolder(path)
    file = folder.model if path.is_dir() else path
    if not file.is_file():
        return folder.config.is_file() or not path.exists()
    try:
        with safe_open(file, framework="pt") as opened:
            return SETTINGS_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False
