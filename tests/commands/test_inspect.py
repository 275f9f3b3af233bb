"""`toc inspect`: what it prints of a checkpoint, and the figures that it reads the tensors for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cli import make_checkpoint, toc


def test_the_table_names_the_codebook_and_its_modes(tmp_path: Path) -> None:
    done = toc("inspect", make_checkpoint(tmp_path / "m.safetensors"))
    assert done.code == 0
    for word in ("quantize.embedding.weight", "64 codes x 24 dimensions", "euclidean, float32", "✓ masked", "✗ sliced"):
        assert word in done.out


def test_numbers_are_those_of_the_codes(tmp_path: Path) -> None:
    codes = torch.eye(24).repeat(2, 1)[:40] + 1e-3 * torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    done = toc("inspect", make_checkpoint(tmp_path / "m.safetensors", codes), "--numbers", "--json")
    (book,) = json.loads(done.out)["codebooks"]
    unit = torch.nn.functional.normalize(codes.double(), dim=1)
    cosines = (unit @ unit.T)[~torch.eye(40, dtype=torch.bool)]
    assert book["mean_cosine"] == pytest.approx(float(cosines.mean()))
    spread = torch.linalg.svdvals(codes.double() - codes.double().mean(0))
    shares = spread / spread.sum()
    assert book["effective_rank"] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))


@pytest.mark.parametrize("codes", [torch.ones(1, 24), torch.full((8, 24), torch.nan)], ids=["one code", "nan"])
def test_numbers_that_do_not_exist_are_null(tmp_path: Path, codes: torch.Tensor) -> None:
    done = toc("inspect", make_checkpoint(tmp_path / "m.safetensors", codes), "--numbers", "--json")
    assert done.code == 0, done.err
    (book,) = json.loads(done.out)["codebooks"]
    assert book["effective_rank"] is None
    assert book["mean_cosine"] is None
    assert toc("inspect", tmp_path / "m.safetensors", "--numbers").code == 0
