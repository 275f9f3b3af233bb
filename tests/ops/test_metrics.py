"""Block sums, intervals, usage and probes against plain formulas on all rows at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.spatial.distance import jensenshannon

from toc_cli.errors import InputError
from toc_cli.ops import bootstrap, metrics, probe, usage
from toc_cli.ops.blocks import grid
from toc_cli.ops.quantiser import quantiser

ZERO = np.zeros(3)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observe(quant, full, x, shift):
    """Sums of both quantisers, and the spread, over the grid of x."""
    layout = grid(len(x))
    ours, theirs, spread = [], [], []
    for index in range(layout.blocks):
        rows = x[slice(*layout.bounds(index))]
        before, after, target = full.lookup(rows), quant.lookup(rows), full.target(rows)
        ours.append(metrics.block_sums(quant, after, before.tokens, target))
        theirs.append(metrics.block_sums(full, before, before.tokens, target))
        spread.append(metrics.block_spread(target, shift))
    return metrics.stack(ours), metrics.stack(theirs), metrics.stack(spread)


@pytest.mark.parametrize("rows", [1, 16, 17, 1000])
def test_block_sums_give_the_metrics_of_all_rows(rows):
    books = [draw(0, 2, 12, 5), draw(1, 2, 9, 5) / 2]
    full = quantiser(books, residual=True)
    kept = torch.tensor([[[0, 1, 4], [0, 2, 3]]])
    quant = full.pruned(kept, full.mean_fill([np.ones((2, 12)), np.ones((2, 9))]))
    x = draw(2, rows, 10) + 3
    ours, theirs, spread = observe(quant, full, x, np.full(10, 3.0))
    found = metrics.measure(ours, full=theirs, spread=spread)
    before, after = full.tokens(x), quant.tokens(x)
    error = ((x.double() - quant.vectors(after)) ** 2).sum(1).mean()
    original = ((x.double() - full.vectors(before)) ** 2).sum(1).mean()
    power = ((x.double() - x.double().mean(0)) ** 2).sum(1).mean()
    assert found["token_agreement"][0] == pytest.approx(float((before == after).double().mean()))
    assert found["distortion"][0] == pytest.approx(float(error))
    assert found["excess_distortion"][0] == pytest.approx(float(error / original - 1))
    if rows > 1:
        assert found["snr_db"][0] == pytest.approx(10 * math.log10(power / error))
    first = metrics.measure(ours, full=theirs, level=0)
    assert first["token_agreement"][0] == pytest.approx(float((before == after)[:, 0].double().mean()))
    partial = next(iter(quant.partial_vectors(after)))
    assert first["distortion"][0] == pytest.approx(float(((x.double() - partial) ** 2).sum(1).mean()))


def test_the_unpruned_quantiser_agrees_with_itself():
    full = quantiser([draw(0, 1, 8, 3)])
    ours, theirs, _ = observe(full, full, draw(1, 50, 3), np.zeros(3))
    found = metrics.measure(ours, full=theirs)
    assert found["token_agreement"] == 1
    assert found["excess_distortion"] == 0


def test_logits_have_no_distortion_and_a_perfect_one_no_excess():
    full = quantiser([draw(0, 1, 8, 3)])
    found = full.lookup(full.levels[0].codes[0].double())
    sums = metrics.block_sums(full, found, found.tokens, None)
    assert np.isnan(metrics.measure(sums, full=sums)["distortion"])
    exact = metrics.block_sums(full, found, found.tokens, full.levels[0].codes[0].double())
    assert np.isnan(metrics.measure(exact, full=exact)["excess_distortion"])


def test_a_resampled_statistic_is_the_statistic_of_the_resampled_rows():
    full = quantiser([draw(0, 1, 8, 3)])
    quant = full.pruned(torch.tensor([[[0, 2]]]))
    x = draw(1, 90, 3)
    ours, theirs, spread = observe(quant, full, x, np.zeros(3))
    layout = grid(90)
    weights = bootstrap.resample(layout.blocks, seed=3, resamples=5)
    many = metrics.measure(ours, full=theirs, spread=spread, weights=weights)
    for r, times in enumerate(weights):
        pieces = [x[slice(*layout.bounds(b))] for b, n in enumerate(times) for _ in range(int(n))]
        again, others, wide = (
            metrics.stack(parts) for parts in zip(*(observe_block(quant, full, piece) for piece in pieces), strict=True)
        )
        for name, value in metrics.measure(again, full=others, spread=wide).items():
            assert many[name][r] == pytest.approx(value[0]), name


@given(st.integers(1, 60), st.sets(st.integers(1, 59)), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_blocks_summed_together_are_the_bits_of_each_alone(rows, cuts, seed):
    full = quantiser([draw(seed, 2, 8, 3), draw(seed + 1, 2, 8, 3)], residual=True)
    quant = full.pruned(torch.tensor([[[0, 2], [1, 2]]]))
    x = draw(seed + 2, rows, 6)
    starts = np.array([0, *sorted(cut for cut in cuts if cut < rows)])
    before, after, target = full.lookup(x), quant.lookup(x), full.target(x)
    together = metrics.block_sums(quant, after, before.tokens, target, starts)
    spread = metrics.block_spread(target, np.ones(6), starts)
    ends = [*starts[1:], rows]
    alone = [observe_block(quant, full, x[a:b], np.ones(6)) for a, b in zip(starts, ends, strict=True)]
    for field in ("rows", "agree", "near", "error"):
        expected = np.concatenate([getattr(each[0], field) for each in alone])
        assert getattr(together, field).tobytes() == expected.tobytes(), field
    for field in ("first", "second"):
        expected = np.concatenate([getattr(each[2], field) for each in alone])
        assert getattr(spread, field).tobytes() == expected.tobytes(), field


def observe_block(quant, full, rows, shift=ZERO):
    before, after, target = full.lookup(rows), quant.lookup(rows), full.target(rows)
    return (
        metrics.block_sums(quant, after, before.tokens, target),
        metrics.block_sums(full, before, before.tokens, target),
        metrics.block_spread(target, shift),
    )


# Bootstrap


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(150):
        x = rng.standard_normal(100)
        values = bootstrap.totals(x, bootstrap.resample(100, seed=trial)) / 100
        low, high = bootstrap.interval(values)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 150 <= 0.99


def test_resamples_are_seeded_and_complete():
    a, b = bootstrap.resample(7, seed=1), bootstrap.resample(7, seed=1)
    assert (a == b).all()
    assert (a.sum(axis=1) == 7).all()
    assert (a != bootstrap.resample(7, seed=2)).any()


def test_an_undefined_interval_is_none_and_a_centred_one_holds_its_centre():
    assert bootstrap.interval(np.array([1.0, np.nan])) is None
    low, high = bootstrap.interval(np.arange(100.0), centre=10.0)
    assert (low + high) / 2 == pytest.approx(10)


def test_an_interval_leaves_out_one_in_forty_at_either_end():
    low, high = bootstrap.interval(np.arange(1001.0))
    assert (low, high) == pytest.approx((25, 975))


def test_a_plug_in_estimate_is_moved_by_what_resampling_takes_from_it():
    """Perplexity of resamples is too low; its interval lies around the estimate, not around their mean."""
    tokens = torch.arange(64).repeat(2)[:, None, None]
    weights = bootstrap.resample(128, 3, 400)
    values = usage.resampled_usage(tokens, np.arange(128), [64], weights)["perplexity"]
    assert values.mean() < 50
    low, high = bootstrap.interval(values, centre=64.0)
    assert low < 64 < high
    assert bootstrap.interval(values)[1] < 60


# Usage


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(2, 9)), elements=st.integers(0, 6)))
def test_usage_is_what_counting_says(counts):
    counts[:, 0] += 1
    found = usage.usage([counts])
    assert found["used_codes"] + found["dead_codes"] == counts.size
    assert found["used_codes"] == sum(n > 0 for row in counts for n in row)
    nats = [-math.fsum(n / row.sum() * math.log(n / row.sum()) for n in row if n) for row in counts]
    assert found["perplexity"] == pytest.approx(math.exp(math.fsum(nats) / len(nats)))
    assert found["entropy"] == pytest.approx(math.fsum(nats) / len(nats) / math.log(counts.shape[1]))
    assert 0 <= found["entropy"] <= 1 + 1e-12


def test_tokens_are_counted_per_level_and_head():
    tokens = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [2, 3]]])
    first, second = usage.count_tokens(tokens, [2, 4])
    assert first.tolist() == [[2, 0], [1, 1]]
    assert second.tolist() == [[0, 0, 2, 0], [0, 0, 1, 1]]


def test_one_code_has_no_entropy():
    assert usage.usage([np.array([[5]])]) == {
        "used_codes": 1,
        "dead_codes": 0,
        "perplexity": 1.0,
        "entropy": 0.0,
        "used_if_uniform": 1.0,
    }


def test_used_if_uniform_is_what_uniform_draws_use():
    rng = np.random.default_rng(0)
    seen = [len(np.unique(rng.integers(0, 50, size=80))) for _ in range(2000)]
    assert usage.used_if_uniform(50, 80) == pytest.approx(np.mean(seen), rel=0.01)
    assert usage.is_rarefied(499, [50])
    assert not usage.is_rarefied(500, [50, 20])


def test_resampled_usage_counts_each_resample():
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 6, size=(64, 2, 1)))
    block = np.arange(64) // 16
    weights = bootstrap.resample(4, seed=0, resamples=9)
    found = usage.resampled_usage(tokens, block, [6, 6], weights)
    for r, times in enumerate(weights):
        rows = np.repeat(np.arange(64), times[block].astype(int))
        expected = usage.usage(usage.count_tokens(tokens[rows], [6, 6]))
        assert found["perplexity"][r] == pytest.approx(expected["perplexity"])
        assert found["entropy"][r] == pytest.approx(expected["entropy"])


def test_js_and_matches():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 9, size=(2, 2, 7))
    expected = np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in zip(a, b, strict=True)])
    assert usage.js_bits([a], [b]) == pytest.approx(expected)
    assert usage.js_bits([a], [a]) == pytest.approx(0, abs=1e-12)
    assert usage.js_bits([np.array([[4, 0]])], [np.array([[0, 1]])]) == pytest.approx(1)
    tokens = torch.tensor([[[0], [1]], [[2], [2]]])
    assert usage.matches(tokens, torch.tensor([[[0], [0]], [[2], [2]]])) == 1.5


# Probe


def test_the_probe_is_ridge_regression():
    x = draw(0, 200, 6).double() * torch.tensor([1, 10, 0.1, 1, 1, 0]) + 100
    labels = (x[:, 0] + draw(1, 200).double() > 100).long().numpy() + 2 * (draw(2, 200) > 0.8).long().numpy()
    blocks = [(x[:70], labels[:70]), (x[70:], labels[70:])]
    found = probe.fit(blocks)
    flat = x.numpy()[:, :5]
    scaled = (flat - flat.mean(0)) / flat.std(0)
    targets = 2.0 * (labels[:, None] == np.unique(labels)) - 1
    weight = np.linalg.solve(scaled.T @ scaled + probe.RIDGE * 200 * np.eye(5), scaled.T @ (targets - targets.mean(0)))
    expected = scaled @ weight + targets.mean(0)
    ours = x.numpy() @ found.weight + found.bias
    np.testing.assert_allclose(ours, expected, atol=1e-8)
    assert (found.predict(x) == np.unique(labels)[expected.argmax(1)]).all()


def test_the_penalty_of_the_probe_is_a_thousandth_of_the_rows():
    """One standardised column with the label in it: the weight is 1 / (1 + ridge)."""
    x = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
    found = probe.fit([(x, (x[:, 0] > 0).long().numpy())])
    assert found.weight[0, 1] == pytest.approx(1 / 1.001)


def test_the_probe_learns_what_is_there_and_reports_it_per_class():
    codes = draw(0, 12, 4)
    tokens = torch.randint(0, 12, (500,), generator=torch.Generator().manual_seed(1))
    labels = (codes[:, 0] > 0).long().numpy()[tokens] * 7 - 3
    found = probe.fit([(codes[tokens], labels)])
    correct = found.predict(codes[tokens]) == labels
    assert correct.mean() > 0.9
    assert set(probe.accuracy(correct, labels)) == {-3, 4}
    with pytest.raises(InputError, match="1 class"):
        probe.fit([(codes, np.zeros(12, dtype=np.int64))])


# Between unit vectors


@pytest.mark.parametrize("unit", [{}, {"unit_vectors": True}, {"unit_vectors": True, "stored_unit": True}])
@pytest.mark.parametrize("heads", [1, 3])
@given(exponent=st.integers(-6, 6), seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_under_a_cosine_lookup_no_figure_follows_the_length_of_the_features(unit, heads, exponent, seed):
    book = torch.nn.functional.normalize(draw(seed, heads, 9, 4), dim=-1) * (1 if unit.get("stored_unit") else 5)
    full = quantiser([book], metric="cosine", **unit)
    quant = full.pruned(torch.tensor([[[0, 2]]]).expand(1, heads, 2))
    x = draw(seed + 1, 40, 4 * heads)
    scaled = x * 2.0**exponent  # exact, and the first head by more
    scaled[:, :4] *= 8
    one, other = figures_of(quant, full, x), figures_of(quant, full, scaled)
    for name, value in one.items():
        assert other[name] == pytest.approx(value), name


def figures_of(quant, full, x):
    before, after, target = full.lookup(x), quant.lookup(x), full.target(x)
    ours, theirs = (
        metrics.block_sums(form, found, before.tokens, target) for form, found in ((quant, after), (full, before))
    )
    return metrics.measure(ours, full=theirs, spread=metrics.block_spread(target, target[0].numpy()))


def test_a_cosine_distortion_is_twice_one_minus_the_cosine_summed_over_heads():
    full = quantiser([draw(0, 2, 9, 4) * 3], metric="cosine")
    quant = full.pruned(torch.tensor([[[0, 2], [1, 3]]]))
    x = draw(1, 30, 8) * 7
    tokens = quant.tokens(x)
    slow = 0.0
    for row in range(30):
        for head, kept in enumerate([[0, 2], [1, 3]]):
            code, z = (
                full.levels[0].codes[head, tokens[row, 0, head]].double(),
                x[row, 4 * head : 4 * head + 4].double(),
            )
            masked = torch.zeros(4).double()
            masked[kept] = code[kept]
            slow += float(2 - 2 * (z @ masked) / (z.norm() * masked.norm()))
    found = metrics.block_sums(quant, quant.lookup(x), tokens, full.target(x))
    assert found.error.sum() == pytest.approx(slow)


def test_samples_of_one_name_are_drawn_alike_and_each_draw_is_whole():
    drawn = bootstrap.resample_together([("pair", 4), ("alone", 3), ("pair", 4)], 5, 40)
    assert drawn.shape == (40, 11)
    assert (drawn[:, :4] == drawn[:, 7:]).all()
    assert (drawn[:, :4].sum(axis=1) == 4).all()
    assert (drawn[:, 4:7].sum(axis=1) == 3).all()
    assert (drawn > 0).any(axis=0).all()


def test_few_blocks_widen_the_tails_by_student_and_by_the_lost_degree_of_freedom():
    values = np.linspace(0, 1, 100_001)
    for blocks in (2, 5, 30):
        tail = stats.norm.cdf(np.sqrt(blocks / (blocks - 1)) * stats.t(blocks - 1).ppf(0.025))
        assert bootstrap.interval(values, blocks=blocks) == pytest.approx((tail, 1 - tail), abs=1e-9)


def test_entropy_of_shares_and_of_nothing():
    assert usage.entropy(np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert usage.entropy(np.zeros(3)) == 0
    assert usage.entropy(np.array([1, 0])) == 0


def test_one_table_in_bits():
    found = usage.table_usage(np.array([2, 2, 0, 0]))
    expected = {"codes": 4, "used_codes": 2, "perplexity": 2.0, "entropy_bits": 1.0, "bits_per_token": 2.0}
    assert found == pytest.approx(expected)


def test_prefixes_of_ids_collide():
    first, second = usage.collisions(np.array([[0, 1], [0, 2], [1, 1], [0, 1]]))
    assert first == {"length": 1, "distinct": 2, "largest": 3, "alone": 0.25, "collision_rate": 0.5}
    assert second == {"length": 2, "distinct": 3, "largest": 2, "alone": 0.5, "collision_rate": 0.25}


def test_a_single_code_is_used_once_anything_is():
    assert [usage.used_if_uniform(1, rows) for rows in (0, 1, 9)] == [0, 1, 1]
    assert usage.is_rarefied(79, [4, 8])
    assert not usage.is_rarefied(80, [4, 8])


@given(st.integers(0, 1000), st.integers(10, 24), st.booleans())
@settings(max_examples=25, deadline=None)
def test_studentised_interval_is_that_of_a_loop_over_resamples(seed, blocks, paired):
    rng = np.random.default_rng(seed)
    counts = (blocks, blocks if paired else 2 * blocks)
    strata = list(zip(("a", "a") if paired else ("a", "b"), counts, strict=True))
    above, below = rng.gamma(4, size=sum(counts)), rng.uniform(1, 2, size=sum(counts))
    weights = bootstrap.resample_together(strata, seed, 60)

    def ratio_and_error(times):
        """Of units drawn so often: every block written out as often as it is drawn, per sample or (paired) per pair."""
        drawn = [np.repeat(np.arange(len(part)), part.astype(int)) for part in np.split(times, [blocks])]
        halves = [(np.split(above, [blocks])[at][drawn[at]], np.split(below, [blocks])[at][drawn[at]]) for at in (0, 1)]
        ratio = sum(half[0].sum() for half in halves) / sum(half[1].sum() for half in halves)
        rests = [half[0] - ratio * half[1] for half in halves]
        units = [rests[0] + rests[1]] if paired else rests
        variance = sum(len(unit) * np.var(unit, ddof=1) for unit in units)
        return ratio, math.sqrt(variance) / sum(half[1].sum() for half in halves)

    ratio, error = ratio_and_error(np.ones(sum(counts)))
    each = np.array([ratio_and_error(times) for times in weights])
    low, high = np.quantile((each[:, 0] - ratio) / each[:, 1], [0.025, 0.975])
    found = bootstrap.studentised(above, below, weights, strata)
    np.testing.assert_allclose(found, [ratio - high * error, ratio - low * error], rtol=1e-9, atol=1e-12)


def test_no_studentised_interval_where_resamples_have_no_spread():
    rare = np.eye(12)[0]  # one block of twelve: every third resample misses it
    weights = bootstrap.resample(12, 0, 200)
    ones, twelve = np.ones(12), [("x", 12)]
    assert bootstrap.studentised(rare, ones, weights, twelve) is None
    assert bootstrap.studentised(ones, ones, weights, twelve) is None
    assert bootstrap.studentised(np.full(12, np.nan), ones, weights, twelve) is None
    assert bootstrap.studentised(np.arange(12.0), 0 * ones, weights, twelve) is None
    assert bootstrap.studentised(np.arange(12.0), ones, weights, twelve) is not None
    outlier = np.where(np.arange(12) == 3, 1e5, np.arange(12.0))
    assert (
        bootstrap.studentised(outlier, ones, weights, twelve) is None
    )  # it reached a thousand times beyond the outlier
    nine = bootstrap.resample(9, 0, 200)
    assert bootstrap.studentised(np.arange(9.0), np.ones(9), nine, [("x", 9)]) is None


def test_intervals_stay_within_what_a_figure_can_be():
    blocks = 12
    missed = 6 * 0.75 ** np.arange(blocks)
    agree, error = (10 - missed)[:, None], np.arange(1.0, 13)[:, None]
    sums = metrics.Sums(np.full(blocks, 10), agree, np.full((blocks, 1), np.nan), error)
    found = metrics.ratio_intervals(sums, bootstrap.resample(blocks, 0), [("x", blocks)], full=sums, level=None)
    assert "near_tie_rate" not in found  # not asked for
    assert "excess_distortion" not in found  # without any spread
    low, high = found["token_agreement"]
    assert 0 <= low < sums.agree.sum() / 120 < high <= 1
    low, high = found["distortion"]
    assert 0 <= low < 0.65 < high
