"""`toc inspect` and `toc optimize` on every file of a fixture collection: what its `expect` says, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import Done, toc
from conftest import fixture_entries, shared_folder
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.io.families.base import MODES

FOLDER = shared_folder("TOC_FIXTURES", "fixtures")
ENTRIES = fixture_entries(FOLDER)
ROWS = 240


@pytest.fixture(params=ENTRIES or [None], ids=lambda entry: entry["path"] if entry else "none")
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param is None:
        pytest.skip("checkpoint fixtures are not here: set TOC_FIXTURES to their folder")
    return request.param


def copied(source: Path, folder: Path) -> Path:
    """A copy of the file or folder, which a run may write beside; of the whole folder of an index of shards."""
    target = folder / source.name
    if source.name.endswith(".index.json"):
        shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    elif source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def write_features(path: Path, checkpoint: Path) -> list[str]:
    """Random rows for every codebook of a checkpoint, before its projection where it has one: a modality per width."""
    ckpt = open_checkpoint(checkpoint)
    books = detect(ckpt)
    widths = sorted({book.outer_width or book.heads * book.dim for book in books})
    generator = np.random.default_rng(0)
    names = ("narrow", "wide", "wider", "widest")  # names that differ in digits alone would be parts of one modality
    rows = {name: generator.standard_normal((ROWS, width)) for name, width in zip(names, widths, strict=False)}
    assert len(rows) == len(widths)
    np.savez(path, **{name: array.astype(np.float32) for name, array in rows.items()})
    size = max(1, (min(book.dim for book in books) + 1) // 2)
    offered = [mode for mode in MODES if all(not emit.supported(ckpt, book, size)[mode] for book in books)]
    return ["--keep", str(size), *(word for mode in offered for word in ("--emit", mode))]


def refused(done: Done, name: str) -> None:
    lines = done.err.strip().splitlines()
    assert done.code == 3, done.err
    assert 1 <= len(lines) <= 2, done.err
    assert "Traceback" not in done.err
    assert name in done.err or "codebook" in done.err, done.err


def test_command_line(entry: dict[str, Any], fixtures_dir: Path, tmp_path: Path) -> None:
    checkpoint = copied(fixtures_dir / entry["path"], tmp_path)
    features = tmp_path / "features.npz"
    seen = toc("inspect", checkpoint, "--json")
    before = sorted(path.name for path in tmp_path.iterdir())
    if entry["expect"] not in ("ok", "ok-inert", "warn"):
        if entry["expect"] != "bad-values":
            refused(seen, checkpoint.name)
        np.savez(features, x=np.ones((9, 24), np.float32))
        refused(toc("optimize", checkpoint, "--features", features), checkpoint.name)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "features.npz"])
        assert "TOC-FIXTURE-PAYLOAD-EXECUTED" not in seen.out + seen.err
        return
    assert seen.code == 0, seen.err
    modes = write_features(features, checkpoint)
    done = toc("optimize", checkpoint, "--features", features, *modes, "--space", "encoder", "--seed", 3, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    troubles = [warning["text"] for warning in record["warnings"] if warning["id"] != "family"]
    assert entry["expect"] != "warn" or troubles
    assert all(text in done.err for text in troubles)
    assert len(record["codebooks"]) == len(json.loads(seen.out)["codebooks"])
    for book in record["codebooks"]:
        assert all(len(kept) == book["kept_dim"] for level in book["kept"] for kept in level)
    tokens = toc("quantize", features, "--codebook", next(tmp_path.glob("*.toc.safetensors")), "--json")
    assert tokens.code == 0, tokens.err
    if entry["expect"] == "ok-inert":
        assert toc("optimize", checkpoint, "--features", features, "--emit", "masked", "--force").code in (2, 3)
