"""The table of containers: every row leads to a reader, and one more reader is one class and one row."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from toc_cli.errors import InputError
from toc_cli.io import containers
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.stored_types import BYTES, torch_type, type_name
from toc_cli.io.containers import CONTAINERS, Container


@pytest.mark.parametrize("row", CONTAINERS, ids=lambda row: row.name)
def test_each_row_is_read_or_says_why_not(row: Container) -> None:
    for reader in filter(None, (row.checkpoint, row.features)):
        module, _, name = reader.partition(":")
        assert callable(getattr(import_module(module), name))
    assert row.checkpoint or row.features or row.unread[0]
    assert all(suffix.startswith(".") for suffix in row.suffixes)


def test_names_of_rows_are_unique() -> None:
    assert len({row.name for row in CONTAINERS}) == len(CONTAINERS)


@pytest.mark.parametrize("name", BYTES)
def test_stored_types_are_torchs_own(name: str) -> None:
    assert type_name(torch_type(name)) == name
    assert torch_type(name).itemsize == BYTES[name]


def test_a_type_that_torch_lacks_is_read_as_float32() -> None:
    info = TensorInfo((), "x", (2, 32), "Q4_0", packed=36)
    assert (info.dtype, info.is_floating, info.nbytes) == (torch.float32, True, 36)


class Lines(Checkpoint):
    """A container of the test's own: the word LINES, then one row of numbers a line."""

    container = "lines"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rows = np.loadtxt(path.read_text().splitlines()[1:], dtype=np.float32)
        self.infos["table"] = TensorInfo((), "table", self._rows.shape, "float32")
        self.files = (path,)

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        return torch.from_numpy(self._rows)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        raise NotImplementedError


def test_a_container_is_one_class_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lines"
    path.write_text("LINES\n1 2\n3 4\n5 6\n")
    with pytest.raises(InputError, match="no container that toc reads"):
        open_checkpoint(path)
    row = Container("lines", lambda head: head.start.startswith(b"LINES"), (".lines",), checkpoint=f"{__name__}:Lines")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Lines=Lines))
    monkeypatch.setattr(containers, "CONTAINERS", (row, *CONTAINERS))
    assert open_checkpoint(path).get("table").tolist() == [[1, 2], [3, 4], [5, 6]]
    assert open_checkpoint(tmp_path).get("table").shape == (3, 2)
    with pytest.raises(InputError, match="is a lines file, not features"):
        containers.container_of(path).open_features(path)
