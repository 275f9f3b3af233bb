"""Geometry, rotations and stability against direct formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from criteria import draws, score
from toc_cli.errors import InputError
from toc_cli.ops import geometry, rotation, stability, work
from toc_cli.ops.blocks import total
from toc_cli.ops.linear import matmul, unit_rows
from toc_cli.ops.moments import cross_moments, merge_cross, moments, pair_moments
from toc_cli.ops.selection import select


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_geometry_is_the_pair_loop(count, dim, seed):
    codes = draw(seed, count, dim)
    pairs = list(itertools.combinations(codes, 2))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    assert geometry.mean_cosine(codes) == pytest.approx(np.mean(cosines), abs=1e-12)
    assert geometry.min_distance(codes) == pytest.approx(min(np.linalg.norm(a - b) for a, b in pairs))
    values = np.linalg.svd(codes - codes.mean(0), compute_uv=False)
    p = values[values > 1e-7 * values.max()] / values[values > 1e-7 * values.max()].sum()
    assert geometry.effective_rank(codes) == pytest.approx(math.exp(-np.sum(p * np.log(p))), rel=1e-4)


def test_special_codebooks():
    zero = np.zeros((4, 3))
    assert geometry.geometry(zero) == geometry.Geometry(0.0, 0.0, 0.0)
    assert geometry.effective_rank(np.full((50, 7), 0.1)) == 0
    assert geometry.geometry(np.eye(5)).mean_cosine == 0
    assert geometry.min_distance(np.repeat(np.eye(3), 2, axis=0)) == 0
    line = np.arange(20.0)[:, None] * np.ones((1, 4))
    assert geometry.effective_rank(line) == pytest.approx(1)


def test_the_closest_codes_are_found_or_left_out_but_never_bounded(monkeypatch):
    codes = draw(0, 1000, 8).astype(np.float32)
    codes[701] = codes[13]
    assert geometry.geometry(codes).min_distance == 0
    monkeypatch.setattr(work, "FREE", 0)
    assert geometry.geometry(codes, run=1000**2 * 8).min_distance == 0
    assert math.isnan(geometry.geometry(codes, run=1000**2 * 8 - 1).min_distance)
    assert math.isnan(geometry.geometry(codes, run=work.spectrum(1000, 8) - 1).effective_rank)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 10**6))
def test_usage_rank_is_the_entropy_of_the_variances_in_use(count, dim, seed):
    codes, usage = draw(seed, count, dim), np.random.default_rng(seed).integers(0, 4, count)
    usage[:2] += 1
    rows = np.repeat(codes, usage, axis=0)
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    q = values[values > 1e-12 * values.max()] / values.sum()
    assert geometry.usage_rank(codes, usage) == pytest.approx(math.exp(-np.sum(q * np.log(q))), rel=1e-6)


def test_usage_rank_of_special_codes():
    assert geometry.usage_rank(np.eye(4), [5, 0, 0, 0]) == 0
    assert geometry.usage_rank(np.eye(4), [0, 0, 0, 0]) == 0
    assert geometry.usage_rank(np.eye(4), [1, 1, 0, 0]) == pytest.approx(1)
    assert geometry.usage_rank(np.eye(4) + 100, [1, 1, 1, 1]) == pytest.approx(3)
    assert geometry.effective_rank(np.diag([9.0, 1, 1]) - 5) != pytest.approx(
        geometry.usage_rank(np.diag([9.0, 1, 1]) - 5, [1, 1, 1])
    )


def test_linear_algebra_is_blind_to_threads():
    a = draw(0, 700, 300)
    before, found = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        turn = rotation.pca([a])
        found.add(matmul(a.T, a).tobytes() + turn.matrix.tobytes() + np.float64(geometry.effective_rank(a)).tobytes())
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(found) == 1


def test_pca_is_the_svd_of_the_weighted_codes():
    codes, usage = draw(0, 40, 5) @ np.diag([5, 4, 3, 2, 1]), np.random.default_rng(1).integers(0, 9, 40)
    rows = np.repeat(codes, usage, axis=0)
    _, values, vectors = np.linalg.svd(rows - rows.mean(0))
    found = rotation.pca([codes], [usage])
    np.testing.assert_allclose(found.eigenvalues, values**2 / len(rows))
    np.testing.assert_allclose(np.abs(found.matrix), np.abs(vectors.T), atol=1e-9)
    np.testing.assert_allclose(found.matrix.T @ found.matrix, np.eye(5), atol=1e-12)
    peaks = np.abs(found.matrix).argmax(0)
    assert (found.matrix[peaks, np.arange(5)] > 0).all()
    np.testing.assert_array_equal(score("pca", codes, usage=usage).matrix, found.matrix)
    with pytest.raises(InputError, match="usage"):
        rotation.pca([codes], [np.zeros(40)])


def test_levels_that_share_a_rotation_add_their_covariances():
    codes = draw(0, 2, 30, 4)
    both = sum(np.cov(book.T, bias=True) for book in codes)
    np.testing.assert_allclose(rotation.pca(list(codes)).eigenvalues, np.linalg.eigvalsh(both)[::-1])


def test_xcov_finds_what_two_modalities_share():
    shared, a, b = draw(0, 500, 1), draw(1, 500, 4), draw(2, 500, 4)
    direction = np.array([0.6, 0, -0.8, 0])
    a, b = a + 3 * shared * direction, b + 3 * shared * direction
    found = rotation.xcov([total([cross_moments(a[:200], b[:200]), cross_moments(a[200:], b[200:])], merge_cross)])
    c = (a - a.mean(0)).T @ (b - b.mean(0)) / 500
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh((c + c.T) / 2)[::-1], atol=1e-12)
    assert abs(found.matrix[:, 0] @ direction) > 0.99
    assert found.matrix[2, 0] > 0


# Stability


@pytest.mark.parametrize("criterion", ["toc", "toc-live", "variance", "similarity", "usage-toc", "usage-variance"])
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_draws_are_the_scores_of_the_drawn_codes(criterion, normalize):
    codes, usage = draw(0, 30, 5) + 2, np.random.default_rng(1).integers(1, 9, 30)
    drawn = draws(criterion, codes, 5, usage=usage, normalize=normalize)
    times = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=100)
    assert len(drawn) == 100
    for found, n in zip(drawn[:4], times, strict=False):
        rows = np.repeat(unit_rows(codes) if normalize == "l2" else codes, n, axis=0)
        expected = score(criterion, rows, usage=np.repeat(usage, n))
        np.testing.assert_allclose(found.score, expected.score, atol=1e-10)
        np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-10)
        np.testing.assert_allclose(found.variance, expected.variance, atol=1e-10)


def test_resamples_that_use_one_code_are_left_out():
    assert 0 < len(draws("usage-toc", np.eye(3), usage=[1, 1, 0])) < 100


def test_clear_choices_are_stable_and_unclear_ones_are_not():
    scales = np.array([10, 9, 8, 0.1, 0.1, 0.1])
    found = {}
    for name, codes in (("clear", draw(0, 200, 6) * scales), ("unclear", draw(0, 200, 6))):
        kept = select(score("toc", codes).score, 3).kept
        found[name] = stability.stability(kept, draws("toc", codes))
    assert found["clear"] == stability.Stability(1.0, 1.0, 100)
    assert found["unclear"].mean < stability.STABLE
    assert found["unclear"].least <= found["unclear"].mean


def test_features_and_pairs_are_resampled_by_unit():
    a, b, codes = draw(0, 400, 5), draw(1, 400, 5), draw(2, 30, 5)
    parts = [slice(start, start + 100) for start in range(0, 400, 100)]
    times = np.random.default_rng(7).multinomial(4, np.full(4, 0.25), size=3)
    found = stability.feature_draws([moments(a[part]) for part in parts], resamples=3, seed=7)
    toc = score("toc", codes)
    shared = stability.pair_draws(toc, [[pair_moments(a[part], b[part]) for part in parts]], resamples=3, seed=7)
    turns = stability.xcov_draws([[cross_moments(a[part], b[part]) for part in parts]], resamples=3, seed=7)
    for r, n in enumerate(times):
        rows = np.concatenate([np.arange(400)[part] for part, k in zip(parts, n, strict=True) for _ in range(k)])
        expected = score("features", codes, streams=[[moments(a[rows])]])
        np.testing.assert_allclose(found[r].score, expected.score, atol=1e-10)
        expected = score("xmodal", codes, streams=[[pair_moments(a[rows], b[rows])]])
        np.testing.assert_allclose(shared[r].score, expected.score, atol=1e-10)
        expected = rotation.xcov([cross_moments(a[rows], b[rows])])
        np.testing.assert_allclose(turns[r].eigenvalues, expected.eigenvalues, atol=1e-10)


def test_subspaces_overlap():
    codes = draw(0, 300, 6) * np.array([9, 8, 7, 0.1, 0.1, 0.1])
    leading = rotation.pca([codes]).leading(3)
    found = stability.subspace_stability(leading, stability.pca_draws([codes], [np.ones(300)], resamples=5))
    assert found.mean > 0.99
    apart = rotation.Rotation(np.eye(6)[:, ::-1].copy(), np.arange(6))
    assert stability.subspace_stability(np.eye(6)[:, :3], [apart]).mean == 0


def test_jaccard():
    a = torch.tensor([[[0, 1], [2, 3]]])
    b = torch.tensor([[[0, 2], [2, 3]]])
    assert stability.jaccard(a, b) == pytest.approx((1 / 3 + 1) / 2)


def test_codes_at_the_origin_span_nothing():
    assert geometry.effective_rank(np.zeros((3, 2))) == 0
    assert geometry.usage_rank(np.zeros((3, 2)), np.ones(3)) == 0


def test_usage_may_be_shares():
    codes = np.array([[0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(rotation.usage_covariance(codes, np.array([0.5, 0.5])), [[1, 0], [0, 0]])
    np.testing.assert_allclose(rotation.usage_covariance(codes, np.array([0.0, 1.0])), np.zeros((2, 2)))
    with pytest.raises(InputError, match="needs usage"):
        rotation.usage_covariance(codes, np.zeros(2))
