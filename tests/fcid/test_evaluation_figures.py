"""Figures and intervals: against the probes' own scores, textbook medians, and what pairing promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.fcid.evaluation.figures import Mean, Median, Ratio, macro_f1, share, summary, weighted_median
from toc_cli.fcid.probes import segment_f1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4))
def test_macro_f1_of_sums_is_segment_f1_of_seconds(seed: int, clips: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.random((2, clips, 5, classes)) > 0.7
    mask = rng.random((clips, 5)) > 0.2
    valid = mask[..., None]
    sums = np.concatenate([(part & valid).sum(axis=1) for part in (true & predicted, predicted, true)], axis=1)
    found = macro_f1(sums.sum(axis=0).astype(float))
    expected = segment_f1(torch.tensor(predicted), torch.tensor(true).long(), torch.tensor(mask))
    assert float(found) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12))
def test_weighted_median_is_the_median_of_repeated_values(pairs: list[tuple[int, int]]) -> None:
    values, times = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if times.sum() == 0:
        times[0] = 1
    found = weighted_median(values, times[None])
    assert found == pytest.approx([np.median(np.repeat(values, times.astype(int)))])


def hits(seed: int, clips: int = 200, rate: float = 0.6) -> Ratio:
    rng = np.random.default_rng(seed)
    right = rng.random((3, clips)) < rate
    return Ratio(np.stack([right, np.ones_like(right)], axis=-1).astype(float), share)


def test_an_interval_covers_the_value_and_has_the_binomial_width() -> None:
    figure = hits(0)
    found = summary(figure, clips=200)
    low, high = found["ci95"]
    assert found["value"] == pytest.approx(figure.sums[..., 0].mean())
    assert found["seeds"] == pytest.approx(list(figure.sums[..., 0].mean(axis=1)))
    assert low < found["value"] < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.6 * 0.4 / 200 / 3), rel=0.25)  # three seeds, independent


def test_differences_are_paired_over_seeds_and_clips() -> None:
    figure = hits(0)
    same = summary(figure, figure, clips=200)
    assert same["delta"] == 0
    assert same["delta_ci95"] == [0, 0]
    worse = Ratio(figure.sums * [[[0.5, 1.0]]], share)  # every clip loses half: the difference hardly varies
    found = summary(worse, figure, clips=200)
    assert found["delta"] == pytest.approx(-figure.sums[..., 0].mean() / 2)
    width = found["delta_ci95"][1] - found["delta_ci95"][0]
    assert width < 0.6 * (same["ci95"][1] - same["ci95"][0])


def test_a_mean_of_figures_resamples_the_same_clips() -> None:
    figure = hits(1)
    against = Ratio(np.stack([1 - figure.sums[..., 0], figure.sums[..., 1]], axis=-1), share)
    found = summary(Mean([figure, against]), clips=200)
    assert found["value"] == pytest.approx(0.5)
    assert found["ci95"] == pytest.approx([0.5, 0.5])  # what one loses the other gains, clip by clip


def test_what_is_undefined_is_null() -> None:
    nothing = Ratio(np.zeros((1, 10, 2)), share)
    assert summary(nothing, nothing, clips=10) == {
        "value": None, "seeds": [None], "ci95": None, "delta": None, "delta_ci95": None,
    }  # fmt: skip


def test_median_of_clips() -> None:
    found = summary(Median(np.array([[1.0, 2.0, 9.0]])), clips=3)
    assert found["value"] == 2
    assert found["ci95"][0] >= 1
    assert found["ci95"][1] <= 9
