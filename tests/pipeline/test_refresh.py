"""`--refresh N`: codes estimated anew on rows that are not measured, the same on any number of ranks, in every form that holds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import library_models as models
from cli import make_checkpoint, toc
from toc_cli.io.artefact import read_artefact
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.libraries import run
from toc_cli.pipeline.artefacts import quantiser_of

K, D, ROWS = 24, 8, 6000


def prepared(here: Path) -> tuple[torch.Tensor, np.ndarray]:
    """A taming checkpoint whose codes are off the centres of its features."""
    drawn = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(K, D, generator=drawn)
    codes = centres + 0.8 * torch.randn(K, D, generator=drawn)
    codes[5] = 100  # no feature chooses it
    make_checkpoint(here / "model.safetensors", codes)
    rng = np.random.default_rng(1)
    x = (centres.numpy()[rng.integers(0, K, ROWS)] + 0.5 * rng.standard_normal((ROWS, D))).astype(np.float32)
    np.save(here / "x.npy", x)
    return codes, x


def optimize(here: Path, *flags: object, model: str = "model.safetensors") -> dict[str, Any]:
    done = toc("optimize", model, "--features", "x.npy", "-o", "m.toc.safetensors", "--force", *flags, cwd=here)
    assert done.code == 0, done.err
    return json.loads((here / "m.toc.json").read_text())["codebooks"][0]


def test_the_steps_are_lloyds_on_the_rows_that_are_not_measured(tmp_path: Path) -> None:
    """One step and two, against plain means in the kept columns."""
    codes, x = prepared(tmp_path)
    for steps in (1, 2):
        entry = optimize(tmp_path, "--keep", 5, "--refresh", steps, "--eval-rows", 1000)
        kept = entry["kept"][0][0]
        found = load_file(tmp_path / "m.toc.safetensors")["0.codebook"][0, 0].double().numpy()
        seen = entry["refresh"]["rows"]
        assert ROWS - 1000 <= seen < ROWS, "the half of the sample that is measured is left out"
        assert entry["refresh"]["apart"]
        assert np.array_equal(found[5], codes[5, kept].double().numpy()), "a code that no row chooses stays"
        table, z = codes[:, kept].double().numpy(), x[:, kept].astype(np.float64)
        for _ in range(steps):
            tokens = ((z[:, None] - table) ** 2).sum(-1).argmin(1)
            table = np.stack([z[tokens == k].mean(0) if (tokens == k).any() else table[k] for k in range(K)])
        others = [k for k in range(K) if k != 5]
        assert np.abs(found - table)[others].max() < 0.1, "nearly the means over all rows, which hold a twelfth more"


def test_it_pays_on_unseen_rows_and_the_record_says_how_much(tmp_path: Path) -> None:
    prepared(tmp_path)
    entry = optimize(tmp_path, "--keep", 6, "--refresh", 3)
    bought = entry["refresh"]
    assert bought["after"]["distortion"] < 0.9 * bought["before"]["distortion"]
    assert bought["after"] == {name: entry["after"][name] for name in bought["after"]}
    plain = optimize(tmp_path, "--keep", 6)
    assert "refresh" not in plain
    assert plain["kept"] == entry["kept"]


@pytest.mark.parametrize("criterion", ["toc", "pca"])
@pytest.mark.parametrize("keep", ["0.5", "1.0"])
def test_every_form_holds_the_new_codes(criterion: str, keep: str, tmp_path: Path) -> None:
    """Each copy is checked against the artefact when it is written; here it is read again and held against plain distances."""
    _, x = prepared(tmp_path)
    optimize(tmp_path, "--criterion", criterion, "--keep", keep, "--refresh", 2, "--emit", "masked")
    form = quantiser_of(read_artefact(tmp_path / "m.toc.safetensors"), 0)
    table = load_file(tmp_path / "m.masked.safetensors")["quantize.embedding.weight"].double()
    tokens = torch.cdist(torch.from_numpy(x).double(), table).argmin(1)
    ours = form.lookup(x)
    clear = ~ours.near_tie[:, 0, 0]
    assert torch.equal(tokens[clear], ours.tokens[:, 0, 0][clear])
    sums = load_file(tmp_path / "m.masked.safetensors")["quantize.embedding.embed_avg"].double()
    counts = load_file(tmp_path / "m.masked.safetensors")["quantize.embedding.cluster_size"].double()
    torch.testing.assert_close(sums, table * counts[:, None], rtol=1e-4, atol=1e-4)


def test_ranks_and_chunks_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    prepared(tmp_path)
    flags = [
        "optimize",
        "model.safetensors",
        "--features",
        "x.npy",
        "--refresh",
        "2",
        "-o",
        "m.toc.safetensors",
        "--force",
        "-q",
    ]
    alone = [sys.executable, "-m", "toc_cli", *flags]
    ranks = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "toc_cli",
        *flags,
    ]
    found = []
    for command, threads in ((alone, "1"), ([*alone, "--max-memory", "2MiB"], "2"), (ranks, "1")):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append((tmp_path / "m.toc.safetensors").read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("family", ["encodec", "mimi", "diffusers vqmodel"])
def test_codecs_in_their_own_library(family: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers" if "diffusers" in family else "transformers")
    make = {"encodec": models.encodec, "mimi": models.mimi, "diffusers vqmodel": models.vqmodel}[family]
    folder = models.save(make(), tmp_path / "model")
    width = detect(open_checkpoint(folder))[0].outer_width or detect(open_checkpoint(folder))[0].dim
    x = np.random.default_rng(2).standard_normal((2000, width)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    optimize(tmp_path, "--keep", "1.0", "--refresh", 1, "--emit", "masked", "--verify", model="model")
    books = detect(open_checkpoint(tmp_path / "m.masked"))
    for id, book in enumerate(books):
        form = quantiser_of(read_artefact(tmp_path / "m.toc.safetensors"), id)
        ours = form.lookup(x)
        theirs = run(tmp_path / "m.masked", book, torch.from_numpy(x)).tokens
        clear = ~ours.near_tie.flatten(1).any(1)
        assert (theirs == ours.tokens)[clear].flatten(1).all(1).float().mean() > 0.995


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--refresh", "0"), "greater than or equal to 1"),
        (("--refresh", "5000"), "Use 1 to 1000"),
        (("--refresh", "1", "--metric", "cosine"), "has a cosine lookup"),
        (("--refresh", "1", "--emit", "consumer"), "it leaves every token as it was"),
    ],
)
def test_what_cannot_be_is_refused(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    prepared(tmp_path)
    done = toc("optimize", "model.safetensors", "--features", "x.npy", "-o", "m.toc.safetensors", *flags, cwd=tmp_path)
    assert done.code == 2, done.err
    assert says in " ".join(done.err.split())
    assert not list(tmp_path.glob("m.*"))


def test_one_table_of_several_levels_is_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    module = library.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, shared_codebook=True).eval()
    torch.save(module.state_dict(), tmp_path / "rvq.pt")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 8)))
    done = toc("optimize", "rvq.pt", "--features", "x.npy", "--refresh", "1", cwd=tmp_path)
    assert done.code == 2, done.out
    assert "share one table" in " ".join(done.err.split())


def test_codes_that_were_cut_are_refreshed_as_well(tmp_path: Path) -> None:
    _, x = prepared(tmp_path)
    entry = optimize(tmp_path, "--codes", 12, "--keep", "1.0", "--refresh", 2, "--emit", "masked")
    assert entry["num_codes"] == [12]
    assert entry["refresh"]["after"]["distortion"] <= entry["refresh"]["before"]["distortion"]
    form = quantiser_of(read_artefact(tmp_path / "m.toc.safetensors"), 0)
    ids = load_file(tmp_path / "m.toc.safetensors")["0.code_ids"][0, 0]
    table = load_file(tmp_path / "m.masked.safetensors")["quantize.embedding.weight"].double()
    ours = form.lookup(x)
    clear = ~ours.near_tie[:, 0, 0]
    assert torch.equal(
        torch.cdist(torch.from_numpy(x).double(), table).argmin(1)[clear], ids[ours.tokens[:, 0, 0]][clear]
    )
