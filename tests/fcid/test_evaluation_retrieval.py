"""Ranks with ties: against all orders of what ties, textbook average precision and scipy's mid-ranks."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from fcid.labelled_clips import labelled_clips
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.data import open_split
from toc_cli.fcid.evaluation.figures import summary
from toc_cli.fcid.evaluation.retrieval import cosines, groups_of, rank, rank_figures, search


def average_precision(right: list[bool]) -> float:
    """Mean over the relevant places of the share of relevant ones up to there."""
    places = [place for place, hit in enumerate(right, 1) if hit]
    return sum((n + 1) / place for n, place in enumerate(places)) / len(places)


def over_all_orders(scores: list[int], relevant: list[bool]) -> tuple[float, float]:
    """Mean rank of the first relevant item and mean average precision over every order that the scores allow."""
    firsts, precisions = [], []
    for order in permutations(range(len(scores))):
        ranked = [scores[i] for i in order]
        if ranked == sorted(scores, reverse=True):
            right = [relevant[i] for i in order]
            firsts.append(right.index(True) + 1)
            precisions.append(average_precision(right))
    return float(np.mean(firsts)), float(np.mean(precisions))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(0, 5))
def test_ties_are_expectations_over_their_orders(items: list[tuple[int, bool]], sure: int) -> None:
    scores, relevant = [score for score, _ in items], [hit for _, hit in items]
    relevant[sure % len(relevant)] = True
    found = rank(np.array([scores], dtype=float), np.array([relevant]))
    first, precision = over_all_orders(scores, relevant)
    assert found.first[0] == pytest.approx(first)
    assert found.precision[0] == pytest.approx(precision)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 6))
def test_one_right_clip_lies_at_its_mid_rank(seed: int, clips: int, levels: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, (clips, clips)).astype(float)
    found = rank(scores, np.eye(clips, dtype=bool))
    assert found.first == pytest.approx(np.diag(rankdata(-scores, method="average", axis=1)))


def test_equal_codes_tie_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(7, 33, generator=generator)
    at, to = torch.randint(0, 7, (2, 120), generator=generator)
    found = cosines(codes[at], codes[to])
    for i in range(7):
        rows = found[at.numpy() == i]
        assert (rows == rows[0]).all()
        columns = found[:, to.numpy() == i]
        assert (columns == columns[:, :1]).all()
    expected = torch.nn.functional.cosine_similarity(codes[at][:, None].double(), codes[to][None].double(), dim=-1)
    assert found == pytest.approx(expected.numpy())


def test_perfect_reversed_and_collapsed_vectors() -> None:
    x = torch.eye(8)
    perfect = {name: f.values()[0, 0] for name, f in rank_figures([search(x, x, np.arange(8))]).items()}
    assert perfect == {"r1": 1, "r5": 1, "r10": 1, "median_rank": 1, "map": 1}
    collapsed = search(torch.ones(8, 3), torch.ones(8, 3), np.arange(8))
    assert (collapsed.first == 4.5).all()  # one code for all clips: chance, and no luck from the order on disk
    worst = search(x, -x, np.arange(8))
    assert (worst.first == 8).all()


def test_long_galleries_are_searched_in_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(300, 5, generator=generator)
    b = a + torch.randn(300, 5, generator=generator)
    groups = np.arange(300) // 3
    found = search(a, b, groups)
    whole = rank(cosines(a, b), groups[:, None] == groups[None])
    assert (found.first == whole.first).all()
    assert (found.precision == whole.precision).all()
    assert summary(rank_figures([found])["map"], clips=300)["ci95"][0] > 0.05


def test_what_counts_as_found(tmp_path: Path) -> None:
    split = open_split(labelled_clips(tmp_path / "clips.h5"), "a_test")
    assert (groups_of(split, "auto")[0] == split.captions).all()
    assert groups_of(split, "auto")[1] == "caption"
    assert groups_of(split, "clip")[0].tolist() == list(range(30))
    assert (groups_of(split, "label_clip")[0] == split.label("label_clip")).all()
    with pytest.raises(UsageError, match="labels seconds"):
        groups_of(split, "label_second.audio")
    with pytest.raises(InputError, match="no labels 'digits'"):
        groups_of(split, "digits")
