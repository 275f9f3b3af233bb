"""The whole road on files of vector-quantize-pytorch: `toc optimize` and `toc quantize` as a user runs them, then the library."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cli import toc
from toc_cli.io.artefact import read_artefact
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.pipeline.artefacts import quantiser_of
from vqp_recipes import RECIPES, run_file, trained, vqp

ROWS = 400


@pytest.mark.parametrize("name", RECIPES)
def test_the_library_agrees_with_what_toc_says_of_its_files(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    model, x = trained(recipe, ROWS, seed=11)
    source, features = tmp_path / "model.pt", tmp_path / "rows.npz"
    torch.save(model.state_dict(), source)
    np.savez(features, x=x.numpy())
    (book,) = detect(ckpt := open_checkpoint(source))
    offered = [mode for mode, reason in emit.supported(ckpt, book, recipe.size).items() if not reason]
    emits = [word for mode in offered for word in ("--emit", mode)]
    done = toc("optimize", source, "--features", features, "--keep", recipe.size, *emits, "-q")
    assert done.code == 0, done.err
    artefact = tmp_path / "model.toc.safetensors"
    assert toc("quantize", features, "--codebook", artefact, "-q").code == 0
    with h5py.File(tmp_path / "rows.tokens.h5") as file:
        tokens = torch.from_numpy(file["x"][:].astype(np.int64)).reshape(ROWS, -1)
    pruned = quantiser_of(read_artefact(artefact), 0)
    clear = ~pruned.lookup(x).near_tie.flatten(1).any(1)

    full_vectors, full_tokens = run_file(recipe, source, book, x)
    assert (full_tokens[:, : len(pruned.levels)].flatten(1) != tokens).any()
    if "masked" in offered:
        vectors, found = run_file(recipe, tmp_path / "model.masked.pt", book, x)
        assert torch.equal(found.flatten(1)[clear], tokens[clear])
    if "sliced" in offered:
        assert recipe.cut is not None
        kept = read_artefact(artefact).tensors["0.kept"][0, 0]
        alone = recipe.build in (vqp.SimVQ, vqp.ResidualSimVQ)  # reads and gives the kept dimensions alone
        rows = x[:, kept] if alone else x
        sliced, found = run_file(recipe, tmp_path / "model.sliced.pt", book, rows, recipe.cut)
        assert torch.equal(found.flatten(1)[clear], tokens[clear])
        masked = vectors[:, kept] if alone else vectors
        assert torch.linalg.norm((sliced - masked)[clear]) <= 1e-5 * torch.linalg.norm(masked[clear])
    if "consumer" in offered:
        vectors, found = run_file(recipe, tmp_path / "model.consumer.pt", book, x)
        assert torch.equal(found, full_tokens)
        assert not torch.allclose(vectors, full_vectors, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["cosine", "residual, cosine", "residual", "heads shared", "simvq"])
def test_half_precision_files_mean_the_same_in_float32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Rounded rows of a cosine codebook have no unit length any more, and the library does not mind: it takes them as they are."""
    recipe = RECIPES[name]
    model, x = trained(recipe, 2000, seed=5)
    source, features = tmp_path / "model.pt", tmp_path / "rows.npz"
    torch.save({key: t.to(dtype) if t.is_floating_point() else t for key, t in model.state_dict().items()}, source)
    np.savez(features, x=x.numpy())
    done = toc("optimize", source, "--features", features, "--keep", recipe.size, "--emit", "masked", "-q")
    assert done.code == 0, done.err
    (book,) = detect(open_checkpoint(source))
    pruned = quantiser_of(read_artefact(tmp_path / "model.toc.safetensors"), 0).lookup(x)
    clear = ~pruned.near_tie.flatten(1).any(1)
    _, found = run_file(recipe, tmp_path / "model.masked.pt", book, x)
    assert (found != pruned.tokens)[clear].flatten(1).any(1).double().mean() < 0.001
