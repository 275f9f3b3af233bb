"""Levels that share one table, as `save_model` of safetensors stores them: once, with the other names in the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from cli import toc
from toc_cli.io.artefact import read_artefact
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.pipeline.artefacts import quantisers_by_key

vqp = pytest.importorskip("vector_quantize_pytorch")
ROWS = 200


def module(codes: int = 24) -> torch.nn.Module:
    torch.manual_seed(0)
    found = vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=codes, kmeans_init=False, shared_codebook=True).eval()
    found.layers[0]._codebook.embed.data = torch.randn(1, codes, 8)
    return found


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_model(module(), str(tmp_path / "model.safetensors"))
    np.save(tmp_path / "x.npy", torch.randn(ROWS, 8).numpy())
    return tmp_path


def tokens(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(np.load(folder / "x.npy"))[None])[1][0]


def test_every_level_is_read(stored: Path) -> None:
    ckpt = open_checkpoint(stored / "model.safetensors")
    (book,) = detect(ckpt)
    assert book.levels == 3
    done = toc("quantize", "x.npy", "--codebook", "model.safetensors", cwd=stored)
    assert done.code == 0, done.err
    import h5py

    with h5py.File(stored / "x.tokens.h5") as file:
        assert np.array_equal(next(iter(file.values()))[:], tokens(module(), stored).numpy())


@pytest.mark.parametrize("flags", [("--keep", "4"), ("--codes", "used", "--keep", "4")])
def test_the_masked_form_loads_by_load_model_and_gives_the_pruned_tokens(stored: Path, flags: tuple[str, ...]) -> None:
    done = toc("optimize", "model.safetensors", "--features", "x.npy", *flags, "--emit", "masked", cwd=stored)
    assert done.code == 0, done.err
    with (
        safe_open(stored / "model.masked.safetensors", "pt") as file,
        safe_open(stored / "model.safetensors", "pt") as old,
    ):
        assert (file.metadata(), list(file.keys())) == (old.metadata(), list(old.keys()))
    masked = module()
    load_model(masked, str(stored / "model.masked.safetensors"))
    artefact = read_artefact(stored / "model.toc.safetensors")
    (form,) = quantisers_by_key(artefact).values()
    found = form.tokens(np.load(stored / "x.npy"))[..., 0]
    if "--codes" in flags:
        found = artefact.tensors["0.code_ids"][:, 0].T[found, torch.arange(3)]
    assert torch.equal(found, tokens(masked, stored))


def test_fewer_levels_forget_the_names_of_the_others(stored: Path) -> None:
    done = toc(
        "optimize",
        "model.safetensors",
        "--features",
        "x.npy",
        "--levels",
        "2",
        "--keep",
        "1.0",
        "--emit",
        "sliced",
        cwd=stored,
    )
    assert done.code == 0, done.err
    with safe_open(stored / "model.sliced.safetensors", "pt") as file:
        assert {name.split(".")[1] for name in file.metadata()} == {"1"}
    (book,) = detect(open_checkpoint(stored / "model.sliced.safetensors"))
    assert book.levels == 2


def test_one_table_keeps_one_set_of_dimensions(stored: Path) -> None:
    done = toc(
        "optimize", "model.safetensors", "--features", "x.npy", "--keep", "4,4,2", "--emit", "masked", cwd=stored
    )
    assert (done.code, "its levels share one table" in done.err) == (2, True), done.err
