"""A codebook that explains nothing of its features is said to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import toc_cli
from cli import toc


def write(folder: Path, scale: float) -> None:
    drawn = np.random.default_rng(0)
    codes = drawn.normal(size=(32, 8)).astype(np.float32)
    np.save(folder / "codes.npy", codes)
    x = codes[drawn.integers(0, 32, 600)] + 0.2 * drawn.normal(size=(600, 8))
    np.save(folder / "x.npy", (scale * x).astype(np.float32))


def warned(plan) -> list[str]:
    return [warning["text"] for warning in plan.record["warnings"] if warning["id"] == "unexplained_features"]


def test_features_of_another_scale_are_warned_of_and_fail_a_check(tmp_path: Path) -> None:
    write(tmp_path, 0.01)
    done = toc("optimize", "codes.npy", "--features", "x.npy", "--keep", "0.5", cwd=tmp_path)
    assert done.code == 0
    assert "not what this codebook was trained on" in " ".join(done.err.split())
    assert toc("report", "codes.toc.json", "--check", "before.snr_db>=0.1", "-q", cwd=tmp_path).code == 1


def test_its_own_features_are_not(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert not warned(toc_cli.optimize(tmp_path / "codes.npy", tmp_path / "x.npy"))


def test_each_modality_is_judged_alone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    far = np.random.default_rng(1).normal(size=(600, 8)).astype(np.float32) * 1e-3
    np.save(tmp_path / "far.npy", far)
    (said,) = warned(toc_cli.optimize(tmp_path / "codes.npy", [tmp_path / "x.npy", f"other={tmp_path / 'far.npy'}"]))
    assert "other" in said


@pytest.mark.parametrize("scale", [10, 100])
def test_under_a_cosine_lookup_the_record_does_not_follow_the_scale(tmp_path: Path, scale: float) -> None:
    write(tmp_path, 1)
    np.save(tmp_path / "scaled.npy", np.load(tmp_path / "x.npy") * np.float32(scale))
    one, other = (
        toc_cli.optimize(tmp_path / "codes.npy", tmp_path / name, metric="cosine").metrics[0]
        for name in ("x.npy", "scaled.npy")
    )
    for side in ("before", "after"):
        for name, value in one[side].items():
            assert other[side][name] == (value if value is None else pytest.approx(value, rel=1e-4)), name


def test_half_precision_codes_whose_rotation_overflows_are_scored_as_their_float32_copy(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    codes = (drawn.normal(size=(64, 16)) * 2e4).clip(-6e4, 6e4).astype(np.float16)
    np.save(tmp_path / "half.npy", codes)
    np.save(tmp_path / "single.npy", codes.astype(np.float32))
    np.save(tmp_path / "x.npy", (drawn.normal(size=(500, 16)) * 2e4).astype(np.float32))
    half, single = (toc_cli.optimize(tmp_path / f"{name}.npy", tmp_path / "x.npy") for name in ("half", "single"))
    assert half.kept[0].equal(single.kept[0])
    for side in ("before", "after"):
        assert {**half.metrics[0][side], "bytes": 0} == {**single.metrics[0][side], "bytes": 0}
    turned = toc_cli.optimize(tmp_path / "half.npy", tmp_path / "x.npy", criterion="pca")
    turned.save(tmp_path / "turned.toc.safetensors")
    done = toc("quantize", "x.npy", "--codebook", "turned.toc.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
