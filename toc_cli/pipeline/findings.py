"""What else a run finds out: whether the choice is stable, whether modalities agree on it, what a label probe makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch

from toc_cli.errors import InputError
from toc_cli.io.features import LabelSet
from toc_cli.ops import probe
from toc_cli.ops.bootstrap import interval, resample, totals
from toc_cli.ops.criterion import ROTATIONS, Scores, score, shared
from toc_cli.ops.linear import unit_rows
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.selection import parse_ratio, select
from toc_cli.ops.stability import (
    Stability,
    code_draws,
    feature_draws,
    jaccard,
    pair_draws,
    pca_draws,
    stability,
    subspace_stability,
    xcov_draws,
)  # fmt: skip
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.sample import Measured
from toc_cli.pipeline.source import Fit, form_for
from toc_cli.pipeline.study import Study

DRIVEN_BY = {"features": "features", "xmodal": "features", "xcov": "features"}


def stability_of(study: Study, choice: Choice) -> dict[str, Any] | None:
    """Overlap of the kept sets with those of resampled codes (or feature segments); None for `random`, which resamples nothing."""
    if choice.ranking.criterion == "random":
        return None
    found = [
        _set_stability(study, choice, row, column)
        for row in range(len(choice.ranking.scores))
        for column in range(len(choice.ranking.scores[0]))
    ]
    return {
        "jaccard_mean": float(np.mean([each.mean for each in found])),
        "jaccard_min": float(np.min([each.least for each in found])),
        "resamples": found[0].resamples,
        "over": DRIVEN_BY.get(choice.ranking.criterion, "codes"),
    }


def _set_stability(study: Study, choice: Choice, row: int, column: int) -> Stability:
    source, census, options = study.source, study.census, study.options
    criterion, ranking = choice.ranking.criterion, choice.ranking
    levels = [row] if len(ranking.scores) > 1 else list(range(len(source.full.levels)))
    heads = [column] if len(ranking.scores[0]) > 1 else list(range(source.full.heads))
    places = [(level, head) for level in levels for head in heads]
    codes = [source.full.levels[level].codes[head] for level, head in places]
    usage = [census.pooled[level][head] for level, head in places]
    if criterion in ROTATIONS:
        assert choice.rotation is not None
        leading = choice.rotation[row, column].numpy()
        if criterion == "pca":
            books = [unit_rows(e) for e in codes] if options.normalize == "l2" else codes
            return subspace_stability(leading, pca_draws(books, usage, seed=options.seed))
        assert census.crosses is not None
        units = [states for at in places for states in census.crosses[at]]
        return subspace_stability(leading, xcov_draws(units, seed=options.seed))
    drawn = [_draws(study, criterion, *at) for at in places]
    resamples = min(len(draws) for draws in drawn)
    draws = [shared([draws[r] for draws in drawn]) for r in range(resamples)]
    ratio = parse_ratio(options.ratio) if options.ratio else None
    return stability(choice.kept[row, column], draws, ratio)


def _draws(study: Study, criterion: str, level: int, head: int) -> list[Scores]:
    source, census, options = study.source, study.census, study.options
    codes, seed = source.full.levels[level].codes[head], options.seed
    if criterion == "features":
        assert census.features is not None
        return feature_draws(census.features[level, head][0], options.weights, seed=seed)
    if criterion == "xmodal":
        assert census.pairs is not None
        own = score("toc", codes, weights=options.weights, normalize=options.normalize)
        return pair_draws(own, census.pairs[level, head], seed=seed)
    return code_draws(
        criterion,
        codes,
        weights=options.weights,
        normalize=options.normalize,
        usage=census.pooled[level][head],
        seed=seed,
    )


def modality_agreement(study: Study, count: int) -> dict[str, Any] | None:
    """Overlap of the dimensions that each modality alone would keep, by its own usage-weighted score; None with one modality,
    or where a modality uses a single code."""
    census = study.census
    if len(census.usage) < 2:
        return None
    try:
        alone = {name: _kept_alone(study, usage, count) for name, usage in census.usage.items()}
    except InputError:
        return None
    pairs = {f"{a}|{b}": jaccard(alone[a], alone[b]) for a, b in combinations(alone, 2)}
    return {"jaccard": float(np.mean(list(pairs.values()))), "pairs": pairs}


def _kept_alone(study: Study, usage: list[np.ndarray], count: int) -> torch.Tensor:
    """(L or 1, H, D') by `usage-toc` with one modality's usage."""
    source, options = study.source, study.options
    levels = range(len(source.full.levels))
    rows = [[level] for level in levels] if source.book.own_dims_per_level else [list(levels)]
    kept = []
    for group in rows:
        scores = [
            shared(
                [
                    score(
                        "usage-toc", source.full.levels[at].codes[head], weights=options.weights, usage=usage[at][head]
                    )
                    for at in group
                ]
            )
            for head in range(source.full.heads)
        ]
        kept.append(torch.stack([select(each.score, count).kept for each in scores]))
    return torch.stack(kept)


def probe_labels(study: Study, choice: Choice, runs: Mapping[str, Measured]) -> dict[str, Any] | None:
    """A linear probe on the code vectors, trained on one modality and tested on every other (on every second clip of each class
    where it is alone), before and after. None without labels that fit and have two classes to learn."""
    for labels in study.features.labels.values():
        fitting = [fit for fit in study.fits if labels.fits(fit.dataset)]
        if not fitting:
            continue
        classes = labels.read()
        rows = [_labelled(fit, runs[fit.dataset.name], labels, classes) for fit in fitting]
        if all(len(np.unique(each.classes[each.trains])) > 1 for each in rows):
            sides = {"before": study.full, "after": choice.form}
            return {"labels": labels.name} | {
                side: _directions(form, rows, side, study.options) for side, form in sides.items()
            }
    return None


@dataclass(frozen=True)
class _Labelled:
    """The sampled rows of a modality with their classes."""

    fit: Fit
    run: Measured
    classes: np.ndarray  # (n,) int64
    blocks: np.ndarray  # (n,) block of the sample
    trains: np.ndarray  # (n,) bool: the half to train on where the modality is alone


def _labelled(fit: Fit, run: Measured, labels: LabelSet, classes: np.ndarray) -> _Labelled:
    assert run.positions is not None
    assert run.block_of_row is not None
    of_row = labels.for_rows(fit.dataset, classes)[run.positions]
    rows_each = fit.dataset.rows // classes.size
    units = run.positions // rows_each if rows_each > 1 else run.block_of_row
    return _Labelled(fit, run, of_row, run.block_of_row, every_second(units, of_row))


def every_second(units: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows of every second unit (clip, or run of rows) of each class, so that labels in any order, sorted ones
    too, give two halves of the same classes. A unit counts for the class (n,) of its first row."""
    names, first, place = np.unique(units, return_index=True, return_inverse=True)
    half = np.zeros(len(names), dtype=bool)
    half[np.lexsort((names, classes[first]))[::2]] = True
    return half[place]


def _directions(form: Quantiser, rows: Sequence[_Labelled], side: str, options: Options) -> dict[str, Any]:
    name = "full" if side == "before" else "chosen"
    if len(rows) == 1:
        pairs = [(rows[0], rows[0].trains, rows[0], ~rows[0].trains)]
    else:
        pairs = [(a, np.ones(len(a.classes), bool), b, np.ones(len(b.classes), bool)) for a, b in permutations(rows, 2)]
    return {
        f"{a.fit.dataset.name}->{b.fit.dataset.name}": _tested(
            form_for(form, a.fit), a.run.tokens[name][train], a.classes[train],
            b.run.tokens[name][test], b.classes[test], b.blocks[test], options,
        )
        for a, train, b, test in pairs
    }  # fmt: skip


def _tested(
    form: Quantiser, train: torch.Tensor, train_labels: np.ndarray, test: torch.Tensor, test_labels: np.ndarray,
    blocks: np.ndarray, options: Options,
) -> dict[str, Any]:  # fmt: skip
    tiles = range(0, len(train), 4096)
    fitted = probe.fit((form.vectors(train[at : at + 4096]), train_labels[at : at + 4096]) for at in tiles)
    guesses = [fitted.predict(form.vectors(test[at : at + 4096])) for at in range(0, len(test), 4096)]
    right = np.concatenate(guesses) == test_labels
    used, place = np.unique(blocks, return_inverse=True)
    hits = np.bincount(place, weights=right)
    count = np.bincount(place).astype(np.float64)
    weights = resample(len(used), options.seed)
    bounds = interval(totals(hits, weights) / totals(count, weights))
    per_class = {str(label): value for label, value in probe.accuracy(right, test_labels).items()}
    return {
        "accuracy": float(right.mean()), "ci95": list(bounds) if bounds else None, "test_rows": len(right), "per_class": per_class
    }  # fmt: skip
