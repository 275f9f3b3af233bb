"""Our own artefacts open as checkpoints: their codebooks read the same features and give the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import toc_cli as toc
from toc_cli.errors import InputError
from toc_cli.io.artefact import Artefact, read_artefact, write_artefact
from toc_cli.io.families import detect, emit
from toc_cli.pipeline.artefacts import quantiser_of
from toc_cli.pipeline.source import sources


def level(stem: str, heads: int, dim: int) -> dict[str, torch.Tensor]:
    return {
        f"{stem}_codebook.embed": torch.randn(heads, 20, dim),
        f"{stem}_codebook.cluster_size": torch.ones(heads, 20),
    }


def projections(inner: int, outer: int) -> dict[str, torch.Tensor]:
    sizes = {"project_in.weight": (inner, outer), "project_in.bias": (inner,), "project_out.weight": (outer, inner)}
    return {name: torch.randn(size) for name, size in {**sizes, "project_out.bias": (outer,)}.items()}


def dac() -> dict[str, torch.Tensor]:
    tensors = {}
    for q in range(2):
        stem = f"quantizer.quantizers.{q}."
        sizes = {
            "codebook.weight": (20, 6),
            "in_proj.weight": (6, 9, 1),
            "in_proj.bias": (6,),
            "out_proj.weight": (9, 6, 1),
        }
        tensors |= {stem + name: torch.randn(size) for name, size in {**sizes, "out_proj.bias": (9,)}.items()}
    return tensors


CASES = {
    "plain": lambda: level("", 1, 6),
    "heads, projected": lambda: {**level("", 2, 6), **projections(12, 9)},
    "residual": lambda: {**level("layers.0.", 1, 6), **level("layers.1.", 1, 6), **projections(6, 9)},
    "own projections": dac,
}


@pytest.mark.parametrize("criterion", ["toc", "pca"])
@pytest.mark.parametrize("name", CASES)
def test_an_artefact_gives_its_own_tokens(name: str, criterion: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(CASES[name](), tmp_path / "model.pt")
    (before,) = detect(toc.open_checkpoint(tmp_path / "model.pt"))
    x = np.random.default_rng(0).normal(size=(400, before.outer_width or before.heads * before.dim)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    plan = toc.optimize(tmp_path / "model.pt", tmp_path / "x.npy", keep=4, criterion=criterion)
    plan.save(tmp_path / "out.toc.safetensors")
    ckpt = toc.open_checkpoint(tmp_path / "out.toc.safetensors")
    (book,) = detect(ckpt)
    assert (book.family, book.dim, book.levels, book.heads) == (
        f"{before.family}, pruned",
        4,
        before.levels,
        before.heads,
    )
    assert {mode for mode, reason in emit.supported(ckpt, book).items() if not reason} == {"codebook"}
    (source,) = sources(ckpt, [book])
    assert source.full.width == x.shape[1] == book.outer_width
    kept = quantiser_of(read_artefact(tmp_path / "out.toc.safetensors"), 0)
    found = kept.lookup(x)
    sure = ~found.near_tie.flatten(1).any(1)
    assert torch.equal(source.full.tokens(x)[sure], found.tokens[sure])
    again = toc.optimize(tmp_path / "out.toc.safetensors", tmp_path / "x.npy", keep=3)
    assert again.kept[0].shape[-1] == 3


def test_an_artefact_without_its_description_is_named(tmp_path: Path) -> None:
    write_artefact(
        tmp_path / "out.toc.safetensors", Artefact({"0.codebook": torch.zeros(1, 1, 4, 2)}, ({"levels": 1},), {})
    )
    with pytest.raises(InputError, match="lacks its levels, heads or dim"):
        detect(toc.open_checkpoint(tmp_path / "out.toc.safetensors"))


@pytest.mark.parametrize(("schema", "read"), [("1", True), ("2", True), ("3", False)])
def test_artefacts_of_both_schemas_are_read(tmp_path: Path, schema: str, read: bool) -> None:
    made = np.random.default_rng(0)
    plan = toc.optimize(made.normal(size=(16, 4)), made.normal(size=(200, 4)), keep=2)
    plan.save(tmp_path / "new.toc.safetensors")
    path = tmp_path / "old.toc.safetensors"
    with safe_open(tmp_path / "new.toc.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, path, {**file.metadata(), "toc.schema": schema})
    if read:
        assert len(read_artefact(path).codebooks) == 1
    else:
        with pytest.raises(InputError, match="artefact schema 3"):
            read_artefact(path)
