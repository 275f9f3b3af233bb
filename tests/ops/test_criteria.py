"""The criteria that read features and tokens, against slow loops, and what must hold of each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from criteria import draws
from toc_cli.errors import InputError
from toc_cli.ops import rotation, scatter
from toc_cli.ops.blocks import total
from toc_cli.ops.criteria import agreement, rows, softmargin
from toc_cli.ops.criteria.base import Known, Side
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.linear import unit_rows
from toc_cli.ops.rotation import Rotation
from toc_cli.ops.selection import rank

READING = ("discriminant", "agreement", "softmargin")


def case(seed=0, count=12, dim=5, n=60, spread=0.7):
    """Features around codes, of falling scale, and the nearest code of each."""
    rng = np.random.default_rng(seed)
    scale = 1.5 ** -np.arange(dim)
    codes = (rng.standard_normal((count, dim)) * scale).astype(np.float32)
    x = codes[rng.integers(0, count, n)] + spread * rng.standard_normal((n, dim)).astype(np.float32) * scale
    x = x.astype(np.float32)
    return x, codes, nearest(x, codes)


def nearest(x, codes):
    return ((x[:, None].astype(float) - codes[None]) ** 2).sum(-1).argmin(1)


def known(name, x, codes, tokens, cuts=(), **more):
    """What the row reads of features cut into segments."""
    about = Known(codes, np.bincount(tokens, minlength=len(codes)), **more)
    edges = [0, *cuts, len(x)]
    reads = CRITERIA[name].maths.reads
    states = [reads.single(about, Side(x[a:b], tokens[a:b], a, len(x))) for a, b in itertools.pairwise(edges)]
    return Known(codes, about.usage, [states], **more)


def ranked(name, x, codes, tokens, cuts=(), **more):
    return CRITERIA[name].rank([known(name, x, codes, tokens, cuts, **more)])


def order(found):
    return None if isinstance(found, Rotation) else rank(found.score, found.last).tolist()


# Discriminant


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([0.03, 0.3, 3.0]))
def test_discriminant_solves_its_eigenvalue_problem(seed, dim, ridge):
    x, codes, tokens = case(seed, dim=dim)
    between, within = reference.scatters(x, codes.astype(float), tokens)
    found = rotation.discriminant(between, within, ridge)
    whole = within + ridge * np.trace(between + within) / dim * np.eye(dim)
    values, vectors = np.linalg.eig(np.linalg.solve(whole, between))
    at = np.argsort(-values.real)
    np.testing.assert_allclose(found.eigenvalues, values.real[at], atol=1e-9 * values.real.max())
    np.testing.assert_allclose(found.matrix.T @ found.matrix, np.eye(dim), atol=1e-12)
    for count in range(1, dim):  # nested: the first columns span the first discriminants
        inside = found.matrix[:, :count]
        leading = vectors.real[:, at[:count]]
        gap = values.real[at[count - 1]] - values.real[at[count]]
        if gap > 1e-3 * values.real.max():
            np.testing.assert_allclose(inside @ inside.T @ leading, leading, atol=1e-7)
    peaks = np.abs(found.matrix).argmax(0)
    assert (found.matrix[peaks, np.arange(dim)] > 0).all()


def test_the_row_is_the_formula_on_the_scatters_of_all_segments():
    x, codes, tokens = case()
    expected = rotation.discriminant(*reference.scatters(x, codes.astype(float), tokens))
    found = ranked("discriminant", x, codes, tokens, cuts=(13, 40))
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-9)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues)


def test_discriminant_weighs_the_error_and_becomes_pca_as_the_ridge_grows():
    """Two directions of equal code variance: the one with less error comes first."""
    codes = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    error = np.diag([0.2, 0.01])
    found = rotation.discriminant(rotation.usage_covariance(codes), error)
    assert found.matrix[:, 0].round(9).tolist() == [0, 1]
    x, table, tokens = case(3)
    between, within = reference.scatters(x, table.astype(float), tokens)
    wide = rotation.discriminant(between, within, ridge=1e9)
    plain = rotation.pca([table], [np.bincount(tokens, minlength=len(table))])
    np.testing.assert_allclose(wide.matrix, plain.matrix, atol=1e-6)
    assert np.abs(rotation.discriminant(between, within, rotation.RIDGE).matrix - plain.matrix).max() > 1e-3
    assert rotation.RIDGE == 0.3


def test_discriminant_of_levels_adds_their_scatters_and_of_cosine_is_of_unit_rows():
    first, second = case(1), case(2)
    group = [known("discriminant", *each) for each in (first, second)]
    both = [reference.scatters(x, codes.astype(float), tokens) for x, codes, tokens in (first, second)]
    expected = rotation.discriminant(both[0][0] + both[1][0], both[0][1] + both[1][1])
    np.testing.assert_allclose(CRITERIA["discriminant"].rank(group).matrix, expected.matrix, atol=1e-9)
    x, codes, tokens = first
    expected = rotation.discriminant(*reference.scatters(unit_rows(x), unit_rows(codes), tokens))
    for how in ({"metric": "cosine"}, {"normalize": "l2"}):
        np.testing.assert_allclose(ranked("discriminant", *first, **how).matrix, expected.matrix, atol=1e-9)


def test_equal_codes_have_no_discriminant():
    with pytest.raises(InputError, match="all equal"):
        rotation.discriminant(np.zeros((3, 3)), np.zeros((3, 3)))


def test_discriminant_resamples_segments():
    x, codes, tokens = case(n=90)
    found = draws("discriminant", codes, 7, streams=known("discriminant", x, codes, tokens, (30, 60)).streams)
    times = np.random.default_rng(7).multinomial(3, np.full(3, 1 / 3), size=20)
    assert len(found) == 20
    at = np.concatenate([np.arange(90)[30 * s : 30 * s + 30] for s, n in enumerate(times[4]) for _ in range(n)])
    expected = rotation.discriminant(*reference.scatters(x[at], codes.astype(float), tokens[at]))
    np.testing.assert_allclose(found[4].matrix, expected.matrix, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 59), max_size=4, unique=True))
def test_scatter_merges(seed, cuts):
    x, codes, tokens = case(seed)
    edges = [0, *sorted(cuts), 60]
    parts = [
        scatter.scatter(*map(torch.from_numpy, (x[a:b], codes, tokens[a:b])), np.bincount(tokens[a:b], minlength=12))
        for a, b in itertools.pairwise(edges)
    ]
    state = total(parts, scatter.merge_scatter)
    np.testing.assert_allclose(scatter.within(state), reference.scatters(x, codes.astype(float), tokens)[1], atol=1e-9)
    assert state.usage.tolist() == np.bincount(tokens, minlength=12).tolist()


@pytest.mark.parametrize(("most", "step"), [(60, 1), (59, 2), (20, 3), (7, 9)])
@pytest.mark.parametrize("cuts", [(), (1, 14, 41)])
def test_a_long_stream_multiplies_out_every_nth_error_wherever_blocks_begin(monkeypatch, most, step, cuts):
    monkeypatch.setattr(scatter, "ROWS", most)
    x, codes, tokens = case()
    between = reference.scatters(x, codes.astype(float), tokens)[0]
    within = reference.scatters(x[::step], codes.astype(float), tokens[::step])[1]
    found = ranked("discriminant", x, codes, tokens, cuts=cuts)
    np.testing.assert_allclose(found.matrix, rotation.discriminant(between, within).matrix, atol=1e-9)
    assert scatter.stride(0) == 1


# Agreement


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_agreement_is_the_greedy_loop(seed, dim):
    x, codes, tokens = case(seed, count=7, dim=dim, n=25)
    x, codes = np.round(x * 8) / 8, np.round(codes * 8) / 8  # a grid: float32 is exact, and there are ties
    tokens = nearest(x, codes)
    assert order(ranked("agreement", x, codes, tokens, (9,))) == reference.greedy_agreement(x, codes, tokens)


def test_agreement_of_levels_adds_their_ranks():
    first, second = case(1, count=7, n=25), case(2, count=7, n=25)
    found = CRITERIA["agreement"].rank([known("agreement", *each) for each in (first, second)])
    values = [
        sum(reference.reciprocal_rank(x, codes, tokens, [d]) for x, codes, tokens in (first, second)) for d in range(5)
    ]
    assert order(found)[0] == int(np.argmax(values))


def test_a_dead_dimension_is_no_early_choice():
    x, codes, tokens = case(0)
    x[:, 2], codes[:, 2] = 5, 5
    assert order(ranked("agreement", x, codes, tokens))[-1] == 2
    assert order(ranked("softmargin", x, codes, tokens))[-1] == 2


def test_ties_of_reciprocal_rank_stand_at_their_middle():
    level = torch.zeros(1, 5)
    assert agreement.reciprocal_rank(level, torch.tensor([[3]])) == pytest.approx(1 / 3)
    assert agreement.reciprocal_rank(torch.tensor([[0.0, 1, 2]]), torch.tensor([[1]])) == pytest.approx(1 / 2)


def test_fewer_competitors_are_the_nearest_with_the_own_code_among_them():
    x, codes, tokens = case(0, count=40)
    wrong = (tokens + 1) % 40
    for metric, dot in (("euclidean", False), ("dot", True)):
        found = rows.contest(known("agreement", x, codes, wrong, metric=metric), 30, 6)
        assert found.candidates.shape == (30, 6)
        at = np.arange(30) * 60 // 30
        assert (found.candidates.gather(1, found.chosen)[:, 0].numpy() == wrong[at]).all()
        cost = -x[at].astype(float) @ codes.T if dot else ((x[at, None].astype(float) - codes[None]) ** 2).sum(-1)
        for row, taken, token in zip(cost, found.candidates.tolist(), wrong[at], strict=True):
            others = [k for k in np.argsort(row) if k != token][:5]
            assert sorted(taken) == sorted([*others, token])


def test_the_sample_is_the_same_rows_however_they_are_cut(monkeypatch):
    monkeypatch.setattr(rows, "ROWS", 20)
    rows.drawn.cache_clear()
    x, codes, tokens = case(n=60)
    one = total(known("agreement", x, codes, tokens, seed=3).streams[0], rows.merge_rows)
    many = total(known("agreement", x, codes, tokens, (1, 7, 31), seed=3).streams[0], rows.merge_rows)
    rows.drawn.cache_clear()
    assert one.x.shape == (20, 5)
    assert one.x.tobytes() == many.x.tobytes()
    assert one.tokens.tobytes() == many.tokens.tobytes()


# Soft margin


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_likelihood_and_gradient_are_the_loop(seed):
    x, codes, tokens = case(seed, n=30)
    likelihood = softmargin.Likelihood(rows.Rows(x.astype(float), tokens), codes.astype(float))
    w = np.random.default_rng(seed).random(5)
    value, gradient = likelihood.at(w)
    assert likelihood.temperature == pytest.approx(0.3 * np.mean(np.sum((x - codes[tokens]) ** 2, axis=1)), rel=1e-5)
    arguments = (x.astype(float), codes.astype(float), tokens)
    assert value == pytest.approx(reference.log_likelihood(*arguments, w, likelihood.temperature))
    for d in range(5):
        step = np.eye(5)[d] * 1e-5
        up, down = (reference.log_likelihood(*arguments, w + s, likelihood.temperature) for s in (step, -step))
        assert gradient[d] == pytest.approx((up - down) / 2e-5, abs=1e-4 * max(1, abs(gradient[d])))


def test_frank_wolfe_stays_feasible_and_climbs():
    x, codes, tokens = case(4, dim=8)
    likelihood = softmargin.Likelihood(rows.Rows(x.astype(float), tokens), codes.astype(float))
    w, _ = softmargin.soft_weights([likelihood], 3)
    assert w.sum() == pytest.approx(3)
    assert (w >= 0).all()
    assert (w <= 1 + 1e-12).all()
    assert likelihood.at(w)[0] > likelihood.at(np.full(8, 3 / 8))[0]


# All of them


@pytest.mark.parametrize("name", READING)
def test_scale_and_threads_do_not_show(name):
    x, codes, tokens = case(5)
    found = ranked(name, x, codes, tokens)
    scaled = ranked(name, 1024 * x, 1024 * codes, tokens)
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(2, before))
    other = ranked(name, x, codes, tokens)
    torch.set_num_threads(before)
    if isinstance(found, Rotation):
        np.testing.assert_allclose(found.matrix, scaled.matrix, atol=1e-9)
        assert found.matrix.tobytes() == other.matrix.tobytes()
    else:
        assert order(found) == order(scaled) == order(other)


@pytest.mark.parametrize("name", READING)
def test_useful_dimensions_come_before_noise(name):
    """Two dimensions hold the codes apart; the others are noise of the same size that no code follows."""
    rng = np.random.default_rng(0)
    codes = np.zeros((16, 6), np.float32)
    codes[:, 1:3] = rng.standard_normal((16, 2))
    x = codes[rng.integers(0, 16, 400)] + 0.05 * rng.standard_normal((400, 6)).astype(np.float32)
    x[:, [0, 3, 4, 5]] = rng.standard_normal((400, 4))
    found = ranked(name, x, codes, nearest(x, codes))
    if isinstance(found, Rotation):
        assert np.square(found.matrix[1:3, :2]).sum() > 1.99
    else:
        assert set(order(found)[:2]) == {1, 2}


@pytest.mark.parametrize("name", ["agreement", "softmargin"])
def test_resampled_rows_are_ranked_too(name):
    x, codes, tokens = case(n=90)
    about = known(name, x, codes, tokens, (30, 60))
    found = CRITERIA[name].maths.draws([about], 1)
    assert len(found) == 5
    assert all(sorted(order(each)) == list(range(5)) for each in found)
    times = np.random.default_rng(1).multinomial(3, np.full(3, 1 / 3), size=5)[0]
    assert len(total(rows.redrawn(about, 5, 1)[0].streams[0], rows.merge_rows).x) == 30 * times.sum() == 90


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("most", [4, 40])
def test_the_cost_of_a_dimension_is_its_part_of_the_distance(dot, most):
    x, codes, tokens = case(0, count=40)
    found = rows.contest(known("agreement", x, codes, tokens, metric="dot" if dot else "euclidean"), 60, most)
    taken = np.tile(np.arange(40), (60, 1)) if found.candidates is None else found.candidates.numpy()
    for d in range(5):
        own = x[:, d, None]
        expected = -own * codes[taken, d] if dot else (own - codes[taken, d]) ** 2
        np.testing.assert_allclose(found.cost(d).expand(60, most).numpy(), expected, rtol=1e-6)
