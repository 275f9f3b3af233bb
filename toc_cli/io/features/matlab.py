"""MATLAB files of version 7.3: HDF5 with the axes reversed; a cell array of matrices is one array per cell."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import hdf5
from toc_cli.io.features.source import Opened, Reader, Source, channels_last
from toc_cli.io.names import printable

INNER = ("#refs#", "#subsystem#")
"""Groups in which MATLAB keeps what its cells refer to."""


class MatlabSource(Source):
    """A matrix by the path of its dataset."""

    def __init__(self, path: Path, name: str, found: hdf5.Hdf5Array) -> None:
        self.path, self.name = path, name
        self.shape, self.dtype = found.shape[::-1], found.dtype

    def reader(self, axis: int, opened: Opened) -> Reader:
        return MatlabRows(self, axis, opened.get(self.path, lambda: hdf5.open_hdf5(self.path)))


class MatlabRows(Reader):
    """Hyperslabs of the reversed dataset, turned back."""

    def __init__(self, source: MatlabSource, axis: int, file: h5py.File) -> None:
        super().__init__(source.shape, axis)
        self._source, self._dataset = source, file[source.name.encode("utf-8", "surrogateescape")]

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        try:
            for index, begin, end in self.slabs(start, stop):
                rows = channels_last(self._dataset[index[::-1]].T, self.axis, len(self.shape))
                out[begin - start : end - start].reshape(rows.shape)[...] = rows
        except hdf5.ERRORS as error:
            raise InputError(
                f"{printable(self._source.path)}: rows {start:,} to {stop:,} of {printable(self._source.name)} "
                f"cannot be read: {printable(error)}."
            ) from None


def matlab_sources(path: Path) -> dict[str, Source]:
    """The matrices of a file by variable, and those of cell arrays by `VARIABLE/number`."""
    with hdf5.open_hdf5(path) as file:
        found = hdf5.numeric_datasets(file, path)
        names = {name: name for name in found if name.partition("/")[0] not in INNER}
        try:
            for variable in file:
                item = file[variable]
                if isinstance(item, h5py.Dataset) and item.dtype == h5py.ref_dtype:
                    for at, reference in enumerate(item[()].T.reshape(-1), 1):
                        names[f"{variable}/{at}"] = file[reference].name.lstrip("/")
        except hdf5.ERRORS as error:
            raise InputError(f"{printable(path)} is damaged: {printable(error)}.") from None
    return {key: MatlabSource(path, name, found[name]) for key, name in names.items() if name in found}
