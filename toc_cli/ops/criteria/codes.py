"""Scores per dimension from second moments: TOC and its terms, over codes, used codes, features or pairs (toc-math, "Scores")."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from toc_cli.ops.blocks import total
from toc_cli.ops.criteria.base import Known, Maths, Reduction, counts, segments
from toc_cli.ops.moments import correlation, merge, merge_pairs, moments, pair_moments
from toc_cli.ops.scores import (
    Combine,
    Scores,
    by_live,
    by_similarity,
    by_toc,
    by_variance,
    plus,
    shared,
    similarity_and_variance,
    usage_similarity_and_variance,
)
from toc_cli.ops.stability import code_draws, feature_draws, pair_draws


def of_codes(combine: Combine) -> Maths:
    """A criterion that reads the codes alone."""

    def one(known: Known) -> Scores:
        return combine(*terms(known), known.weights)

    def drawn(known: Known, seed: int) -> list[Scores]:
        return code_draws(combine, known.scored, weights=known.weights, seed=seed)

    return Maths(each(one), each_draw(drawn))


def of_used_codes(combine: Combine) -> Maths:
    """A criterion that counts codes by use."""

    def one(known: Known) -> Scores:
        return combine(*usage_similarity_and_variance(known.scored, counts(known)), known.weights)

    def drawn(known: Known, seed: int) -> list[Scores]:
        return code_draws(combine, known.scored, usage=counts(known), weights=known.weights, seed=seed)

    return Maths(each(one), each_draw(drawn))


def terms(known: Known) -> tuple[np.ndarray, np.ndarray]:
    """S and V of the codes, (D,) each."""
    return similarity_and_variance(moments(known.scored))


def each(one: Callable[[Known], Scores]) -> Callable[[Sequence[Known]], Scores]:
    """Score every table of a group by itself: the group keeps what is best on the mean."""
    return lambda group: shared([one(known) for known in group])


def each_draw(drawn: Callable[[Known, int], list[Scores]]) -> Callable[[Sequence[Known], int], list[Scores]]:
    """The same with resamples; a table that leaves some out sets their number."""

    def draws(group: Sequence[Known], seed: int) -> list[Scores]:
        found = [drawn(known, seed) for known in group]
        return [shared(row) for row in zip(*found, strict=False)]

    return draws


def _features(known: Known) -> Scores:
    return by_toc(*similarity_and_variance(total(segments(known), merge)), known.weights)


def _feature_draws(known: Known, seed: int) -> list[Scores]:
    return feature_draws(segments(known), known.weights, seed=seed)


def _toc(known: Known) -> Scores:
    return by_toc(*terms(known), known.weights)


def _xmodal(known: Known) -> Scores:
    pairs = [total(units, merge_pairs) for units in known.streams]
    return plus(_toc(known), np.concatenate([correlation(pair) for pair in pairs]).mean(axis=0))


def _pair_draws(known: Known, seed: int) -> list[Scores]:
    return pair_draws(_toc(known), known.streams, seed=seed)


def _random(known: Known) -> Scores:
    s, v = terms(known)
    level, head = known.place
    return Scores(np.random.default_rng(known.seed + 1000 * level + head).random(len(v)), s, v)


TOC = of_codes(by_toc)
LIVE = of_codes(by_live)
VARIANCE = of_codes(by_variance)
SIMILARITY = of_codes(by_similarity)
USAGE_TOC = of_used_codes(by_toc)
USAGE_VARIANCE = of_used_codes(by_variance)
RANDOM = Maths(each(_random))
FEATURES = Maths(
    each(_features),
    each_draw(_feature_draws),
    Reduction("modalities", lambda known, side: moments(side.x), merge),
)
XMODAL = Maths(
    each(_xmodal),
    each_draw(_pair_draws),
    Reduction("pairs", lambda known, *sides: pair_moments(*(side.x for side in sides)), merge_pairs),
)
