"""Moments, criteria and selection against the double loops."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from criteria import score
from toc_cli.errors import InputError, UsageError
from toc_cli.ops import blocks, moments, scores, selection
from toc_cli.ops.criteria.base import Known
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.scores import check_codes

VALUES = st.floats(-1e3, 1e3, width=32)


def codebooks(least_codes=2):
    shape = st.tuples(st.integers(least_codes, 12), st.integers(1, 5))
    return shape.flatmap(lambda s: hnp.arrays(np.float32, s, elements=VALUES))


def terms(codes):
    return scores.similarity_and_variance(moments.moments(codes))


def close(a, b, scale):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * (1 + scale))


@settings(deadline=None)
@given(codebooks(), st.tuples(st.floats(0, 2), st.floats(0, 2)))
def test_closed_form_is_the_double_loop(codes, weights):
    found = score("toc", codes, weights=weights)
    square = float(np.square(codes.astype(np.float64)).max())
    close(terms(codes)[0], reference.similarity(codes), square)
    close(terms(codes)[1], reference.variance(codes), square)
    close(found.score, reference.toc_score(codes, weights), square)


@settings(deadline=None)
@given(codebooks(), st.data())
def test_usage_weighted_closed_form_is_the_pair_loop(codes, data):
    usage = data.draw(hnp.arrays(np.int64, len(codes), elements=st.integers(0, 50)))
    usage[:2] += 1
    p = usage / usage.sum()
    s, v = scores.usage_similarity_and_variance(codes, usage)
    square = float(np.square(codes.astype(np.float64)).max())
    close(s, reference.usage_similarity(codes.astype(float), p), square)
    close(v, reference.usage_variance(codes.astype(float), p), square)


@settings(deadline=None)
@given(codebooks())
def test_uniform_usage_is_toc(codes):
    s, v = scores.usage_similarity_and_variance(codes, np.full(len(codes), 7))
    square = float(np.square(codes.astype(np.float64)).max())
    close(s, terms(codes)[0], square)
    close(v, terms(codes)[1], square)


def test_a_large_mean_keeps_its_variance():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((5000, 3))
    v = terms(1e8 + noise)[1]
    np.testing.assert_allclose(v, (1e8 + noise - 1e8).var(axis=0, ddof=1), rtol=1e-8)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(2, 60), st.integers(1, 4)), elements=VALUES), st.data())
def test_any_split_of_the_stream_is_one_shot(x, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(x) - 1), max_size=6)))
    parts = np.split(x, cuts)
    state = blocks.total([moments.moments(part) for part in parts], moments.merge)
    square = float(np.square(x.astype(np.float64)).max())
    assert state.count == len(x)
    close(state.mean, x.astype(np.float64).mean(axis=0), square)
    close(moments.variance(state), x.astype(np.float64).var(axis=0, ddof=1), square)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.data())
def test_pair_and_cross_moments_are_the_covariance(rows, seed, data):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, rows, 3))
    a += 3 * rng.standard_normal(3)
    first, second = sorted((data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows))))
    parts = (slice(first), slice(first, second), slice(second, None))
    halves = [(a[s], b[s]) for s in parts if len(a[s])]
    cross = blocks.total([moments.cross_moments(*half) for half in halves], moments.merge_cross)
    pairs = blocks.total([moments.pair_moments(*half) for half in halves], moments.merge_pairs)
    expected = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0)) / rows
    np.testing.assert_allclose(moments.cross_covariance(cross), expected, atol=1e-12)
    np.testing.assert_allclose(pairs.co[0] / rows, np.diag(expected), atol=1e-12)
    if rows > 1:
        expected = [np.corrcoef(a[:, d], b[:, d])[0, 1] for d in range(3)]
        np.testing.assert_allclose(moments.correlation(pairs)[0], expected, atol=1e-9)


def test_moments_of_many_modalities_are_those_of_their_pairs():
    sides = np.random.default_rng(0).standard_normal((4, 50, 3)) + np.arange(4)[:, None, None]
    halves = [sides[:, :20], sides[:, 20:31], sides[:, 31:]]
    cross = blocks.total([moments.cross_moments(*half) for half in halves], moments.merge_cross)
    pairs = blocks.total([moments.pair_moments(*half) for half in halves], moments.merge_pairs)
    alone = [(a, b) for at, a in enumerate(sides) for b in sides[at + 1 :]]
    summed = sum(moments.cross_covariance(moments.cross_moments(a, b)) for a, b in alone)
    np.testing.assert_allclose(moments.cross_covariance(cross), summed, atol=1e-12)
    each = np.concatenate([moments.correlation(moments.pair_moments(a, b)) for a, b in alone])
    np.testing.assert_allclose(moments.correlation(pairs), each, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 5000), st.lists(st.integers(0, 700), max_size=20), st.integers(1, 40))
def test_the_grid_is_blind_to_chunks_and_ranks(rows, sizes, ranks):
    layout = blocks.grid(rows)
    x = np.arange(rows)[:, None]
    cuts = [c for c in np.cumsum(sizes) if c < rows]
    cut = [block[:, 0] for block in blocks.split(np.split(x, cuts), layout.block)]
    assert [len(block) for block in cut] == [stop - start for start, stop in map(layout.bounds, range(layout.blocks))]
    assert layout.blocks <= blocks.MOST_BLOCKS
    one = blocks.fold((block.tolist() for block in cut), list.__add__, layout.per_segment)
    many = []
    for rank in range(ranks):
        own = (cut[index].tolist() for index in layout.share(rank, ranks))
        many += blocks.fold(own, list.__add__, layout.per_segment)
    assert one == many


def test_moments_of_a_grid_are_the_same_bits_for_any_ranks():
    x = np.random.default_rng(1).standard_normal((3000, 7)).astype(np.float32)
    layout = blocks.grid(len(x))
    states = [moments.moments(x[slice(*layout.bounds(i))]) for i in range(layout.blocks)]
    results = []
    for ranks in (1, 2, 3, 7):
        segments = []
        for rank in range(ranks):
            own = (states[i] for i in layout.share(rank, ranks))
            segments += blocks.fold(own, moments.merge, layout.per_segment)
        results.append(blocks.total(segments, moments.merge))
    assert len({state.m2.tobytes() + state.mean.tobytes() for state in results}) == 1


def test_scores_do_not_depend_on_the_thread_count():
    codes = torch.randn(512, 96, generator=torch.Generator().manual_seed(0))
    usage = torch.arange(512)
    found = set()
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.add(score("toc", codes).score.tobytes() + score("usage-toc", codes, usage=usage).score.tobytes())
    torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_is_scored_in_float64(dtype):
    codes = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = reference.toc_score(codes.double().numpy())
    np.testing.assert_allclose(score("toc", codes).score, expected, rtol=1e-10)


def test_each_criterion_gives_what_its_name_says():
    rng = np.random.default_rng(3)
    codes = rng.standard_normal((40, 6))
    s, v = reference.similarity(codes), reference.variance(codes)
    np.testing.assert_allclose(score("variance", codes).score, v)
    np.testing.assert_allclose(score("similarity", codes).score, -s, atol=1e-12)
    x = rng.standard_normal((30, 6))
    found = score("features", codes, streams=[[moments.moments(x)]])
    np.testing.assert_allclose(found.score, reference.toc_score(x), atol=1e-12)
    a, b = rng.standard_normal((2, 30, 6))
    pairs = [[moments.pair_moments(a, b)], [moments.pair_moments(b, x)]]
    shared = [(np.corrcoef(a[:, d], b[:, d])[0, 1] + np.corrcoef(b[:, d], x[:, d])[0, 1]) / 2 for d in range(6)]
    np.testing.assert_allclose(score("xmodal", codes, streams=pairs).score, reference.toc_score(codes) + shared)
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    np.testing.assert_allclose(score("toc", codes, normalize="l2").score, reference.toc_score(unit), atol=1e-12)
    assert (score("random", codes, seed=1).score == score("random", codes, seed=1).score).all()
    assert (score("random", codes, seed=1).score != score("random", codes, seed=2).score).any()


def test_a_dead_dimension_outranks_a_negative_score_unless_toc_live():
    rng = np.random.default_rng(0)
    codes = np.abs(rng.standard_normal((50, 4))) + 1
    codes[:, 2] = 0
    toc, live = score("toc", codes), score("toc-live", codes)
    assert selection.rank(toc.score)[0] == 2
    assert selection.rank(live.score, live.last)[-1] == 2


def test_a_large_mean_drowns_the_variance():
    """What half the dimensions lose by a mean of 5 they do not lose by their variance."""
    codes = np.random.default_rng(0).standard_normal((100, 6))
    away = codes + np.array([5, 0, 0, 5, 0, 0])
    assert scores.drowned(score("toc", codes)) is None
    assert scores.drowned(score("toc", away)) > 10
    assert scores.drowned(score("usage-toc", away, usage=np.ones(100))) > 10
    assert scores.drowned(score("variance", away)) is None
    assert scores.drowned(score("toc", codes + 5, weights=(0.0, 1.0)), (0.0, 1.0)) is None
    flat = np.tile([[1.0, 2.0]], (4, 1))
    assert scores.drowned(score("toc", flat)) == np.inf


def test_dead_is_a_millionth_of_the_largest_variance():
    assert scores.dead_dimensions(np.array([1.0, 0.9e-6, 1.1e-6, 0.0])).tolist() == [False, True, False, True]


def test_toc_live_ranks_last_what_is_dead_at_every_level_alone():
    """Dimension 1 lives at the second level, dimension 2 nowhere."""
    first, second = (np.random.default_rng(seed).standard_normal((20, 4)) for seed in (0, 1))
    first[:, 1] = first[:, 2] = second[:, 2] = 0
    found = CRITERIA["toc-live"].rank([Known(first), Known(second)])
    assert found.last.tolist() == [False, False, True, False]
    assert selection.rank(found.score, found.last)[-1] == 2


def test_a_ratio_takes_what_is_marked_last_as_the_lowest():
    """With 1:1, half comes from the lower end, where a dead dimension of a high score stands."""
    score_, last = np.array([5.0, 4, 3, 2, 1]), np.array([False, True, False, False, False])
    found = selection.select(score_, 2, (1, 1), last)
    assert found.chosen.tolist() == [0, 1]
    assert selection.select(score_, 3, (0, 1), last).chosen.tolist() == [1, 4, 3]
    assert selection.select(score_, 2, (1, 1)).chosen.tolist() == [0, 4]


def test_levels_that_share_their_dimensions_share_the_mean():
    rng = np.random.default_rng(0)
    first, second = (score("toc-live", rng.standard_normal((20, 5))) for _ in range(2))
    both = scores.shared([first, second])
    np.testing.assert_allclose(both.score, (first.score + second.score) / 2)
    assert not both.last.any()


def test_what_a_criterion_lacks_is_an_error():
    codes = np.eye(3)
    for name, row in CRITERIA.items():
        if row.need != "codes":
            with pytest.raises(ValueError, match="missing"):
                score(name, codes)


def test_codes_that_cannot_be_scored():
    with pytest.raises(InputError, match="1 code of 4"):
        check_codes(np.ones((1, 4)))
    with pytest.raises(InputError, match="all zero"):
        check_codes(np.zeros((3, 4)))
    bad = np.ones((3, 4))
    bad[2, 1] = np.nan
    with pytest.raises(InputError, match="Code 2"):
        check_codes(bad)
    with pytest.raises(InputError, match="choose 1 of 3"):
        score("usage-toc", np.eye(3), usage=[0, 9, 0])


def test_a_large_codebook_is_scored_in_no_time():
    codes = torch.randn(16384, 256, generator=torch.Generator().manual_seed(0))
    score("toc", codes)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        score("toc", codes)
        times.append(time.perf_counter() - start)
    # contract: 50 ms on an idle machine; wide here, for loaded ones
    assert min(times) < 0.5


# Selection


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 20), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
    st.integers(0, 4),
    st.integers(0, 4),
    st.data(),
)
def test_selection_is_the_loop(values, most, least, data):
    if most + least == 0:
        most = 1
    count = data.draw(st.integers(1, len(values)))
    found = selection.select(values, count, (most, least))
    assert found.kept.tolist() == reference.select(values, count, most, least)
    assert sorted(found.chosen.tolist()) == found.kept.tolist()
    assert sorted(found.order.tolist()) == list(range(len(values)))
    plain = selection.select(values, count)
    assert plain.kept.tolist() == reference.select(values, count)
    assert plain.chosen.tolist() == plain.order[:count].tolist()


@pytest.mark.parametrize(
    ("text", "dim", "count"),
    [
        ("0.5", 256, 128),
        ("50%", 256, 128),
        ("50 %", 7, 4),
        ("0.5", 5, 3),
        ("0.145", 100, 15),
        ("0.001", 8, 1),
        ("1", 8, 1),
        ("1.0", 8, 8),
        ("1.", 8, 8),
        (".25", 8, 2),
        ("100%", 8, 8),
        ("8", 8, 8),
        (0.5, 9, 5),
        (3, 9, 3),
        (1.0, 9, 9),
        ("auto", 9, None),
    ],
)
def test_keep(text, dim, count):
    assert selection.parse_keep(text, dim) == count


@pytest.mark.parametrize(
    "text", ["0", "0.0", "0%", "-1", "1.5", "abc", "", "%", "150%", "9", "nan", "inf", "1e-1", "٣", "1" * 30, "0.5.1"]
)
def test_keep_that_cannot_be_meant(text):
    with pytest.raises(UsageError, match="--keep"):
        selection.parse_keep(text, 8)


def test_ratio():
    assert selection.parse_ratio("3:1") == (3, 1)
    assert selection.parse_ratio("3:0") == (3, 0)
    assert selection.parse_ratio("0:2") == (0, 2)
    for text in ("0:0", "3", "a:b", "-1:2", "1:2:3", ""):
        with pytest.raises(UsageError, match="--ratio"):
            selection.parse_ratio(text)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 1))
def test_a_share_keeps_round_half_up(dim, share):
    text = f"{share:.3f}"
    expected = max(1, (int(text.replace(".", "")) * dim * 2 + 1000) // 2000)
    assert selection.parse_keep(text, dim) == expected


def test_centred_sums_bear_a_large_offset():
    a, b = np.random.default_rng(0).standard_normal((2, 300, 3))
    expected = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0)) / len(a)
    far = [(a[s] + 1e6, b[s] + 1e6) for s in (slice(100), slice(100, None))]
    cross = blocks.total([moments.cross_moments(*half) for half in far], moments.merge_cross)
    np.testing.assert_allclose(moments.cross_covariance(cross), expected, atol=1e-8)
    np.testing.assert_allclose(cross.means, [(side + 1e6).mean(axis=0) for side in (a, b)], rtol=1e-14)


def test_a_constant_side_correlates_with_nothing():
    x = np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 5.0]])
    assert moments.correlation(moments.pair_moments(x, x[:, ::-1].copy())).tolist() == [[0.0, 0.0]]


def test_sizes_of_levels():
    assert selection.per_level("4,50%", 8) == 4
    assert selection.per_level("4,1", 8) == (4, 1)
    with pytest.raises(UsageError, match="auto is no size of one level"):
        selection.per_level("4,auto", 8)
    with pytest.raises(UsageError, match="more than the codebook's 8 dimensions"):
        selection.parse_keep("9", 8)
    with pytest.raises(UsageError, match="more than the codebook's 8 codes"):
        selection.parse_share("--keep-codes", "9", 8, "")


@pytest.mark.parametrize(("rows", "block"), [(1, 16), (8192, 16), (8193, 32), (2**21, 4096), (2**24, 4096)])
def test_a_block_is_the_smallest_power_of_two_that_gives_512(rows, block):
    assert blocks.grid(rows).block == block


@pytest.mark.parametrize(("number", "per_segment"), [(1, 1), (32, 1), (33, 2), (512, 16)])
def test_blocks_fill_at_most_32_segments(number, per_segment):
    assert blocks.grid(16 * number).per_segment == per_segment
