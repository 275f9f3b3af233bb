"""Tokens go out by `toc quantize`, come back as vectors by `toc decode`, and stay with the codebook that chose them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cli import make_checkpoint, make_features, toc
from toc_cli.ops.usage import collisions, table_usage


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A checkpoint, features with labels, the pruned codebook, and its tokens."""
    make_checkpoint(tmp_path / "model.safetensors")
    rows = np.random.default_rng(0).normal(0.3, 1, (20, 30, 24)).astype(np.float32)
    make_features(tmp_path / "feats.h5", x=rows, label=np.arange(20))
    assert toc("optimize", "model.safetensors", "--features", "feats.h5", "--keep", "0.5", cwd=tmp_path).code == 0
    assert toc("quantize", "feats.h5", "--codebook", "model.toc.safetensors", cwd=tmp_path).code == 0
    return tmp_path


def test_there_and_back_is_stable(here: Path) -> None:
    assert toc("decode", "feats.tokens.h5", "--codebook", "model.toc.safetensors", cwd=here).code == 0
    again = ("quantize", "feats.vectors.h5", "--codebook", "model.toc.safetensors", "-o", "again.h5")
    done = toc(*again, cwd=here)
    assert done.code == 0, done.err
    with h5py.File(here / "feats.tokens.h5") as old, h5py.File(here / "again.h5") as new:
        assert np.array_equal(old["x"], new["x"])
        assert old["x"].shape == (20, 30)
    with h5py.File(here / "feats.vectors.h5") as file:
        assert file["x"].shape == (20, 30, 24)
        assert np.array_equal(file["label"], np.arange(20))


def test_blocks_do_not_show(here: Path) -> None:
    for size, name in (("1MiB", "a.h5"), ("1GiB", "b.h5")):
        done = toc(
            "decode",
            "feats.tokens.h5",
            "--codebook",
            "model.toc.safetensors",
            "-o",
            name,
            "--max-memory",
            size,
            cwd=here,
        )
        assert done.code == 0
    assert (here / "a.h5").read_bytes() == (here / "b.h5").read_bytes()


def test_tokens_of_another_codebook_are_refused(here: Path) -> None:
    before = sorted(here.iterdir())
    done = toc("decode", "feats.tokens.h5", "--codebook", "model.safetensors", cwd=here)
    assert done.code == 3
    assert "chosen by another codebook than model.safetensors" in done.err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (np.array([0, 64]), "token 64 is no code of level 0, which has 64"),
        (np.array([3, -1]), "token -1 is no code"),
        (np.zeros((0,), int), "has shape (0,)"),
        (np.zeros(4), "holds no tokens"),
    ],
)
def test_what_is_no_token_is_told(here: Path, tokens: np.ndarray, sentence: str) -> None:
    np.save(here / "t.npy", tokens)
    done = toc("decode", "t.npy", "--codebook", "model.safetensors", cwd=here)
    assert done.code == 3
    assert sentence in done.err
    assert not (here / "t.vectors.h5").exists()


def test_a_folder_stamps_its_tokens_as_its_file_does(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    make_checkpoint(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text("{}")
    make_features(tmp_path / "feats.h5")
    assert toc("quantize", "feats.h5", "--codebook", "hf", cwd=tmp_path).code == 0
    assert toc("decode", "feats.tokens.h5", "--codebook", "hf/model.safetensors", cwd=tmp_path).code == 0


def test_quantize_tells_of_each_level_and_of_the_ids(tmp_path: Path) -> None:
    codes = torch.randn(2, 1, 8, 6, generator=torch.Generator().manual_seed(0))
    state = {f"layers.{level}._codebook.embed": codes[level] for level in range(2)}
    torch.save(state, tmp_path / "rvq.pt")
    make_features(tmp_path / "feats.h5", rows=200, dim=6)
    done = toc("quantize", "feats.h5", "--codebook", "rvq.pt", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["datasets"]
    with h5py.File(tmp_path / "feats.tokens.h5") as file:
        tokens = file["x"][...]
    assert [(each["level"], each["head"]) for each in row["tables"]] == [(0, 0), (1, 0)]
    for level, each in enumerate(row["tables"]):
        assert each["used_codes"] == len(set(tokens[:, level].tolist()))
        assert each["bits_per_token"] == 3
    for length, each in enumerate(row["tuples"], start=1):
        ids = [tuple(ids) for ids in tokens[:, :length].tolist()]
        counts = [ids.count(one) for one in set(ids)]
        assert (each["distinct"], each["largest"]) == (len(counts), max(counts))
        assert each["alone"] == pytest.approx(sum(count for count in counts if count == 1) / len(ids))
        assert each["collision_rate"] == pytest.approx(1 - len(counts) / len(ids))
    assert "rows alone" in toc("quantize", "feats.h5", "--codebook", "rvq.pt", "--force", cwd=tmp_path).out


def test_one_code_has_no_entropy_and_all_alike_have_the_bits_of_their_number() -> None:
    assert table_usage(np.array([0, 7, 0, 0])) == {
        "codes": 4, "used_codes": 1, "perplexity": 1.0, "entropy_bits": 0.0, "bits_per_token": 2.0
    }  # fmt: skip
    assert table_usage(np.array([5, 5, 5, 5]))["entropy_bits"] == pytest.approx(2)
    assert collisions(np.array([[1, 1], [1, 2], [0, 1], [1, 1]]))[1] == {
        "length": 2, "distinct": 3, "largest": 2, "alone": 0.5, "collision_rate": 0.25
    }  # fmt: skip
