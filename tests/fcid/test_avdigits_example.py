"""The documented road over AV-Digits, walked in a tiny form on the prototype's first clips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from conftest import ROOT, shared_folder
from toc_cli.report import schema

CLIPS = {"train": 64, "val": 60}
OTHERS = 48


@pytest.fixture
def prototype(tmp_path: Path) -> Path:
    """The first clips of every split."""
    folder = shared_folder("TOC_AVDIGITS", "avdigits")
    if folder is None:
        pytest.skip("AV-Digits is not here: set TOC_AVDIGITS to the folder of prototype.h5")
    path = tmp_path / "prototype.h5"
    with h5py.File(folder / "prototype.h5", "r") as source, h5py.File(path, "w") as target:
        for name, item in source.items():
            if isinstance(item, h5py.Dataset):
                target[name] = item[:]
                continue
            for column, values in item.items():
                target[f"{name}/{column}"] = values[: CLIPS.get(name, OTHERS)]
    return path


def test_the_whole_road(prototype: Path, tmp_path: Path) -> None:
    folder = tmp_path / "road"
    effort = {"EPOCHS": "1", "WIDTH": "16", "CODES": "12", "SEEDS": "1", "PROBE_EPOCHS": "1", "KEEP": "0.5"}
    program = {"TOC": f"{sys.executable} -m toc_cli", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "avdigits.sh"), str(prototype), str(folder)],
        env={**os.environ, **effort, **program}, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "evaluation.toc.json").read_text())
    schema.validate(record)
    found = record["evaluation"]
    assert {row["task"] for row in found["classification"]} == {"label_clip", "label_attribute"}
    assert {row["test"] for row in found["localisation"]} == {"avvp_test", "ave_test"}
    assert {(row["task"], row["train"], row["test"]) for row in found["transfer"]} == {
        ("label_second", "ave_train", "avvp_test")
    }
    assert "artefact subspace" in found["generation"][0]["results"]
    page = (folder / "report.html").read_text()
    for title in ("Classification: label_attribute", "Transfer: label_second", "Generation: audio → video"):
        assert title in page
