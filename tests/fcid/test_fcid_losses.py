"""Each loss against its equation as slow loops, and what holds of it for any input."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toc_cli.fcid.comm import Comm
from toc_cli.fcid.losses.club import GuessNet, club, club_over_features, loglikelihood, other_clips
from toc_cli.fcid.losses.cmcm import code_scores, published_cmcm, symmetric_cmcm
from toc_cli.fcid.losses.commitment import commitment
from toc_cli.fcid.losses.cpc import cpc, cpc_accuracy
from toc_cli.fcid.losses.infonce import clip_numbers, infonce
from toc_cli.fcid.losses.reconstruction import reconstruction

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31)


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flags(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.7


def same(actual: Tensor, expected: float) -> None:
    assert float(actual) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(seeds, sizes, sizes, sizes)
def test_reconstruction(seed: int, b: int, t: int, d: int) -> None:
    x, y, mask = rand(seed, b, t, d), rand(seed + 1, b, t, d), flags(seed, b, t)
    total, count = 0.0, 0
    for i in range(b):
        for j in range(t):
            if mask[i, j]:
                total += float(((x[i, j] - y[i, j]) ** 2).mean())
                count += 1
    same(reconstruction(x, y, mask, Comm()), total / max(count, 1))
    same(reconstruction(x, y, None, Comm()), float(((x - y) ** 2).mean()))


@settings(deadline=None, max_examples=25)
@given(seeds, sizes, sizes)
def test_commitment(seed: int, n: int, d: int) -> None:
    x, own, first, second = (rand(seed + i, n, d) for i in range(4))
    weight, there = flags(seed, n), flags(seed + 9, n)

    def mse(a: Tensor, b: Tensor, rows: list[int]) -> float:
        return sum(float(((a[i] - b[i]) ** 2).mean()) for i in rows) / max(len(rows), 1)

    rows = [i for i in range(n) if weight[i]]
    both = [i for i in rows if there[i]]
    expected = 0.25 * (2 * mse(x, own, rows) + 0.5 * mse(x, first, both) + 0.5 * mse(x, second, rows))
    same(commitment(x, own, [(first, there), (second, None)], weight, Comm()), expected)


def test_commitment_moves_features_not_codes() -> None:
    x, own = rand(0, 4, 3).requires_grad_(), rand(1, 4, 3).requires_grad_()
    commitment(x, own, [(own, None)], None, Comm()).backward()
    assert x.grad is not None
    assert own.grad is None


def infonce_one_way(query: Tensor, key: Tensor, temperature: float, alike: Tensor, there: list[int]) -> Tensor:
    total = (query.sum() + key.sum()) * 0
    for i in there:
        cos = {j: query[i] @ key[j] / (query[i].norm() * key[j].norm()) / temperature for j in there}
        others = [cos[j] for j in there if j == i or alike[i] != alike[j]]
        total = total - (cos[i] - torch.stack(others).logsumexp(0))
    return total / max(len(there), 1)


@settings(deadline=None, max_examples=40)
@given(seeds, sizes, sizes, st.sampled_from((0.1, 1.0, 0.002)), st.booleans(), st.integers(1, 20))
def test_infonce_and_its_gradients(seed: int, n: int, d: int, temperature: float, both: bool, tile: int) -> None:
    """In tiles of any size, and by softmax where the temperature is too low for one exponential."""
    query, key, rows = (rand(seed, n, d).requires_grad_(), rand(seed + 1, n, d).requires_grad_(), flags(seed, n))
    alike = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    there = [i for i in range(n) if rows[i]]
    expected = infonce_one_way(query, key, temperature, alike, there)
    if both:
        expected = (expected + infonce_one_way(key, query, temperature, alike, there)) / 2
    with mock.patch("toc_cli.fcid.losses.infonce.TILE", tile):
        actual = infonce(query, key, temperature, alike=alike, rows=rows, both_ways=both)
        gradients = torch.autograd.grad(actual, (query, key))
    same(actual.detach(), float(expected.detach()))
    for gradient, right in zip(gradients, torch.autograd.grad(expected, (query, key)), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-8, atol=1e-10 / temperature)


@pytest.mark.parametrize("both", [False, True])
def test_infonce_in_float32_has_the_gradients_of_the_plain_formula(both: bool) -> None:
    """1,500 rows in three tiles: within 9e-7 of the largest gradient by float64; bfloat16 rows count in float32."""
    x, clip = rand(3, 2, 1500, 64), clip_numbers(150, 10, torch.device("cpu"))
    x[1] += x[0]
    wide, narrow = x.clone().requires_grad_(), x.float().requires_grad_()
    cos = torch.nn.functional.normalize(wide, dim=-1)
    scores = (cos[0] @ cos[1].T / 0.1).masked_fill((clip[:, None] == clip) & ~torch.eye(1500, dtype=torch.bool), -1e300)
    plain = -scores.log_softmax(1).diagonal().mean()
    plain = (plain - scores.log_softmax(0).diagonal().mean()) / 2 if both else plain
    plain.backward()
    with mock.patch("toc_cli.fcid.losses.infonce.TILE", 512 * 1500):
        loss = infonce(narrow[0], narrow[1], alike=clip, both_ways=both)
        loss.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert wide.grad is not None
    assert narrow.grad is not None
    assert float((narrow.grad - wide.grad).abs().max() / wide.grad.abs().max()) < 9e-7
    half = x.bfloat16()
    assert torch.equal(
        infonce(half[0], half[1], both_ways=both), infonce(half[0].float(), half[1].float(), both_ways=both)
    )


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 5), sizes)
def test_cmcm(seed: int, b: int, k: int) -> None:
    p, q = rand(seed, b, k).softmax(1), rand(seed + 1, b, k).softmax(1)
    scores = code_scores(p, q)
    for i in range(b):
        for j in range(b):
            expected = sum(
                float(p[i, c]) * math.log(float(q[j, c]) + 1e-10) + float(q[i, c]) * math.log(float(p[j, c]) + 1e-10)
                for c in range(k)
            )
            same(scores[i, j], expected)
    shift = max(float(-s) for s in scores.flatten())
    rows = [math.exp(float(scores[i, i]) + shift) for i in range(b)]
    sums = [sum(math.exp(float(s) + shift) for s in scores[i]) + 1e-5 for i in range(b)]
    same(published_cmcm(scores), -sum(math.log(r / s) for r, s in zip(rows, sums, strict=True)) / b)
    halves = [
        sum(math.log(sum(math.exp(float(s)) for s in table[i])) - float(table[i, i]) for i in range(b)) / b
        for table in (scores, scores.T)
    ]
    same(symmetric_cmcm(scores), sum(halves) / 2)


def test_symmetric_cmcm_is_finite_where_the_published_one_overflows() -> None:
    scores = torch.tensor([[0.0, -2000.0], [-2000.0, 0.0]], dtype=torch.float64)
    assert not published_cmcm(scores).isfinite()
    assert float(symmetric_cmcm(scores)) == 0
    assert float(symmetric_cmcm(scores, torch.tensor([True, False]))) == 0


@settings(deadline=None, max_examples=25)
@given(seeds, sizes, sizes, sizes)
def test_club(seed: int, b: int, t: int, d: int) -> None:
    mu, logvar, y, other = (rand(seed + i, b, t, d) for i in range(4))
    clips, seconds = flags(seed, b), flags(seed + 5, b, t)

    def mean(values: list[float]) -> float:
        return sum(values) / max(len(values), 1)

    total, count = 0.0, 0
    for i in range(b):
        if not clips[i]:
            continue
        count += 1
        there = [j for j in range(t) if seconds[i, j]]
        for c in range(d):
            gap = mean([float((mu[i, j, c] - other[i, j, c]) ** 2 - (mu[i, j, c] - y[i, j, c]) ** 2) for j in there])
            total += gap / math.exp(mean([float(logvar[i, j, c]) for j in there])) / 2
    same(club(mu, logvar, y, other, clips, seconds), total / max(count, 1))
    flat = [v[:, 0] for v in (mu, logvar, y, other)]
    expected = sum(
        float(((flat[0][i] - flat[3][i]) ** 2 - (flat[0][i] - flat[2][i]) ** 2).mean() / flat[1][i].mean().exp()) / 2
        for i in range(b)
    )
    same(club_over_features(*flat), expected)


def test_club_compares_with_another_clip_only_where_that_one_has_seconds() -> None:
    """The negative runs over the seconds of both clips, the positive over the clip's own."""
    mu, logvar = torch.zeros(1, 3, 1, dtype=torch.float64), torch.zeros(1, 3, 1, dtype=torch.float64)
    y, other = torch.tensor([[[1.0], [2], [9]]]).double(), torch.tensor([[[3.0], [100], [5]]]).double()
    seconds, others = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]])
    same(club(mu, logvar, y, other, None, seconds, others), (9 - (1 + 4) / 2) / 2)
    same(club(mu, logvar, y, other, None, seconds, None), ((9 + 10000) / 2 - (1 + 4) / 2) / 2)


def test_cmcm_of_clips_with_both_modalities_knows_no_other() -> None:
    """Neither as a row nor as a column: the loss is that of the smaller table."""
    scores, both = rand(3, 4, 4), torch.tensor([True, False, True, True])
    same(symmetric_cmcm(scores, both), float(symmetric_cmcm(scores[[0, 2, 3]][:, [0, 2, 3]])))
    moved = scores.clone()
    moved[1], moved[:, 1] = 50.0, -50.0
    same(symmetric_cmcm(moved, both), float(symmetric_cmcm(scores, both)))


@settings(deadline=None, max_examples=25)
@given(seeds, sizes, sizes)
def test_loglikelihood(seed: int, n: int, d: int) -> None:
    mu, logvar, y = (rand(seed + i, n, d) for i in range(3))
    for i in range(n):
        terms = [
            -float((mu[i, c] - y[i, c]) ** 2) / math.exp(float(logvar[i, c])) - float(logvar[i, c]) for c in range(d)
        ]
        same(loglikelihood(mu, logvar, y)[i], sum(terms) / 2)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 12))
def test_other_clips_are_others_that_are_there(seed: int, b: int) -> None:
    there = flags(seed, b)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    other = other_clips(order, there)
    for i in range(b):
        alone = not there[i] or int(there.sum()) == 1
        assert (int(other[i]) == i) == alone
        assert alone or there[other[i]]
    assert sorted(other.tolist()) == list(range(b))


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 4), st.integers(3, 6), st.integers(1, 2))
def test_cpc(seed: int, b: int, t: int, steps: int) -> None:
    x = [rand(seed + m, b, t, 3) for m in range(2)]
    predictions = [rand(seed + 2 + m, b, t, steps, 3) for m in range(2)]
    seconds = [flags(seed + m, b, t) for m in range(2)]
    anchors = list(range(t - steps))
    total = 0.0
    for i in range(2):
        for j in range(2):
            values = []
            for a in anchors:
                for s in range(steps):
                    there = [n for n in range(b) if seconds[i][n, a + 1 + s] and seconds[j][n, a]]
                    for n in there:
                        scores = {m: float(x[i][n, a + 1 + s] @ predictions[j][m, a, s]) for m in there}
                        values.append(scores[n] - math.log(sum(math.exp(v) for v in scores.values())))
            total -= (0.1 if i == j else 1.0) * sum(values) / max(len(values), 1)
    same(cpc(x, predictions, torch.tensor(anchors), list(seconds)), total)


def test_cpc_accuracy_counts_the_clips_that_know_their_own_last_step() -> None:
    x = torch.zeros(4, 4, 4)
    x[:, 3] = torch.eye(4)
    predictions = torch.zeros(4, 4, 2, 4)
    predictions[:, 1, 1] = torch.eye(4)[[0, 2, 1, 3]]
    assert float(cpc_accuracy(x, predictions, 1)) == pytest.approx(1 / 2)


def test_cpc_counts_the_missing_of_either_side() -> None:
    x, predictions = [rand(0, 4, 3, 2)], [rand(1, 4, 3, 1, 2)]
    some = [torch.tensor([[1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]]).bool()]
    fewer = [side[[0, 1, 3]] for side in (x[0], predictions[0])]
    same(cpc(x, predictions, torch.tensor([0]), some), float(cpc(fewer[:1], fewer[1:], torch.tensor([0]), [None])))


@pytest.mark.parametrize("without", [0, 1])
def test_cpc_takes_a_modality_without_a_list_of_seconds_as_there_throughout(without: int) -> None:
    x, predictions = [rand(m, 4, 3, 2) for m in range(2)], [rand(2 + m, 4, 3, 1, 2) for m in range(2)]
    seconds: list[torch.Tensor | None] = [flags(1, 4, 3), flags(1, 4, 3)]
    seconds[without] = torch.ones(4, 3, dtype=torch.bool)
    expected = float(cpc(x, predictions, torch.tensor([0, 1]), seconds))
    seconds[without] = None
    same(cpc(x, predictions, torch.tensor([0, 1]), seconds), expected)


def test_a_guessing_net_is_half_as_wide_inside() -> None:
    net = GuessNet(5, 7, 12)
    assert [layer.weight.shape for layer in (net.mu[0], net.logvar[6])] == [(6, 5), (7, 6)]
