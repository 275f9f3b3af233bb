"""Files that once ended in a raw exception, a hang or a crash: each ends in a sentence, in seconds and bounded memory.

The folder is that of `TOC_CRASHERS`, else `../shared/crashers`: an `index.json` of {file, reader}.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import make_checkpoint, make_features, toc
from conftest import shared_folder
from fcid.tiny import tiny_data
from forked import Forks

FOLDER = shared_folder("TOC_CRASHERS", "crashers")
ENTRIES = json.loads((FOLDER / "index.json").read_text()) if FOLDER else []
SECONDS, MEMORY = 10, 1 << 30
WIDTHS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64)
TINY = [
    "--set",
    "model.width=8",
    "--set",
    "model.heads=2",
    "--set",
    "model.codebook.size=6",
    "--batch-size",
    "6",
    "--epochs",
    "1",
]


@pytest.fixture(params=ENTRIES or [None], ids=lambda entry: entry["file"] if entry else "none")
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param is None:
        pytest.skip("crashers are not here: set TOC_CRASHERS to their folder")
    return request.param


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks(SECONDS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a broken file needs beside it: features of many widths, a checkpoint, a record, training data."""
    folder = tmp_path_factory.mktemp("material")
    generator = np.random.default_rng(0)
    np.savez(folder / "feats.npz", **{f"w{n}": generator.normal(size=(60, n)).astype(np.float32) for n in WIDTHS})
    make_checkpoint(folder / "model.safetensors")
    make_features(folder / "x.h5")
    assert toc("optimize", "model.safetensors", "--features", "x.h5", cwd=folder).code == 0
    tiny_data(folder / "tiny.h5")
    return folder


def commands(entry: dict[str, Any], folder: Path, material: Path, fixtures: Path | None) -> list[list[object]]:
    """Lay the file out in `folder` as its reader meets it, and the command lines that read it."""
    assert FOLDER is not None
    source, reader, feats = FOLDER / entry["file"], entry["reader"], material / "feats.npz"
    target: Path = folder / source.name.partition("-0.")[2] if "-0." in source.name else folder / source.name
    if reader == "sharded":
        if fixtures is None:
            pytest.skip("checkpoint fixtures are not here: set TOC_FIXTURES to their folder")
        model, _, name = source.name.partition("-0.")[2].partition(".")
        shutil.copytree(fixtures / "transformers" / model, folder / model)
        target = folder / model / name
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    checkpoint = target.parent if reader == "sharded" else target
    optimize: list[object] = ["optimize", checkpoint, "--features", feats, "--keep", "0.5", "--force", "--assume"]
    modes = ("codebook", "masked", "sliced", "consumer")
    edits = [[*optimize, "--emit", mode] for mode in (modes if reader == "shapes" else modes[:2])]
    if reader == "features":
        widths = ["optimize", material / "model.safetensors", "--features", target, "--codebook"]
        return [[*widths, "quantize.embedding.weight", "-o", "out.toc.safetensors"], ["inspect", target]]
    if reader == "artefact":
        return [["inspect", target, "--numbers"], ["quantize", feats, "--codebook", target, "--force"], *edits[:1]]
    if reader in ("toml", "record"):
        shutil.copy(material / "model.toc.json", folder / "model.toc.json")
        return [["report", target if reader == "record" else "model.toc.json"]]
    if reader == "trainconfig":
        return [["train-fcid", material / "tiny.h5", "-o", "run", "--config", target]]
    if reader == "fcid":
        return [["train-fcid", target, "-o", "run", *TINY]]
    return [["inspect", target, "--numbers"], *edits]


def test_crasher(entry: dict[str, Any], forks: Forks, material: Path, tmp_path: Path) -> None:
    for command in commands(entry, tmp_path, material, shared_folder("TOC_FIXTURES", "fixtures")):
        ended = forks.run(command, tmp_path)
        assert ended.code in (0, 2, 3), (command, ended)
        if ended.code:
            assert 1 <= len(ended.err.strip().splitlines()) <= 12, (command, ended.err)
            assert "Traceback" not in ended.err
            assert "Internal error" not in ended.err
        assert ended.seconds <= SECONDS, (command, ended.seconds)
        assert ended.peak <= MEMORY, (command, ended.peak)
