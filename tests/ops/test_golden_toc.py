"""Golden scores, selections and assignments: every `c01_*` and `c02_*` case of the folder, within its tolerances."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import shared_folder
from criteria import score
from toc_cli.ops import selection
from toc_cli.ops.quantiser import quantiser

FOLDER = shared_folder("TOC_GOLDEN", "golden")


def cases(pattern):
    found = sorted(FOLDER.glob(f"{pattern}.json")) if FOLDER else []
    if not found:
        skip = pytest.mark.skip(reason=f"no golden {pattern} here: set TOC_GOLDEN to their folder")
        return [pytest.param(None, marks=skip)]
    return [pytest.param(path, id=path.stem) for path in found]


def load(path):
    about = json.loads(path.read_text())
    scalars = {name: entry["value"] for name, entry in about["scalars"].items()}
    return about, scalars, load_file(path.with_suffix(".safetensors"))


@pytest.mark.parametrize("path", cases("c01_*"))
def test_scores(path):
    _, scalars, data = load(path)
    codes = data["in.codebook"].astype(np.float64)
    square = np.mean(codes**2, axis=0)
    toc = score("toc", codes)
    plain = score("similarity", codes)
    assert (np.abs(toc.similarity - data["out.sim_f64"]) <= 1e-10 * square).all()
    np.testing.assert_allclose(toc.variance, data["out.var"], rtol=1e-12)
    for ours, kind in ((toc.score, "weighted"), (0.7 * plain.score, "sim_only")):
        theirs = data[f"out.criterion_{kind}_f64"]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())
    # as the published code runs: a float32 accumulator
    slack = scalars["f32_accumulator_max_abs_err"] + 1e-10 * square.max()
    np.testing.assert_allclose(toc.similarity, data["out.sim_f32"], rtol=0, atol=slack)


@pytest.mark.parametrize("path", cases("c01_*"))
def test_selections(path):
    about, scalars, data = load(path)
    codes = data["in.codebook"].astype(np.float64)
    for wanted in about["selections"]:
        ours = score("toc" if wanted["kind"] == "weighted" else "similarity", codes).score
        scale = np.abs(ours).max()
        theirs = data[wanted["array"]]
        most, least = wanted["n_max"], wanted["n_min"]
        assert len(theirs) == most + least
        found = selection.select(ours, len(theirs), (most, least)).chosen.numpy()
        exact = wanted["accumulator"] == "f64"
        slack = 1e-9 * scale if exact else 2 * scalars["f32_accumulator_max_abs_err"] + 1e-9 * scale
        gaps = np.abs(ours[found] - ours[theirs])
        assert (gaps <= slack).all(), wanted["array"]
        if exact and np.diff(np.sort(ours)).min() > slack:
            assert found.tolist() == theirs.tolist(), wanted["array"]


@pytest.mark.parametrize("path", cases("c01_*"))
def test_a_ratio_keeps_what_the_published_one_keeps_and_exactly_the_count(path):
    about, _, data = load(path)
    codes = data["in.codebook"].astype(np.float64)
    for wanted in about["selections"]:
        if wanted["accumulator"] != "f64":
            continue
        ours = score("toc" if wanted["kind"] == "weighted" else "similarity", codes).score
        found = selection.select(ours, wanted["choose_channel"], (wanted["max_num"], wanted["min_num"])).kept
        assert len(found.unique()) == wanted["choose_channel"]
        assert set(data[wanted["array"]].tolist()) <= set(found.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("path", cases("c02_*"))
def test_assignments(path, dtype):
    about, scalars, data = load(path)
    dim = data["in.codebook"].shape[1]
    book = torch.from_numpy(data["in.codebook"]).to(dtype)
    x = torch.from_numpy(data["in.features"]).to(dtype).view(-1, dim)
    full = quantiser([book[None]])
    tokens = full.tokens(x)
    assert tokens[:, 0, 0].tolist() == data["out.indices"].tolist()
    np.testing.assert_allclose(full.vectors(tokens), data["out.quantised"].reshape(-1, dim), rtol=0, atol=1e-12)
    for name in about["selections"]:
        kept = torch.from_numpy(data[f"in.sel_{name}"])
        chosen = full.pruned(kept[None, None]).tokens(x)[:, 0, 0]
        assert chosen.tolist() == data[f"out.indices_sel_{name}"].tolist()
        subspace = data[f"out.quantised_sel_{name}"].reshape(-1, len(kept))
        np.testing.assert_allclose(book[chosen][:, kept].double(), subspace, rtol=0, atol=1e-12)
        sliced = data[f"out.assign_full_then_select_{name}"].reshape(-1, len(kept))
        np.testing.assert_allclose(full.vectors(tokens)[:, kept], sliced, rtol=0, atol=1e-12)
        differ = scalars[f"n_vectors_where_two_orders_differ_{name}"]
        assert int((chosen != tokens[:, 0, 0]).sum()) == differ
