"""`--keep a,b,…`: another number of dimensions for each level, in the artefact, in the masked form and in their readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import library_models as models
from cli import toc
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.libraries import run
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.selection import one_size, padded, parse_keeps, trimmed
from toc_cli.pipeline.source import sources
from toc_cli.report.advice import rerun
from toc_cli.report.schema import validate

ROWS = 300
CODECS = {"encodec": models.encodec, "dac": models.dac}


def prepared(name: str, here: Path) -> tuple[Path, Quantiser, np.ndarray]:
    torch.manual_seed(0)
    folder = models.save(CODECS[name](), here / "model")
    ckpt = open_checkpoint(folder)
    full = sources(ckpt, detect(ckpt))[0].full
    x = np.random.default_rng(1).standard_normal((ROWS, full.width)).astype(np.float32)
    np.save(here / "x.npy", x)
    return folder, full, x


def sizes_of(full: Quantiser) -> list[int]:
    """Falling sizes, the first all dimensions."""
    return [max(1, full.dim // (1 + level)) for level in range(len(full.levels))]


def optimize(here: Path, *flags: object) -> dict[str, Any]:
    done = toc("optimize", "model", "--features", "x.npy", "-o", "m.toc.safetensors", "--force", *flags, cwd=here)
    assert done.code == 0, done.err
    return json.loads((here / "m.toc.json").read_text())


def slow_tokens(full: Quantiser, x: np.ndarray, tensors: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (N, L) and vectors (N, V) level by level: P^T of what is left against P^T of the codes, the constant elsewhere."""
    state, tokens, total = x.astype(np.float64), [], 0.0
    for at, level in enumerate(full.levels):
        codes, fill = level.codes[0].double().numpy(), tensors["0.fill"][at, 0].double().numpy()
        if f"0.rotation.{at}" in tensors:
            basis = tensors[f"0.rotation.{at}"][0].double().numpy()
        else:
            basis = np.eye(full.dim)[:, tensors[f"0.kept.{at}"][0].numpy()]
        z = state
        if full.level_in:
            z = state @ full.level_in[at].weight.double().numpy().T + full.level_in[at].bias.double().numpy()
        a, b = z @ basis, codes @ basis
        if full.metric == "cosine":
            a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (a, b))
        chosen = ((a[:, None] - b[None]) ** 2).sum(-1).argmin(1)
        passed = codes[chosen] @ basis @ basis.T + fill - fill @ basis @ basis.T
        if full.level_out:
            passed = passed @ full.level_out[at].weight.double().numpy().T + full.level_out[at].bias.double().numpy()
        tokens.append(chosen)
        state, total = state - passed, total + passed
    return np.stack(tokens, 1), total


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("criterion", ["toc", "pca"])
def test_levels_of_unlike_sizes_are_read_as_they_were_written(name: str, criterion: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    _, full, x = prepared(name, tmp_path)
    sizes = sizes_of(full)
    record = optimize(tmp_path, "--keep", ",".join(map(str, sizes)), "--criterion", criterion)
    validate(record)
    entry, tensors = record["codebooks"][0], load_file(tmp_path / "m.toc.safetensors")
    assert (entry["kept_dims"], entry["kept_dim"]) == (sizes, max(sizes))
    assert [tensors[f"0.codebook.{level}"].shape[-1] for level in range(len(sizes))] == sizes
    assert [len(level[0]) for level in entry["kept"]] == sizes
    expected, vectors = slow_tokens(full, x, tensors)
    assert toc("quantize", "x.npy", "--codebook", "m.toc.safetensors", "-o", "t.h5", "-q", cwd=tmp_path).code == 0
    with h5py.File(tmp_path / "t.h5") as file:
        found = file["x"][()].reshape(ROWS, -1)
    assert (found == expected).all(1).mean() >= 0.99  # float32 against float64: near ties
    assert toc("decode", "t.h5", "--codebook", "m.toc.safetensors", "-o", "v.h5", "-q", cwd=tmp_path).code == 0
    with h5py.File(tmp_path / "v.h5") as file:
        same = (found == expected).all(1)
        np.testing.assert_allclose(file["x"][()][same], vectors[same], atol=1e-4)
    # the artefact is itself a checkpoint: all that is left of it gives the same tokens
    again = toc(
        *("optimize", "m.toc.safetensors", "--features", "x.npy", "--keep", "1.0", "--space", "encoder"),
        *("-o", "n.toc.safetensors"),
        cwd=tmp_path,
    )
    assert again.code == 0, again.err
    assert toc("quantize", "x.npy", "--codebook", "n.toc.safetensors", "-o", "u.h5", "-q", cwd=tmp_path).code == 0
    with h5py.File(tmp_path / "u.h5") as file:
        assert (file["x"][()].reshape(ROWS, -1) == found).all(1).mean() >= 0.99
    assert "(by level)" in toc("report", "m.toc.json", cwd=tmp_path).out
    assert f"--keep {','.join(map(str, sizes))}" in rerun(record)


@pytest.mark.parametrize("name", CODECS)
def test_the_masked_form_runs_in_its_own_library(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    _, full, x = prepared(name, tmp_path)
    optimize(tmp_path, "--keep", ",".join(map(str, sizes_of(full))), "--emit", "masked", "--verify")
    expected, _ = slow_tokens(full, x, load_file(tmp_path / "m.toc.safetensors"))
    tokens = run(tmp_path / "m.masked", detect(open_checkpoint(tmp_path / "m.masked"))[0], torch.from_numpy(x)).tokens
    assert (tokens[..., 0].numpy() == expected).all(1).mean() >= 0.99


def test_auto_and_refresh_take_the_sizes_of_levels(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    _, full, _ = prepared("encodec", tmp_path)
    keep = ",".join(map(str, sizes_of(full)))
    record = optimize(tmp_path, "--keep", keep, "--criterion", "auto", "--refresh", "2")
    validate(record)
    assert record["codebooks"][0]["auto"]["sizes"].keys() == {keep}
    assert (
        record["codebooks"][0]["refresh"]["after"]["distortion"]
        < record["codebooks"][0]["refresh"]["before"]["distortion"]
    )
    one = optimize(tmp_path, "--keep", ",".join(["0.5"] * len(full.levels)))
    assert "kept_dims" not in one["codebooks"][0]
    two = optimize(tmp_path, "--keep", "0.5,0.25", "--levels", "2")
    assert two["codebooks"][0]["kept_dims"] == [full.dim // 2, full.dim // 4]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--keep", "0.5,0.25"), "names 2 sizes, and the codebook has 3 levels"),
        (("--keep", "0.5,auto,0.5"), "auto is no size of one level"),
        (("--keep", "0.5,,0.5"), "'' is not a share or a count"),
        (("--keep", "0.5,0.5,9999"), "asks for more than the codebook's"),
        (("--keep", "4,4,2", "--emit", "sliced"), "--emit sliced is not possible"),
        (("--keep", "4,4,2", "--emit", "consumer"), "--emit consumer is not possible"),
    ],
)
def test_what_levels_cannot_have_is_said_before_a_row_is_read(
    flags: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    prepared("encodec", tmp_path)
    done = toc("optimize", "model", "--features", "x.npy", *flags, cwd=tmp_path)
    assert done.code == 2, done.err
    assert said in done.err
    assert not list(tmp_path.glob("*.toc.*"))


def test_a_damaged_artefact_of_unlike_levels_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from toc_cli.io.artefact import Artefact, read_artefact, write_artefact

    _, full, _ = prepared("encodec", tmp_path)
    optimize(tmp_path, "--keep", ",".join(map(str, sizes_of(full))))
    good = read_artefact(tmp_path / "m.toc.safetensors")
    for name, value in {
        "0.kept.1": None,
        "0.kept.2": torch.zeros(1, 3, dtype=torch.int32),
        "0.codebook.2": None,
        "0.fill": torch.zeros(2),
    }.items():
        tensors = {key: tensor for key, tensor in good.tensors.items() if key != name} | (
            {} if value is None else {name: value}
        )
        write_artefact(tmp_path / "bad.toc.safetensors", Artefact(tensors, good.codebooks, good.metadata))
        done = toc("quantize", "x.npy", "--codebook", "bad.toc.safetensors", "-o", "t.h5", cwd=tmp_path)
        assert done.code == 3, (name, done.err)
        assert "codebook 0" in done.err.lower()


def test_sizes_of_levels() -> None:
    assert parse_keeps("0.5,50%,4", 8, 3) == 4
    assert parse_keeps("0.5,2,8", 8, 3) == (4, 2, 8)
    assert parse_keeps("auto", 8, 3) is None
    assert one_size([3, 3]) == 3
    levels = [torch.tensor([[0, 2, 5], [1, 2, 3]]), torch.tensor([[4], [0]])]
    assert all(torch.equal(a, b) for a, b in zip(trimmed(padded(levels)), levels, strict=True))
