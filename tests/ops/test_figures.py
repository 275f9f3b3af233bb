"""The aggregates behind the pictures: exact where they are exact, bounded, and the same whatever the thread count."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.ops.figures import HEAT_CODES, MAP_CODES, POINTS, _clustered, even, figures, pca_map


def book(codes: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (codes, dim)) * np.geomspace(2, 0.1, dim) + 0.2, rng.integers(0, 50, codes)


def reference_cosine(codes: np.ndarray) -> np.ndarray:
    """Cosine of every pair, one at a time."""
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in codes] for a in codes])


def test_spectrum_is_the_svd_of_the_centred_codes() -> None:
    codes, usage = book(60, 20)
    found = figures(codes, codes[:, :8], usage)["spectrum"]
    for side, part in (("before", codes), ("after", codes[:, :8])):
        expected = np.linalg.svd(part - part.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(found[side]["value"], expected, rtol=1e-4)
        assert found[side]["rank"] == list(range(1, part.shape[1] + 1))


def test_cosine_bytes_decode_to_the_pairwise_cosines_in_one_order() -> None:
    codes, usage = book(40, 12)
    found = figures(codes, codes[:, :5], usage)["cosine"]
    upper = np.triu_indices(40, 1)
    for side, part in (("before", codes), ("after", codes[:, :5])):
        values = (np.frombuffer(base64.b64decode(found[side]), np.uint8).astype(float) - 128) / 127
        expected = reference_cosine(part)[upper]
        np.testing.assert_allclose(np.sort(values), np.sort(expected), atol=0.5 / 127 + 1e-12)
    # one order: the pair sums of both sides belong to the same permutation of the codes
    matrix = np.zeros((40, 40))
    matrix[upper] = (np.frombuffer(base64.b64decode(found["before"]), np.uint8).astype(float) - 128) / 127
    cosine = reference_cosine(codes)
    neighbours = np.diagonal(matrix, 1).mean()
    assert neighbours > cosine[upper].mean(), "neighbours in the clustering are more alike than two codes at random"


def test_rank_frequency_counts_are_exact_at_their_ranks() -> None:
    usage = np.array([0, 7, 3, 0, 100, 3])
    found = figures(np.eye(6), np.eye(6)[:, :2], usage, usage[::-1].copy())["rank_frequency"]
    assert found["ranks"] == [1, 2, 3, 4, 5, 6]
    assert found["before"] == found["after"] == [100, 7, 3, 3, 0, 0]
    assert found["used_before"] == found["used_after"] == 4


def test_map_holds_the_leading_variance() -> None:
    codes, usage = book(200, 10)
    found = figures(codes, codes[:, :4], usage)["pca_map"]
    values = np.linalg.svd(codes - codes.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(found["share"], values[:2] / values.sum(), rtol=1e-3)
    np.testing.assert_allclose(np.square(found["x"]).sum(), values[0], rtol=1e-3)
    np.testing.assert_allclose(np.square(found["y"]).sum(), values[1], rtol=1e-3)


def test_large_codebooks_stay_bounded_and_keep_the_most_used_code() -> None:
    codes, usage = book(9000, 6)
    usage[4321] = 10**6
    found = figures(codes, codes[:, :3], usage)
    assert len(found["rank_frequency"]["ranks"]) <= POINTS
    assert found["cosine"]["codes"] == HEAT_CODES
    assert found["pca_map"]["codes"] == MAP_CODES
    assert max(found["pca_map"]["usage"]) == 10**6
    assert found["spectrum"]["codes"] < found["spectrum"]["of"] == 9000
    assert len(json.dumps(found)) < 130_000
    exact = np.linalg.svd(codes - codes.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(found["spectrum"]["before"]["value"], exact, rtol=0.05)


def test_a_spectrum_of_some_codes_is_scaled_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """n singular values grow with the root of the codes: half of them, each twice, stand for the whole."""
    monkeypatch.setattr("toc_cli.ops.figures.SPECTRUM_CODES", 40)
    codes, _ = book(40, 6)
    doubled, usage = np.repeat(codes, 2, axis=0), np.arange(80, 0, -1)
    found = figures(doubled, doubled[:, :3], usage)["spectrum"]
    assert (found["codes"], found["of"]) == (40, 80)
    for side, part in (("before", doubled), ("after", doubled[:, :3])):
        exact = np.linalg.svd(part - part.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(found[side]["value"], exact, rtol=0.1)
        assert abs(found[side]["value"][0] / exact[0] - 1) < 0.1


def test_same_bytes_whatever_the_thread_count() -> None:
    codes, usage = book(700, 40)
    outside = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(
            json.dumps(figures(torch.from_numpy(codes), torch.from_numpy(codes[:, 1::2]), torch.from_numpy(usage)))
        )
    torch.set_num_threads(outside)
    assert found[0] == found[1]


@settings(max_examples=30, deadline=None)
@given(codes=st.integers(1, 20), dim=st.integers(1, 12), kind=st.sampled_from(["normal", "zero", "equal"]))
def test_any_shape_gives_finite_json(codes: int, dim: int, kind: str) -> None:
    values = {"normal": book(codes, dim)[0], "zero": np.zeros((codes, dim)), "equal": np.ones((codes, dim))}[kind]
    found = figures(values, values[:, : max(1, dim // 2)], np.zeros(codes, np.int64), np.ones(codes, np.int64))
    json.dumps(found, allow_nan=False)
    assert len(base64.b64decode(found["cosine"]["after"])) == codes * (codes - 1) // 2


@pytest.mark.parametrize(("count", "most"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7)])
def test_even_keeps_the_ends(count: int, most: int) -> None:
    order = np.arange(count)[::-1]
    chosen = even(order, most)
    assert len(chosen) == min(count, most)
    if count:
        assert chosen[0] == order[0]
        assert chosen[-1] == order[-1]


def test_of_three_codes_the_two_that_are_near_stand_together() -> None:
    order = _clustered(np.array([[1.0, 0.0], [0.0, 1.0], [0.96, 0.28]])).tolist()
    assert abs(order.index(0) - order.index(2)) == 1


def test_a_map_of_one_axis_lies_on_it_and_equal_codes_share_nothing() -> None:
    centred, values, axes = np.zeros((3, 1)), np.zeros(1), np.ones((1, 1))
    assert pca_map(centred, values, axes) == {"codes": 3, "x": [0.0] * 3, "y": [0.0] * 3, "share": [0.0]}
