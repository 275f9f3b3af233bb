"""A layer that is the very tensor of the codebook is named where a copy changes it along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cli import make_features, toc


@pytest.mark.parametrize(("tied", "form", "told"), [(True, "masked", 1), (True, "codebook", 0), (False, "masked", 0)])
def test_a_tied_head(tied: bool, form: str, told: int, tmp_path: Path) -> None:
    codes = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    state = {"quantize.embedding.weight": codes, "head.weight": codes if tied else codes.clone()}
    torch.save(state, tmp_path / "model.pt")
    make_features(tmp_path / "feats.h5", x=codes.repeat(20, 1).numpy())
    words = ["--metric", "euclidean", "--assume", "--keep", "4", "--emit", form]
    done = toc("optimize", "model.pt", "--features", "feats.h5", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "model.toc.json").read_text())
    found = [warning["text"] for warning in record["warnings"] if warning["id"] == "tied"]
    assert len(found) == told
    assert all("is the same tensor as head.weight" in text for text in found)
    if form == "masked":
        made = torch.load(tmp_path / "model.masked.pt")
        assert torch.equal(made["head.weight"], made["quantize.embedding.weight"]) == tied
