"""`--budget` and `--bytes`: one budget for all codebooks of a model, in place of `--keep`."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import library_models as models
from cli import toc
from toc_cli.pipeline.curve import Curve
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.plan import Plan
from toc_cli.pipeline.planning import plan_optimization
from toc_cli.report.advice import rerun
from toc_cli.report.schema import validate

DIMS, CODES, CLIPS = {"fine": (12, 48), "coarse": (9, 32)}, 0.2, 24
ROWS = {"fine": 32, "coarse": 8}
"""Rows a clip."""


def model(here: Path) -> None:
    """Two codebooks in one file whose widths tell their features apart: five directions of `fine` are in use, two of `coarse`."""
    generator = torch.Generator().manual_seed(0)
    tensors, rows = {}, {}
    for name, (dim, count) in DIMS.items():
        scale = torch.full((dim,), 0.02)
        scale[: 5 if name == "fine" else 2] = 1
        codes = torch.randn(count, dim, generator=generator) * scale
        tensors[f"{name}.quantize.embedding.weight"] = codes
        chosen = codes[torch.randint(0, count, (CLIPS * ROWS[name],), generator=generator)]
        noisy = chosen + CODES * torch.randn(chosen.shape, generator=generator) * scale
        rows[name] = noisy.reshape(CLIPS, ROWS[name], dim).numpy()
    save_file(tensors, here / "m.safetensors")
    with h5py.File(here / "f.h5", "w") as file:
        for name, values in rows.items():
            file[name] = values


def optimize(here: Path, *flags: object) -> dict[str, Any]:
    done = toc(
        "optimize",
        "m.safetensors",
        "--features",
        "f.h5",
        "--assume",
        "--force",
        "--metric",
        "euclidean",
        *flags,
        cwd=here,
    )
    assert done.code == 0, done.err
    record = json.loads((here / "m.toc.json").read_text())
    validate(record)
    return record


def planned(here: Path, **options: Any) -> Plan:
    return plan_optimization(here / "m.safetensors", here / "f.h5", Options(assume=True, metric="euclidean", **options))


def kept(record: dict[str, Any]) -> dict[str, int]:
    return {book["key"].split(".")[0]: book["kept_dim"] for book in record["codebooks"]}


@pytest.mark.parametrize(("budget", "sizes"), [(2, (1, 1)), (4, (3, 1)), (7, (5, 2)), (21, (5, 2))])
def test_the_codebook_with_most_rows_a_clip_takes_what_it_needs_first(
    budget: int, sizes: tuple[int, int], tmp_path: Path
) -> None:
    model(tmp_path)
    record = optimize(tmp_path, "--budget", budget)
    assert kept(record) == dict(zip(DIMS, sizes, strict=True))
    spent = record["budget"]
    assert (spent["of"], spent["asked"], spent["taken"], spent["by"]) == (
        "dimensions",
        budget,
        sum(sizes),
        "usage_rank",
    )
    by_id = {book["id"]: book["key"].split(".")[0] for book in record["codebooks"]}
    assert {by_id[book["id"]]: (book["needed"], book["rows_per_unit"]) for book in spent["codebooks"]} == {
        "fine": (5, 32), "coarse": (2, 8)
    }  # fmt: skip
    assert record["options"]["keep"] == "budget"
    assert f"--budget {budget}" in rerun(record)
    assert "--keep 3" in rerun(record, keep="3")


@pytest.mark.parametrize("budget", [336, 700, 1000, 1400, 10**6])
def test_bytes_go_where_they_save_most_distortion(budget: int, tmp_path: Path) -> None:
    model(tmp_path)
    record = optimize(tmp_path, "--bytes", budget, "--criterion", "variance")
    tensors = load_file(tmp_path / "m.toc.safetensors")
    written = sum(tensors[f"{at}.codebook"].numel() * 4 for at in range(2))
    assert written == record["budget"]["taken"] <= budget
    splits = [book["auto"]["split"] for book in record["codebooks"]]
    assert all(split["apart"] for split in splits)
    assert [book["sample"]["evaluated"] for book in record["codebooks"]] == [split["measured_on"] for split in splits]
    if budget == 10**6:
        assert kept(record) == {name: dim for name, (dim, _) in DIMS.items()}


def test_the_split_of_bytes_is_the_best_of_all_but_for_a_step(tmp_path: Path) -> None:
    """Against every pair of sizes that fits, measured as the choice was: one step of either codebook is all that is lost."""
    model(tmp_path)
    plan = planned(tmp_path, bytes=1400, criterion="variance")
    losses = []
    for study, _ in plan.chosen:
        curve = Curve(study, part=0)
        points = [("variance", size, 0) for size in range(1, study.full.dim)]
        found = curve.points(points)
        losses.append([0.0, *(study.census.rows * found[at]["excess_distortion"] for at in points), 0.0])
    each = [4 * study.full.levels[0].codes.shape[1] for study, _ in plan.chosen]
    sizes = [choice.count for _, choice in plan.chosen]
    every = {
        pair: sum(loss[size] for loss, size in zip(losses, pair, strict=True))
        for pair in product(*(range(1, len(loss)) for loss in losses))
        if sum(size * cost for size, cost in zip(pair, each, strict=True)) <= 1400
    }
    step = max(loss[size - 1] - loss[size] for loss, size in zip(losses, sizes, strict=True) if size > 1)
    assert every[tuple(sizes)] <= min(every.values()) + step


def test_a_lone_codebook_takes_what_fits(tmp_path: Path) -> None:
    model(tmp_path)
    record = optimize(tmp_path, "--codebook", "fine*", "--modality", "fine", "--bytes", "1KiB")
    assert kept(record) == {"fine": 1024 // (48 * 4)}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--budget", 4, "--keep", "0.5"), "--keep and --budget both say"),
        (("--bytes", "1KiB", "--keep", "3"), "--keep and --bytes both say"),
        (("--budget", 4, "--bytes", "1KiB"), "--budget and --bytes both say"),
        (("--budget", 0), "--budget 0 keeps nothing"),
        (("--budget", 1), "2 codebooks have 21 dimensions"),
        (("--budget", 22), "Use 2 to 21"),
        (("--bytes", 0), "below 1 byte"),
        (("--bytes", 1), "the codes take 320 bytes with one dimension of each"),
        (("--bytes", "many"), "--bytes 'many' is not a size"),
    ],
)
def test_what_a_budget_cannot_be(flags: tuple[object, ...], sentence: str, tmp_path: Path) -> None:
    model(tmp_path)
    done = toc("optimize", "m.safetensors", "--features", "f.h5", "--assume", *flags, cwd=tmp_path)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "m.toc.json").exists()


def test_the_command_line_puts_the_settings_aside(tmp_path: Path) -> None:
    model(tmp_path)
    (tmp_path / "toc.toml").write_text("[tool.toc.optimize]\nkeep = 0.25\n")
    assert kept(optimize(tmp_path, "--budget", 7)) == {"fine": 5, "coarse": 2}
    (tmp_path / "toc.toml").write_text('[tool.toc.optimize]\nbytes = "1KiB"\n')
    assert kept(optimize(tmp_path, "--keep", "3")) == {"fine": 3, "coarse": 3}
    assert optimize(tmp_path)["budget"]["asked"] == 1024


def test_codebooks_that_must_be_cut_to_one_size_stay_within_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    models.save(models.mimi(), tmp_path / "model")
    width = models.mimi().config.hidden_size
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((400, width)).astype(np.float32))
    given = ("optimize", "model", "--features", "x.npy", "-o", "m.toc.safetensors", "--emit", "sliced")
    done = toc(*given, "--budget", 11, cwd=tmp_path)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "m.toc.json").read_text())
    sizes = [book["kept_dim"] for book in record["codebooks"]]
    assert len(sizes) == 2
    assert len(set(sizes)) == 1
    assert sum(sizes) == 10
    assert record["budget"]["taken"] == sum(sizes)
    assert [book["kept"] for book in record["budget"]["codebooks"]] == sizes


def residual(here: Path, levels: int = 3) -> None:
    """Levels of which the first needs most directions."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(1600, 16, generator=generator) * torch.exp(-torch.arange(16) / 5)
    np.save(here / "x.npy", left.reshape(64, 25, 16).numpy())
    tensors = {}
    for level in range(levels):
        codes = left[torch.randperm(len(left), generator=generator)[:32]] * 0.8
        tensors[f"layers.{level}._codebook.embed"] = codes[None].contiguous()
        left = left - codes[torch.cdist(left, codes).argmin(1)]
    save_file(tensors, here / "r.safetensors")


@pytest.mark.parametrize("criterion", ["variance", "pca"])
def test_bytes_of_a_residual_codebook_go_to_the_levels_that_need_them(criterion: str, tmp_path: Path) -> None:
    residual(tmp_path)
    budget = 6 * 3 * 32 * 4 + 32 * 4 + 5  # six dimensions of each, one more of a single one, and some bytes
    given = ("optimize", "r.safetensors", "--features", "x.npy", "--assume", "--force", "--criterion", criterion)
    given += ("--max-distortion", "9", "-o", "m.toc.safetensors")
    done = toc(*given, "--bytes", budget, cwd=tmp_path)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "m.toc.json").read_text())
    validate(record)
    book, spent = record["codebooks"][0], record["budget"]
    sizes = book["kept_dims"]
    assert spent["codebooks"] == [{"id": 0, "kept": max(sizes), "kept_dims": sizes, "bytes": sum(sizes) * 32 * 4}]
    assert spent["taken"] == sum(sizes) * 32 * 4 == book["after"]["bytes"] <= budget
    tried = {key: figures["excess_distortion"] for key, figures in book["auto"]["sizes"].items()}
    assert min(tried["6"], *tried.values()) <= tried[",".join(map(str, sizes))] < tried["6"]
    # the sliced and consumer forms hold one size for all levels
    done = toc(*given, "--bytes", budget, "--emit", "masked", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "m.toc.json").read_text())["codebooks"][0]["kept_dims"] == sizes


def test_bytes_are_even_over_levels_where_a_form_holds_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    models.save(models.encodec(), tmp_path / "model")
    width = models.encodec().config.codebook_dim
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((40, 10, width)).astype(np.float32))
    given = ("optimize", "model", "--features", "x.npy", "-o", "m.toc.safetensors", "--emit", "sliced")
    done = toc(*given, "--bytes", 4000, cwd=tmp_path)
    assert done.code == 0, done.err
    book = json.loads((tmp_path / "m.toc.json").read_text())["codebooks"][0]
    assert "kept_dims" not in book
    assert book["after"]["bytes"] <= 4000
