"""Runs over streams of many parts: the figures of one array, what is said of them, and tokens that keep their parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cli import make_checkpoint, toc
from toc_cli.io.features import open_features
from toc_cli.pipeline import Options, plan_optimization

CLIPS, ROWS = 40, 30
X = np.random.default_rng(0).normal(size=(CLIPS, ROWS, 24)).astype("f4")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model.safetensors")
    np.save(tmp_path / "array.npy", X)
    (tmp_path / "clips").mkdir()
    with h5py.File(tmp_path / "clips.h5", "w") as file:
        for at, clip in enumerate(X):
            file[f"clip{at}/feat"], file[f"clip{at}/label"] = clip, at % 2
            np.save(tmp_path / "clips" / f"clip{at}.npy", clip)
    return tmp_path


def entry(folder: Path, features: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    plan = plan_optimization(
        folder / "model.safetensors", str(folder / features), Options(metric="euclidean", **options)
    )
    return plan.record, plan.metrics[0]


@pytest.mark.parametrize("features", ["clips.h5", "clips"])
@pytest.mark.parametrize("criterion", ["toc", "features"])
def test_clips_have_the_figures_of_one_array(here: Path, features: str, criterion: str) -> None:
    """Also their intervals: the clip is the unit of both."""
    _, whole = entry(here, "array.npy", criterion=criterion, eval_rows=255)
    record, parted = entry(here, features, criterion=criterion, eval_rows=255)
    assert whole["sample"] == {**parted["sample"], "unit": "clips"}
    assert whole["sample"]["evaluated"] == 255
    assert whole["sample"]["units"] == 40
    for side in ("kept", "before", "after", "ci95", "baselines", "usage"):
        assert parted[side] == whole[side]
    (stream,) = record["features"]
    assert (stream["parts"], stream["units"], stream["rows"]) == (40, 40, 1200)
    assert len(record["inputs"]) == 2
    assert len(json.dumps(record)) < 100_000


def test_a_dry_run_shows_what_was_understood(here: Path) -> None:
    arguments = ("optimize", "model.safetensors", "--features", "clips.h5", "--dry-run", "--limit", "99")
    done = toc(*arguments, cwd=here)
    assert done.code == 0, done.err
    assert "would read feat 40 parts, 40 datasets, 99 rows of 24" in " ".join(done.out.split())


def test_ranks_and_memory_give_the_bytes_of_one_process(here: Path) -> None:
    arguments = ["optimize", "model.safetensors", "--features", "clips", "-q", "--force", "--eval-rows", "255"]

    def outputs() -> tuple[bytes, dict[str, Any]]:
        record = json.loads((here / "model.toc.json").read_text())
        record.pop("timing")
        return (here / "model.toc.safetensors").read_bytes(), record

    assert toc(*arguments, cwd=here).code == 0
    first = outputs()
    assert toc(*arguments, "--max-memory", "1MiB", cwd=here).code == 0
    assert outputs() == first
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "toc_cli"]
    done = subprocess.run([*launch, *arguments], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outputs() == first


def test_tokens_keep_their_parts(here: Path) -> None:
    for features in ("clips.h5", "array.npy"):
        done = toc("quantize", features, "--codebook", "model.safetensors", "-q", cwd=here)
        assert done.code == 0, done.err
    with h5py.File(here / "clips.tokens.h5") as file, h5py.File(here / "array.tokens.h5") as whole:
        assert np.array_equal(file["feat"][:], whole["array"][:].reshape(-1))
        assert file["feat.starts"][:].tolist() == [30 * at for at in range(41)]
        assert file["feat.files"].asstr()[3] == "clips.h5/clip3/feat"
        assert np.array_equal(file["label"][:], np.arange(40) % 2)


def test_labels_that_are_left_out_are_said(here: Path) -> None:
    np.savez(
        here / "x.npz", feat=X, label_clip=np.arange(39), label_score=np.ones((40, 3)), target=np.arange(40),
        label=np.arange(40) % 2,
    )  # fmt: skip
    record, book = entry(here, "x.npz")
    said = [warning["text"] for warning in record["warnings"] if warning["id"] == "labels"]
    assert len(said) == 3
    assert "label_clip (39,) stand along none of feat (40, 30, 24)" in said[0]
    assert "label_score (40, 3) are float64: classes are whole numbers" in said[1]
    assert "target (40,) may be labels" in said[2]
    assert book["probe"]["labels"] == "label"


def test_hundreds_of_files_are_one_input(here: Path) -> None:
    record, _ = entry(here, "clips")
    joined = record["inputs"][-1]
    assert (joined["files"], joined["name"]) == (40, "clips")
    assert joined["bytes"] == sum(path.stat().st_size for path in (here / "clips").iterdir())
    names = " ".join(path.name for path in open_features(here / "clips").files)
    shell = f"cd clips && sha256sum {names} | sha256sum"
    printed = subprocess.run(["bash", "-c", shell], cwd=here, capture_output=True, text=True, check=True).stdout
    assert joined["sha256"] == printed.split()[0]
