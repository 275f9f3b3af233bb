"""What a capture writes about its rows comes back, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from toc_cli.errors import InputError
from toc_cli.io.stamps import Stamps


def test_stamps_come_back(tmp_path: Path) -> None:
    stamps = Stamps("EncodecModel", "quantizer", "encoder", "transformers 5.23.0", {"model.safetensors": "ab" * 32})
    with h5py.File(tmp_path / "f.h5", "w") as file:
        dataset = file.create_dataset("features", data=np.zeros((2, 3)))
        stamps.write(dataset.attrs)
        assert Stamps.read(dataset.attrs, "features") == stamps
        assert Stamps.read(file.create_dataset("plain", data=0).attrs, "plain") == Stamps()


@pytest.mark.parametrize(
    "attributes",
    [
        {"toc.side": "left"},
        {"toc.model": 3},
        {"toc.model": "x" * 70_000},
        {"toc.checkpoint": "no json"},
        {"toc.checkpoint": "[" * 5000},
        {"toc.checkpoint": '{"a": 1}'},
    ],
)
def test_other_values_are_refused_in_a_sentence(attributes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="features"):
        Stamps.read(attributes, "features")
