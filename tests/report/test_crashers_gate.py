"""Settings and records that once crashed the gate, and others of their kind: a sentence and exit 2 or 3, or a report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli import toc
from conftest import shared_folder

FOLDER = shared_folder("TOC_CRASHERS", "crashers")
FILES = sorted(path for kind in ("toml", "record") for path in (FOLDER.glob(f"{kind}-*") if FOLDER else ()))
RECORD = Path(__file__).parent.parent / "golden" / "model.toc.json"


@pytest.mark.skipif(not FILES, reason="no crashers of the gate are here: set TOC_CRASHERS to their folder")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_sentence_or_a_report(path: Path, tmp_path: Path) -> None:
    if path.suffix == ".toml":
        shutil.copy(path, tmp_path / ("toc.toml" if path.name.endswith("toc.toml") else "pyproject.toml"))
        shutil.copy(RECORD, tmp_path / "model.toc.json")
    else:
        shutil.copy(path, tmp_path / "model.toc.json")
    done = toc("report", cwd=tmp_path)
    assert done.code in (0, 2, 3)
    assert len(done.err.strip().splitlines()) <= 2, done.err
    assert "Internal error" not in done.err
