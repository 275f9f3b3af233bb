"""Paired multimodal features in one HDF5 file: what `toc train-fcid` and `toc evaluate` read.

Layout. One group per split (`train`, `val`, ...); in it, all with the same first axis N (clips):

    <modality>           (N, L, ..., C)   floating; or integers with the attribute `scale` (value = stored / scale).
                                          Every such dataset of three or more axes is a modality:
                                          video (N, T, H, W, C) or (N, T, C), audio (N, T, C), text (N, L, C).
    <modality>_length    (N,) integer     valid steps of each clip, 0..L; without it all L are
    <modality>_present   (N,) 0 or 1      0: the clip lacks this modality, the losses leave it out; without it none does
    caption              (N,)             integers or strings; equal captions are never negatives of one another
    label...             integers         (N,) the class of a clip, (N, T) the class of each second,
                                          (N, T, classes) 0/1, several at once; -1 is unlabelled.
                                          Attributes: `classes` (their count), `names`, and `background`, the class
                                          of seconds in which nothing happens.
                                          `label_x.audio`, `label_x.video`: one task as each modality shows it.

Anything else (frames, waveforms, ...) is left alone. All of it lies in the file itself: external links,
external storage and virtual datasets are refused.

Reading. A file may be larger than memory: `toc_cli.fcid.batches` orders the clips so that chunks are read in turn.

Shapes: N clips, B batch, L or T steps, C channels.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.config import ModalitySpec
from toc_cli.io.checkpoint.hdf5 import ERRORS, check_chunks, read_all
from toc_cli.io.checkpoint.probe import refuse_crash
from toc_cli.io.names import printable

DEFAULT_BLOCK = 64  # clips read at once where the file has no chunks
SUFFIXES = ("_length", "_present")


@dataclass(frozen=True)
class Modality:
    """Where one modality of a split lies: its specification, and the factor its stored integers carry."""

    spec: ModalitySpec
    scale: float  # value = stored / scale


class Split:
    """The clips of one split; opens the file on first use in each process, and holds the blocks read last.

    `wanted` names the modalities to read, all of which must be there; None takes what there is.
    """

    def __init__(
        self, path: str | Path, name: str, wanted: tuple[str, ...] | None = None, cache_clips: int = 2048
    ) -> None:
        self.path = Path(path)
        self.name = name
        self.wanted = wanted
        self.cache_clips = cache_clips
        self._handle: tuple[int, h5py.File] | None = None  # (process id, file)
        self._blocks: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()
        with readable(self.path):
            self.columns = set(self.group)
            self.modalities = self._modalities()
            self.clips = self._clips()
            self.block = self._block_clips()

    def __len__(self) -> int:
        return self.clips

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None, "_blocks": OrderedDict()}

    @property
    def specs(self) -> dict[str, ModalitySpec]:
        return {name: modality.spec for name, modality in self.modalities.items()}

    @property
    def group(self) -> h5py.Group:
        """The split's open group; workers made by fork open the file again."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), open_hdf5(self.path))
        return self._handle[1][self.name]

    @cached_property
    def captions(self) -> NDArray[np.int64] | None:
        """(N,) ids: equal captions have equal ids; None without a `caption` dataset."""
        if "caption" not in self.columns:
            return None
        with readable(self.path):
            column = self.group["caption"]
            values = column.asstr()[:] if h5py.check_string_dtype(column.dtype) else column[:]
        return np.unique(values, return_inverse=True)[1].astype(np.int64)

    @property
    def label_names(self) -> list[str]:
        return sorted(name for name in self.columns if name.startswith("label"))

    def label(self, name: str) -> NDArray[np.int64]:
        """The labels `name`, (N,), (N, T) or (N, T, classes), checked against the attribute `classes`."""
        if name not in self.columns:
            have = ", ".join(map(printable, self.label_names)) or "none"
            raise InputError(f"Split {self.name!r} of {self.path.name} has no labels {name!r}.", f"It has: {have}.")
        with readable(self.path):
            dataset = self.group[name]
            if dataset.dtype.kind not in "iub":
                raise InputError(f"Labels {self._at(name)} are {dataset.dtype}, not integers.")
            check_chunks(dataset.id, self._at(name))
            values = dataset[:].astype(np.int64)
            top = 2 if values.ndim == 3 else dataset.attrs.get("classes")
            top = None if top is None else int(top)
        bad = (values < -1) | (values >= (top if top is not None else np.iinfo(np.int64).max))
        if bad.any():
            row = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"Label {values[row]} at row {row[0]} of {self._at(name)} is out of range.",
                f"Labels go from 0 to {int(top) - 1}, -1 is unlabelled." if top is not None else "-1 is unlabelled.",
            )
        return values

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """The clips `rows` (B,) as a `Batch` of float32 tensors.

        Steps and modalities that are not there are zero; there is a mask only where the file has `_length` or
        `_present`, so that all ranks agree on which masks exist.
        """
        x: dict[str, torch.Tensor] = {}
        mask: dict[str, torch.Tensor] = {}
        present: dict[str, torch.Tensor] = {}
        for name, modality in self.modalities.items():
            values = self._gather(rows, name).astype(
                np.float32, copy=False
            )  # (B, L, ..., C), a copy of the block's rows
            if modality.scale != 1.0:
                values /= np.float32(modality.scale)
            lengths = self._gather(rows, name + "_length")
            here = self._gather(rows, name + "_present").astype(bool) & (lengths > 0)
            valid = (np.arange(modality.spec.length) < lengths[:, None]) & here[:, None]  # (B, L)
            values[~valid] = 0.0
            self._check_finite(name, rows, values)
            x[name] = torch.from_numpy(values)
            if name + "_length" in self.columns:
                mask[name] = torch.from_numpy(valid)
            if name + "_present" in self.columns or name + "_length" in self.columns:
                present[name] = torch.from_numpy(here)
        captions = None if self.captions is None else torch.from_numpy(self.captions[rows])
        return Batch(x=x, mask=mask, present=present, index=torch.from_numpy(rows.astype(np.int64)), caption=captions)

    def batches(self, size: int) -> Iterator[Batch]:
        """The whole split in file order, `size` clips at a time."""
        for start in range(0, self.clips, size):
            yield self.read(np.arange(start, min(start + size, self.clips)))

    def _gather(self, rows: NDArray[np.int64], name: str) -> NDArray[Any]:
        """Rows of one dataset, block by block so that the file is read in chunks."""
        blocks = rows // self.block
        out: NDArray[Any] | None = None
        for block in np.unique(blocks):
            where = blocks == block
            part = self._read_block(int(block))[name][rows[where] - block * self.block]
            if out is None:
                out = np.empty((len(rows), *part.shape[1:]), part.dtype)
            out[where] = part
        if out is None:
            raise UsageError("A batch of no clips was asked for.")
        return out

    def _read_block(self, block: int) -> dict[str, NDArray[Any]]:
        """All modalities of one block of clips, from memory if it was read lately."""
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        rows = slice(block * self.block, min((block + 1) * self.block, self.clips))
        count = rows.stop - rows.start
        columns: dict[str, NDArray[Any]] = {}
        with readable(self.path):
            for name, modality in self.modalities.items():
                columns[name] = self.group[name][rows]
                columns[name + "_length"] = self._column(name + "_length", rows, count, modality.spec.length)
                columns[name + "_present"] = self._column(name + "_present", rows, count, 1)
        self._blocks[block] = columns
        while len(self._blocks) > max(2, -(-self.cache_clips // self.block) + 1):
            self._blocks.popitem(last=False)
        return columns

    def _column(self, name: str, rows: slice, count: int, top: int) -> NDArray[Any]:
        """`<modality>_length` or `<modality>_present` of a block, all `top` where the file does not have it."""
        if name not in self.columns:
            return np.full(count, top, np.int64)
        values = self.group[name][rows].astype(np.int64)
        bad = np.flatnonzero((values < 0) | (values > top))
        if len(bad):
            row = rows.start + int(bad[0])
            raise InputError(f"{self._at(name)} is {values[bad[0]]} at row {row}.", f"It must lie between 0 and {top}.")
        return values

    def _check_finite(self, name: str, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        good = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not good.all():
            row = int(rows[~good].min())
            raise InputError(
                f"{self._at(name)} holds NaN or infinity in row {row}.", f"Mark it missing with {name}_present = 0."
            )

    def _modalities(self) -> dict[str, Modality]:
        found = {}
        refuse_links(self.group)
        for name, dataset in self.group.items():
            if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 3 or reserved(name):
                continue
            if dataset.dtype.kind == "f" or (dataset.dtype.kind in "iu" and "scale" in dataset.attrs):
                check_chunks(dataset.id, self._at(name))
                length, *spatial, width = dataset.shape[1:]
                spec = ModalitySpec(name=name, length=length, width=width, spatial=tuple(spatial))
                scale = float(dataset.attrs.get("scale", 1.0))
                if not np.isfinite(scale) or scale <= 0.0:
                    raise InputError(f"The attribute 'scale' of {self._at(name)} is {scale}; it must be above 0.")
                found[name] = Modality(spec, scale)
        if not found:
            raise InputError(
                f"Split {self.name!r} of {self.path.name} has no modality.",
                "A modality is a dataset (clips, steps, ..., channels) of floats, or of integers with 'scale'.",
            )
        missing = [name for name in self.wanted or () if name not in found]
        if missing:
            raise InputError(
                f"Split {self.name!r} of {self.path.name} has no modality {missing[0]!r}; it has {', '.join(found)}.",
                "Name those to train on with --set model.fine=... and --set model.coarse=...",
            )
        return {name: found[name] for name in self.wanted or found}

    def _clips(self) -> int:
        counts = {
            name: dataset.shape[0]
            for name, dataset in self.group.items()
            if isinstance(dataset, h5py.Dataset)
            and (name in self.modalities or name == "caption" or name.startswith("label") or name.endswith(SUFFIXES))
        }
        first = next(iter(self.modalities))
        for name, count in counts.items():
            if count != counts[first]:
                raise InputError(
                    f"Lengths differ in split {self.name!r} of {self.path.name}: "
                    f"{first} has {counts[first]} clips, {printable(name)} has {count}."
                )
        return counts[first]

    def _block_clips(self) -> int:
        """Clips in one chunk of the largest modality, the unit that the disk gives at once."""
        largest = max((self.group[name] for name in self.modalities), key=lambda dataset: dataset.nbytes)
        return int(largest.chunks[0]) if largest.chunks else DEFAULT_BLOCK

    def _at(self, name: str) -> str:
        return f"{printable(self.name)}/{printable(name)} of {self.path.name}"


def reserved(name: str) -> bool:
    """Names that are never a modality."""
    return name.startswith("label") or name in ("caption", "frames", "waveform") or name.endswith(SUFFIXES)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """InputError for whatever the library of a damaged file raises."""
    try:
        yield
    except ERRORS as error:
        raise InputError(f"{path.name} can't be read as HDF5 ({printable(error)}).", "Copy the file again.") from None


def open_hdf5(path: Path) -> h5py.File:
    """The file, open for reading; errors are sentences."""
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path.name} can't be read as HDF5 ({error}).") from error


def refuse_links(group: h5py.Group) -> None:
    """Nothing in `group` may lead to another file."""
    for name in group:
        link = group.get(name, getlink=True)
        outside = isinstance(link, h5py.ExternalLink)
        try:
            item = None if outside else group[name]
        except (KeyError, OSError, RuntimeError) as error:
            to = f" to {printable(link.path)}" if isinstance(link, h5py.SoftLink) else ""
            raise InputError(
                f"{printable(name)!r} of {Path(group.file.filename).name} is a link{to} that leads nowhere, or damaged "
                f"({printable(error)}).",
                "Remove it from the file, or copy the file again.",
            ) from None
        if outside or (isinstance(item, h5py.Dataset) and (item.is_virtual or item.external)):
            raise InputError(
                f"{printable(name)!r} of {Path(group.file.filename).name} lies in another file, which is not followed.",
                "Copy it into this one: h5repack or h5copy.",
            )


def split_names(path: str | Path) -> list[str]:
    """The splits of a data file: its groups."""
    with readable(Path(path)), open_hdf5(Path(path)) as file:
        refuse_links(file)
        return sorted(name for name, item in file.items() if isinstance(item, h5py.Group))


def open_split(path: str | Path, name: str, wanted: tuple[str, ...] | None = None, cache_clips: int = 2048) -> Split:
    """One split of a data file; an unknown name is answered with the names there are."""
    if Path(path).is_file():
        known = os.stat(path)
        _refuse_crash(Path(path), known.st_size, known.st_mtime_ns)
    names = split_names(path)
    if name not in names:
        have = ", ".join(map(printable, names)) or "no groups at all"
        raise InputError(f"{Path(path).name} has no split {name!r}.", f"It has: {have}.")
    return Split(path, name, wanted, cache_clips)


@lru_cache(maxsize=16)
def _refuse_crash(path: Path, size: int, time: int) -> None:
    """Read a file as it stands once in a process of its own."""
    refuse_crash(path, lambda: read_all(path))
