"""`--criterion auto` and `--keep auto`: the best candidate at the smallest size, chosen on units that the record does not measure."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli import toc
from toc_cli.demo import CHECKPOINT, FEATURES
from toc_cli.errors import UsageError
from toc_cli.ops.criterion import CRITERIA
from toc_cli.pipeline import Options, plan_optimization
from toc_cli.pipeline.auto import Auto, rated
from toc_cli.pipeline.curve import Curve, meets
from toc_cli.pipeline.sample import share_of


def searched(**options: object):  # type: ignore[no-untyped-def]
    plan = plan_optimization(CHECKPOINT, FEATURES, Options(**options))  # type: ignore[arg-type]
    return plan, plan.metrics[0]


def test_auto_is_not_beaten_by_any_fixed_criterion() -> None:
    plan, entry = searched(criterion="auto", keep="8")
    study = plan.chosen[0][0]
    everywhere = Curve(study)
    points = everywhere.points([(name, 8, 0) for name in study.criteria])
    agreement = {name: figures["token_agreement"] for (name, _, _), figures in points.items()}
    assert agreement[entry["auto"]["criterion"]] >= max(agreement.values()) - 0.005
    assert set(entry["auto"]["candidates"]) == set(CRITERIA) - {"random", "agreement", "softmargin"}
    best = entry["auto"]["candidates"][entry["auto"]["criterion"]]
    assert best["token_agreement"] == max(each["token_agreement"] for each in entry["auto"]["candidates"].values())
    assert plan.record["options"]["criterion"] == "auto"
    assert entry["rotation"]


def test_forms_that_take_no_rotation_get_the_best_dimensions(tmp_path: Path) -> None:
    with h5py.File(FEATURES) as file:  # without the tokens, which prove a Euclidean lookup
        np.savez(tmp_path / "x.npz", upper=file["upper"][:], lower=file["lower"][:])
    options = Options(criterion="auto", keep="8", emit=("codebook", "masked"), metric="cosine", assume=True)
    entry = plan_optimization(CHECKPOINT, tmp_path / "x.npz", options).metrics[0]
    assert set(entry["auto"]["candidates"]) == {
        name for name, row in CRITERIA.items() if not row.rotates and name != "random"
    }
    assert not entry["rotation"]


def test_a_rotation_is_written_at_full_width(tmp_path: Path) -> None:
    arguments = ("optimize", CHECKPOINT, "--features", FEATURES, "--criterion", "auto", "--keep", "8", "--assume")
    done = toc(*arguments, "--emit", "masked", "--emit", "codebook", "-o", tmp_path / "m.toc.safetensors", "-q")
    assert done.code == 0, done.err
    before, after = load_file(CHECKPOINT), load_file(tmp_path / "m.masked.safetensors")
    (key,) = [key for key in before if not torch.equal(before[key], after[key])]
    assert before[key].shape == after[key].shape
    spread = torch.linalg.svdvals(after[key].double() - after[key].double().mean(0))
    assert (spread > 1e-4 * spread[0]).sum() == 8


def test_the_units_are_split_and_every_figure_is_of_the_second_part() -> None:
    plan, entry = searched(criterion="auto", keep="8")
    split = entry["auto"]["split"]
    assert split["apart"]
    assert entry["sample"]["evaluated"] == split["measured_on"]
    study = plan.chosen[0][0]
    first, second = Curve(study, 0, 0), Curve(study, 0, 1)
    for one, other in zip(first.samples, second.samples, strict=True):
        assert not set(one.blocks) & set(other.blocks)
        assert sorted([*one.blocks, *other.blocks]) == one.whole
    a, b = first.samples
    assert [at for at, block in enumerate(a.whole) if block in a.blocks] == [
        at for at, block in enumerate(b.whole) if block in b.blocks
    ]
    measured = second.points([(entry["auto"]["criterion"], 8, 0)])
    assert next(iter(measured.values()))["token_agreement"] == entry["after"]["token_agreement"]


def test_a_lone_unit_is_in_both_parts() -> None:
    assert share_of([(0, 5)], 0, 3) == share_of([(0, 5)], 1, 3) == [(0, 5)]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 9, 128])
def test_one_unit_of_four_in_a_row_is_kept_from_choices(count: int) -> None:
    blocks = [(at, at + 1) for at in range(count)]
    drawn = set()
    for seed in range(30):
        chosen, proof = (share_of(blocks, part, seed) for part in (0, 1))
        assert sorted(chosen + proof) == blocks
        assert chosen
        assert all(len({at // 4 for at, _ in proof}) == len(proof) for _ in proof)
        assert count // 4 <= len(proof) <= -(-count // 4)
        drawn.add(tuple(proof))
    assert len(drawn) > 1


@pytest.mark.parametrize("bound", [{"min_agreement": 0.9}, {"max_distortion": 0.3}])
@pytest.mark.parametrize("criterion", ["toc", "auto"])
def test_keep_auto_is_the_smallest_size_that_meets_the_bound_on_both_parts(bound: dict, criterion: str) -> None:
    plan, entry = searched(criterion=criterion, keep="auto", **bound)
    options = plan.options
    assert meets(entry["after"], options)
    study, count = plan.chosen[0][0], entry["kept_dim"]
    for name in [criterion] if criterion != "auto" else ["pca", "discriminant"]:
        parts = [Curve(study, 0, part).points([(name, size, 0) for size in range(1, count)]) for part in (0, 1)]
        both = [size for size in range(1, count) if all(meets(part[name, size, 0], options) for part in parts)]
        assert not both, f"{name} keeps the bound with {both} dimensions, {count} were taken"
    if "max_distortion" in bound:
        assert entry["auto"]["by"] == "excess_distortion"


def test_a_curve_that_dips_is_searched_below_its_dip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good from 3 to 4 and from 20 on: bisection alone ends at 20."""
    plan, _ = searched(criterion="toc", keep="4")
    search = Auto(plan.chosen[0][0], 0)
    good = {3, 4, *range(20, 33)}

    def points(wanted):  # type: ignore[no-untyped-def]
        return {at: {"token_agreement": float(at[1] in good), "excess_distortion": 0.0} for at in wanted}

    for curve in (search.trial, search.proof):
        monkeypatch.setattr(curve, "points", points)
    search.study = search.study.asking(min_agreement=0.9, keep="auto")
    assert search._bisect(0, 32, 16) == 20
    assert search.smallest() == 3


def test_auto_goes_without_ratio_and_says_what_it_took(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ratio does not go with --criterion auto"):
        Options(criterion="auto", ratio="3:1")
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.standard_normal((64, 8)).astype(np.float32))
    save_file({"quantize.embedding.weight": codes}, tmp_path / "m.safetensors")
    np.save(tmp_path / "f.npy", rng.standard_normal((400, 8)).astype(np.float32))
    done = toc("optimize", "m.safetensors", "--features", "f.npy", "--criterion", "auto", "--keep", "4", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "auto took" in done.out + done.err
    shown = toc("report", "m.toc.json", "--exit-zero", cwd=tmp_path)
    assert shown.code == 0, shown.err
    tokens = toc("quantize", "f.npy", "--codebook", "m.toc.safetensors", "-q", cwd=tmp_path)
    assert tokens.code == 0, tokens.err


def test_criteria_whose_sums_do_not_fit_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "codebook.npy", np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32))
    np.save(tmp_path / "f.npy", np.random.default_rng(1).standard_normal((1024, 128)).astype(np.float32))
    run = ("optimize", "codebook.npy", "--features", "f.npy", "--max-memory", "3MiB", "-q", "--force", "--criterion")
    assert toc(*run, "auto", cwd=tmp_path).code == 0
    tried = json.loads((tmp_path / "codebook.toc.json").read_text())["codebooks"][0]["auto"]["candidates"]
    assert "discriminant" not in tried
    assert "pca" in tried


def test_figures_are_rated_by_the_bound_that_is_asked() -> None:
    near, same = ({"token_agreement": a, "excess_distortion": e} for a, e in ((0.5, 0.1), (0.9, 0.6)))
    by_distortion = Options(max_distortion=0.3)
    assert rated(near, by_distortion) == (True, -0.1)
    assert rated(same, by_distortion) == (False, -0.6)
    assert rated(same, Options(min_agreement=0.8)) == (True, 0.9)
    assert rated(near, Options(min_agreement=0.8, max_distortion=0.3)) == (False, 0.5)
    assert rated(near, Options()) == (False, 0.5)


def test_sizes_below_are_near_and_spread() -> None:
    plan, _ = searched(criterion="toc", keep="4")
    search = Auto(plan.chosen[0][0], 0)
    assert search._below(1) == []
    assert search._below(20) == list(range(1, 20))
    assert search._below(25) == list(range(1, 25))
    assert search._below(185) == [1 + at * 10 for at in range(16)] + list(range(161, 185))


@pytest.mark.parametrize("least", [1, 2, 15, 31, 32])
@pytest.mark.parametrize("start", [None, 1, 16, 31])
def test_bisection_ends_at_the_least_good_size_wherever_it_starts(
    monkeypatch: pytest.MonkeyPatch, least: int, start: int | None
) -> None:
    plan, _ = searched(criterion="toc", keep="4")
    search = Auto(plan.chosen[0][0], 0)
    asked: list[int] = []
    monkeypatch.setattr(search, "good", lambda count: asked.append(count) or count >= least)
    assert search._bisect(0, 32, start) == least
    assert len(asked) == len(set(asked)) <= 10
