"""The Python interface: public names, arrays in place of files, what a prompt and a notebook show, examples that run."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch

import toc_cli as toc
from toc_cli import api
from toc_cli.errors import InputError, UsageError


@pytest.fixture(scope="module")
def plan() -> object:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(48, 8)) * np.geomspace(3, 0.1, 8)
    x = codes[rng.integers(0, 48, 1500)] + 0.2 * rng.normal(size=(1500, 8))
    return toc.optimize(torch.from_numpy(codes).float(), {"audio": x[:700], "video": torch.from_numpy(x[700:])}, keep=4)


def test_dir_shows_the_public_names() -> None:
    assert dir(toc) == sorted(toc.__all__)
    for name in toc.__all__:
        assert getattr(toc, name) is not None


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(api).attempted >= 8
    assert doctest.testmod(api).failed == 0


def test_arrays_are_read_as_the_same_files_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    codes, x = rng.normal(size=(32, 6)).astype(np.float32), rng.normal(size=(900, 6)).astype(np.float32)
    np.save(tmp_path / "codes.npy", codes)
    np.save(tmp_path / "x.npy", x)
    held, read = toc.optimize(codes, x, keep=3), toc.optimize(tmp_path / "codes.npy", tmp_path / "x.npy", keep=3)
    assert torch.equal(held.kept[0], read.kept[0])
    assert held.metrics[0]["after"] == read.metrics[0]["after"]
    assert torch.equal(toc.quantize(x, held.codebook), toc.quantize(torch.from_numpy(x), read.codebook))
    assert toc.quantize(x, codes).tolist() == toc.quantize(x, torch.from_numpy(codes)).tolist()
    saved = held.save(tmp_path / "held.toc.safetensors")
    assert [path.name for path in saved] == ["held.toc.safetensors", "held.toc.json"]
    with pytest.raises(InputError, match="real numbers"):
        toc.optimize(np.arange(12).reshape(6, 2), x, keep=1)
    with pytest.raises(UsageError):
        toc.optimize(codes, x, keep=3, emit=("masked",)).write()


def test_a_prompt_sees_the_verdict_and_a_notebook_the_table(plan: object) -> None:
    text = repr(plan)
    assert len(text.splitlines()) == 2
    assert text.startswith("Plan: ")
    assert "keeps 4 of 8 dimensions" in text
    page = plan._repr_html_()  # type: ignore[attr-defined]
    assert "Token agreement" in page
    assert page.count("<table>") == 1
    assert "<script" not in page
