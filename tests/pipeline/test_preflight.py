"""Each refusal that needs no feature row comes before the first row is read: reading these features would fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli import make_checkpoint, toc

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="paths in messages")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Features of 24 dimensions whose first row is NaN: whatever reads them stops with exit code 3 and says so."""
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        file["x"] = np.full((100, 24), np.nan, np.float32)
    return tmp_path / "feats.h5"


def cosine(here: Path) -> Path:
    return make_checkpoint(here / "m.safetensors")


def folder(here: Path) -> Path:
    """A VQModel between two convolutions whose config fits no more than its class."""
    (here / "model").mkdir()
    square = {f"{name}.weight": torch.randn(24, 24, 1, 1) for name in ("quant_conv", "post_quant_conv")}
    biases = {f"{name}.bias": torch.randn(24) for name in ("quant_conv", "post_quant_conv")}
    codes = {"quantize.embedding.weight": torch.randn(64, 24)}
    save_file({**codes, **square, **biases}, here / "model" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "VQModel", "vq_embed_dim": 24, "num_vq_embeddings": 64, "latent_channels": 3}
    (here / "model" / "config.json").write_text(json.dumps(config))
    return here / "model"


def lone(here: Path) -> Path:
    return folder(here) / "diffusion_pytorch_model.safetensors"


def broken(here: Path) -> Path:
    """The layer before the codebook is NaN."""
    path = lone(here)
    state = load_file(path)
    save_file({**state, "quant_conv.weight": state["quant_conv.weight"] * torch.nan}, path)
    return path


def vqp(here: Path) -> Path:
    codes = torch.randn(1, 64, 24)
    counts, inited = torch.ones(1, 64), torch.ones(1)
    state = {"embed": codes, "embed_avg": codes, "cluster_size": counts, "initted": inited}
    torch.save({f"_codebook.{name}": tensor for name, tensor in state.items()}, here / "vq.pt")
    return here / "vq.pt"


def standing(here: Path) -> Path:
    (here / "m.toc.json").write_text("{}")
    return cosine(here)


REFUSED = {
    "ratio": (cosine, ("--ratio", "foo"), 2, "--ratio 'foo' is not MAX:MIN"),
    "ratio of a rotation": (cosine, ("--criterion", "pca", "--ratio", "3:1"), 2, "does not go with --criterion pca"),
    "keep": (cosine, ("--keep", "25"), 2, "more than the codebook's 24 dimensions"),
    "sweep": (cosine, ("--sweep", "0.5:0.1:3"), 2, "leaves (0, 1]"),
    "one modality": (cosine, ("--criterion", "xcov"), 3, "needs two modalities of equal shape; 1 given"),
    "sliced": (cosine, ("--emit", "sliced"), 2, "--emit sliced is not possible"),
    "cosine mean": (cosine, ("--metric", "cosine", "--fill", "mean"), 2, "its constant must be 0"),
    "nothing to load": (folder, ("--space", "encoder", "--verify",), 2, "--verify has nothing to load"),
    "no library": (vqp, ("--verify", "--emit", "masked"), 2, "knows no library"),
    "a lone file": (lone, ("--space", "encoder", "--verify", "--emit", "masked"), 2, "is a lone file"),
    "does not load": (folder, ("--space", "encoder", "--verify", "--emit", "masked"), 3, "The input does not run as it came"),
    "a broken layer": (broken, ("--space", "encoder"), 3, "the layer before the codebook holds NaN or Inf"),
    "standing": (standing, (), 2, "m.toc.json exists"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_row(tmp_path: Path, features: Path, name: str) -> None:
    make, flags, code, sentence = REFUSED[name]
    if name == "does not load":
        pytest.importorskip("diffusers")
    checkpoint = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = toc("optimize", checkpoint.relative_to(tmp_path), "--features", features.name, *flags, cwd=tmp_path)
    assert sentence in done.err
    assert done.code == code
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_refusal_the_features_are_read(tmp_path: Path, features: Path) -> None:
    done = toc("optimize", cosine(tmp_path), "--features", features)
    assert done.code == 3
    assert "NaN" in done.err


def test_a_library_that_is_not_there(tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    done = toc(
        "optimize", folder(tmp_path), "--features", features, "--verify", "--emit", "masked", "--space", "encoder"
    )
    assert done.code == 2
    assert "diffusers is not installed" in done.err
