"""A random selection is no better than chance: the interval of the advantage over random says so."""

from __future__ import annotations

import numpy as np
import torch

from criteria import score
from toc_cli.ops.bootstrap import beyond_chance, interval, resample
from toc_cli.ops.metrics import block_sums, measure
from toc_cli.ops.quantiser import quantiser
from toc_cli.ops.selection import select

SEEDS = 5


def test_at_most_one_in_twenty_random_selections_beats_chance():
    """200 purely random selections, each against 5 others, on a codebook whose dimensions differ much in what they carry."""
    rng = np.random.default_rng(0)
    scale = 1.15 ** -np.arange(24)
    codes = torch.from_numpy((rng.standard_normal((48, 24)) * scale + 0.2).astype(np.float32))
    x = codes[rng.integers(0, 48, 600)] + torch.from_numpy(
        (0.5 * rng.standard_normal((600, 24)) * scale).astype(np.float32)
    )
    full = quantiser([codes[None]])
    found, starts = full.lookup(x), np.arange(0, 600, 10)
    whole = block_sums(full, found, found.tokens, x.double(), starts)
    weights = resample(60, 0, 400)

    def gaps(kept):
        form = full.pruned(kept[None, None], full.mean_fill([np.bincount(found.tokens[:, 0, 0], minlength=48)[None]]))
        sums = block_sums(form, form.lookup(x), found.tokens, x.double(), starts)
        return [measure(sums, full=whole, weights=w)["excess_distortion"] for w in (weights, None)]

    sets = [gaps(select(score("random", codes, seed=seed).score, 12).kept) for seed in range(300)]
    passed = plain = 0
    for replicate in range(200):
        own, *others = np.random.default_rng(replicate).permutation(300)[: 1 + SEEDS]
        chosen, random = sets[own][0], np.array([sets[at][0] for at in others])
        passed += interval(beyond_chance(chosen, random, replicate))[0] > 0
        plain += interval(random.mean(axis=0) - chosen)[0] > 0
    print(f"of 200 random selections {passed} beat chance, {plain} by the doubt of the rows alone")
    assert passed <= 10, f"{passed} of 200 random selections beat chance"
    assert plain > 60  # what the rows' doubt alone would let through: the test can tell
    best = gaps(torch.arange(12))
    others = np.array([sets[at][0] for at in range(SEEDS)])
    assert interval(beyond_chance(best[0], others, 0))[0] > 0  # and the dimensions that carry most do beat it


def test_doubt_is_students():
    random = np.repeat(np.array([[1.0], [2], [3], [4], [5]]), 40000, axis=1)
    found = beyond_chance(np.zeros(40000), random, 1)
    t = 2.7764451  # 97.5 % of Student's t with 4 degrees
    spread = np.std([1, 2, 3, 4, 5], ddof=1) * np.sqrt(1.2)
    np.testing.assert_allclose(np.quantile(found, [0.025, 0.975]), [3 - t * spread, 3 + t * spread], atol=0.15)
