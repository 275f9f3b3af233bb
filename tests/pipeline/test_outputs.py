"""Where a run writes, what it replaces, and what is left of a run that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cli import make_checkpoint, make_features, toc

VQMODEL = '{"_class_name": "VQModel", "vq_embed_dim": 24, "num_vq_embeddings": 64, "latent_channels": 24}'


def model_folder(folder: Path) -> Path:
    """A folder with a taming-style quantiser between two convolutions, and a config that its library does not load."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    around = {
        f"{name}.weight": torch.randn(24, 24, 1, 1, generator=generator) for name in ("quant_conv", "post_quant_conv")
    }
    biases = {f"{name}.bias": torch.randn(24, generator=generator) for name in ("quant_conv", "post_quant_conv")}
    codes = torch.randn(64, 24, generator=generator)
    save_file({"quantize.embedding.weight": codes, **around, **biases}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(VQMODEL)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_a_random_moment(tmp_path: Path, seed: int) -> None:
    model = model_folder(tmp_path / "model")
    features = make_features(tmp_path / "feats.h5")
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(model), str(features), str(seed), "12"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(lines) == 12
    for stands, mixed, carried_out, left, whole_at_once in lines:
        assert stands in (0, 1)
        assert (mixed, left) == (0, 0)
        assert whole_at_once or carried_out


def test_a_failed_run_costs_nothing_of_the_run_before(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    model, features = model_folder(tmp_path / "model"), make_features(tmp_path / "feats.h5")
    run = ("optimize", model, "--features", features, "--space", "encoder", "--emit", "masked", "--emit", "sliced")
    assert toc(*run, cwd=tmp_path).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    failed = toc(*run, "--keep", "0.25", "--verify", "--force", cwd=tmp_path)
    assert failed.code == 3
    assert "The input does not run as it came" in failed.err
    assert "Nothing is left" not in failed.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("inside", ["snapshots/abc", "blobs"])
def test_nothing_is_written_into_a_hugging_face_cache(tmp_path: Path, inside: str) -> None:
    cache = tmp_path / "hub" / "models--org--name"
    (cache / inside).mkdir(parents=True)
    model = make_checkpoint(cache / inside / "model.safetensors")
    make_features(cache / inside / "feats.h5")
    work = tmp_path / "work"
    work.mkdir()
    before = sorted(cache.rglob("*"))
    for command in (("optimize", model, "--features"), ("quantize", "--codebook", model)):
        done = toc(*command, cache / inside / "feats.h5", cwd=work)
        assert done.code == 0, done.err
        assert "lies in a Hugging Face cache: the outputs go to the current folder." in done.err
    assert sorted(path.name for path in work.iterdir()) == [
        "feats.tokens.h5",
        "model.toc.json",
        "model.toc.safetensors",
    ]
    assert sorted(cache.rglob("*")) == before


def test_a_snapshot_named_as_a_folder(tmp_path: Path) -> None:
    snapshot = model_folder(tmp_path / "models--org--name" / "snapshots" / "abc")
    features = make_features(tmp_path / "feats.h5")
    (tmp_path / "work").mkdir()
    done = toc(
        "optimize", snapshot, "--features", features, "--emit", "masked", "--space", "encoder", cwd=tmp_path / "work"
    )
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "name.masked",
        "name.toc.json",
        "name.toc.safetensors",
    ]
    assert [path.name for path in snapshot.parent.iterdir()] == ["abc"]


def test_a_folder_of_training_snapshots_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    model = make_checkpoint(tmp_path / "snapshots" / "step.safetensors")
    features = make_features(tmp_path / "feats.h5")
    done = toc("optimize", model, "--features", features, cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "snapshots" / "step.toc.safetensors").exists()
