"""Where a run writes, decided and refused before the first feature is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from toc_cli.errors import UsageError
from toc_cli.io.atomic import check_target
from toc_cli.io.families.base import Mode
from toc_cli.io.names import printable
from toc_cli.io.publish import recover
from toc_cli.pipeline.vocabulary import parse_vocab

SUFFIX = ".toc.safetensors"
_ENDINGS = (".safetensors.index.json", ".bin.index.json", SUFFIX)


@dataclass(frozen=True)
class Outputs:
    """The names of a run: `<stem>.toc.safetensors`, `<stem>.toc.json`, `<stem>.<mode><ext>` (a folder for a folder or shards)."""

    checkpoint: Path
    emit: tuple[Mode, ...] = ("codebook",)
    named: Path | None = None
    """`-o`: the artefact's name, which gives the others' stem."""
    force: bool = False
    planned: bool = False
    """`--dry-run`: the names are told, and nothing is written."""
    verify: bool = False
    """Load what was written in its own library and run it, before it is published."""
    data: str | None = None
    """`--data`: pictures or sound that are decoded before and after, in every written form."""
    samples: bool = True
    """Whether a few of them go into the record, for the page."""
    vocab: tuple[str, ...] = ()
    """`--vocab`: tables of a language model whose rows follow `--codes`."""
    stem: Path = field(init=False)
    extension: str = field(init=False)
    elsewhere: str = field(init=False)
    """Why the outputs are not beside the input, "" where they are or where `-o` says it."""

    def __post_init__(self) -> None:
        stem, extension = stem_and_extension(self.checkpoint)
        folder, elsewhere = place_for(stem)
        object.__setattr__(self, "elsewhere", "" if self.named else elsewhere)
        stem = folder / stem.name
        if self.named is not None:
            stem = stem_named(self.named)
        object.__setattr__(self, "stem", stem)
        object.__setattr__(self, "extension", extension)

    @property
    def artefact(self) -> Path:
        """The pruned codebook."""
        return self.stem.with_name(self.stem.name + SUFFIX)

    @property
    def record(self) -> Path:
        """The run record."""
        return self.stem.with_name(self.stem.name + ".toc.json")

    def of(self, mode: Mode) -> Path:
        """The file or folder of an emit mode."""
        return self.artefact if mode == "codebook" else self.stem.with_name(f"{self.stem.name}.{mode}{self.extension}")

    @property
    def language_model(self) -> Path | None:
        """The copy of the language model of `--vocab`; None without one, or where the checkpoint itself holds it."""
        file, _ = parse_vocab(self.vocab)
        if file is None or (self.checkpoint.exists() and file.samefile(self.checkpoint)):
            return None
        return self.stem.with_name(f"{self.stem.name}.vocab{stem_and_extension(file)[1]}")

    @property
    def checkpoints(self) -> tuple[Mode, ...]:
        """The modes that write a checkpoint of the input's own format."""
        return tuple(mode for mode in self.emit if mode != "codebook")

    def _configs(self) -> list[Path]:
        """The patched config beside a sliced weights file whose own config.json is not in an output folder."""
        alone = "sliced" in self.emit and self.extension and (self.checkpoint.parent / "config.json").exists()
        return [self.of("sliced").with_suffix(".config.json")] if alone else []

    def aside(self, folder: Path) -> Outputs:
        """The same names in another folder."""
        return replace(self, named=folder / self.artefact.name)

    def refuse_what_stands(self, inputs: Iterable[Path], *, writes: bool = True) -> None:
        """`check_target` of every output; who `writes` first sweeps what a killed run left, or carries it out. A dry run replaces
        nothing, so that only an input in their place is refused."""
        whole = writes and not self.planned and recover(self.stem, wait=self.force)
        more = [] if self.language_model is None else [self.language_model]
        for target in (self.artefact, self.record, *map(self.of, self.checkpoints), *self._configs(), *more):
            try:
                check_target(target, force=self.force or self.planned, inputs=inputs)
            except UsageError as error:
                since = (
                    " Its run was ended while it published; that is done now, and its outputs are whole."
                    if whole
                    else ""
                )
                raise UsageError(error.what + since, error.hint) from None


CACHE_FOLDERS = ("snapshots", "blobs")
"""Of a Hugging Face cache, whose own scan calls a model with any other file in them corrupted."""


def stem_named(named: Path) -> Path:
    """The stem that `-o` gives. UsageError for another ending."""
    if not named.name.endswith(SUFFIX) or named.name == SUFFIX:
        raise UsageError(f"-o {named} does not end in {SUFFIX}.", f"Use -o NAME{SUFFIX}.")
    return named.with_name(named.name.removesuffix(SUFFIX))


def place_for(source: Path) -> tuple[Path, str]:
    """The folder of what is made of `source`, and why it is not the one that `source` lies in ("" where it is)."""
    folder = source.parent
    whole = Path(os.path.abspath(folder))
    for place in (whole, *whole.parents):
        if place.name in CACHE_FOLDERS and (
            place.parent.name.startswith(("models--", "datasets--")) or _caches(place.parent)
        ):
            return (
                Path(),
                f"{printable(source.name)} lies in a Hugging Face cache: the outputs go to the current folder.",
            )
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        return Path(), f"{printable(folder)} is read-only: the outputs go to the current folder."
    return folder, ""


def _caches(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in CACHE_FOLDERS)


def stem_and_extension(checkpoint: Path) -> tuple[Path, str]:
    """`model.safetensors` gives (`model`, `.safetensors`); folders and shard indexes have no extension: they become folders."""
    for ending in _ENDINGS:
        if checkpoint.name.endswith(ending) and checkpoint.name != ending:
            return checkpoint.with_name(checkpoint.name.removesuffix(ending)), SUFFIX if ending == SUFFIX else ""
    if os.path.isdir(checkpoint):
        whole = checkpoint.resolve() if checkpoint.name in ("", "..") else checkpoint
        cache = whole.parent.parent
        if whole.parent.name == "snapshots" and cache.name.startswith("models--"):
            whole = whole.with_name(cache.name.rpartition("--")[2])  # a snapshot is called by a hash
        return whole, ""
    return checkpoint.with_suffix(""), checkpoint.suffix
