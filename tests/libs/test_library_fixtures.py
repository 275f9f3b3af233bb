"""The shared checkpoints of real libraries: forms equal to the ones pruned by hand, and run in their library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import library_models as models
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit


def kept_by_hand(whole: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Which columns of a table (K, D) a pruned twin keeps: equal ones where it is narrower, else those it left alive."""
    if pruned.shape == whole.shape:
        return (pruned != 0).any(0).nonzero().flatten()
    equal = (whole[:, :, None] == pruned[:, None, :]).all(0)  # (D, D')
    return equal.any(1).nonzero().flatten()


def kept_sets(source: Path, twin: Path) -> list[torch.Tensor]:
    """Per codebook (L|1, H, D') of a twin pruned by hand."""
    whole, pruned = open_checkpoint(source), open_checkpoint(twin)
    sets = []
    for book in detect(whole):
        levels = [keys[0] for keys in book.keys][: None if book.own_dims_per_level else 1]
        sets.append(torch.stack([kept_by_hand(whole.get(key), pruned.get(key))[None] for key in levels]))
    return sets


@pytest.mark.parametrize(
    ("source", "twin", "mode"),
    [
        ("transformers/dac", "pruned/dac_masked5", "masked"),
        ("transformers/dac", "pruned/dac_structural5", "sliced"),
        ("transformers/encodec", "pruned/encodec_masked15", "masked"),
        ("transformers/encodec", "pruned/encodec_structural15", "sliced"),
        ("transformers/mimi", "pruned/mimi_structural11", "sliced"),
    ],
)
def test_our_form_is_the_one_pruned_by_hand(
    fixtures_dir: Path, tmp_path: Path, source: str, twin: str, mode: str
) -> None:
    kept = kept_sets(fixtures_dir / source, fixtures_dir / twin)
    zero = [torch.zeros(book.levels, 1, book.dim) for book in detect(open_checkpoint(fixtures_dir / source))]
    ours = open_checkpoint(models.write(fixtures_dir / source, detect, mode, kept, zero, tmp_path / "ours"))
    theirs = open_checkpoint(fixtures_dir / twin)
    assert list(ours.infos) == list(theirs.infos)
    for key, info in theirs.infos.items():
        assert ours.infos[key].shape == info.shape
        if "parametrizations" in key:
            torch.testing.assert_close(ours.get(key), theirs.get(key), rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(ours.get(key), theirs.get(key)), key
    sizes = ("codebook_dim", "hidden_size", "vector_quantization_hidden_dimension")
    assert all(ours.config.get(name) == theirs.config.get(name) for name in sizes)


def test_every_shared_codec_runs_in_its_library(fixtures_dir: Path, tmp_path: Path) -> None:
    """All forms that a codec offers, on the shared features where they fit."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'")
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'toc-cli[test-libs]'")
    ran: dict[str, set[str]] = {}
    for name in codecs(fixtures_dir):
        features = fixtures_dir / f"{name}.features.npy"
        sample = torch.from_numpy(np.load(features)).flatten(0, -2).float() if features.exists() else None
        prepared = models.prepare(fixtures_dir / name, 0.6, sample=sample)
        ckpt = open_checkpoint(fixtures_dir / name)
        offered = [emit.supported(ckpt, book, prepared.kept[0].shape[-1]) for book in prepared.books]
        for mode in ("masked", "sliced", "consumer"):
            if any(modes[mode] for modes in offered):
                continue
            runs = prepared.runs(prepared.write(mode, tmp_path / f"{name.replace('/', '.')}.{mode}"))
            expected = prepared.full if mode == "consumer" else prepared.pruned
            for quantiser, rows, found in zip(expected, prepared.rows, runs, strict=True):
                assert models.flips(quantiser, rows, quantiser.tokens(rows), found.tokens) == 0, (name, mode)
                assert found.outputs.isfinite().all()
            ran.setdefault(mode, set()).add(prepared.books[0].family)
    assert ran["sliced"] >= {"encodec", "dac", "mimi", "chameleon vq", "wav2vec2", "diffusers vqmodel"}
    assert ran["masked"] >= ran["sliced"] | {"xcodec", "emu3 vq"}
    assert ran["consumer"] >= ran["sliced"] - {"dac"} | {"xcodec"}


def codecs(fixtures: Path) -> list[str]:
    """The folders of whole codecs among the fixtures."""
    entries = json.loads((fixtures / "manifest.json").read_text())["fixtures"]
    rooms = ("transformers", "diffusers")
    return [entry["path"] for entry in entries if entry["expect"] == "ok" and entry["path"].split("/")[0] in rooms]
