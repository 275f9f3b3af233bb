"""What else a run finds out: whether the choice is stable, whether modalities agree on it, what a label probe makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch

from toc_cli.errors import InputError
from toc_cli.io.features import LabelSet
from toc_cli.io.names import printable
from toc_cli.ops import probe
from toc_cli.ops.bootstrap import interval, resample, totals
from toc_cli.ops.criteria.base import Ranked
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.rotation import Rotation
from toc_cli.ops.scores import Scores, drowned
from toc_cli.ops.selection import parse_ratio, select
from toc_cli.ops.stability import Stability, jaccard, stability, subspace_stability
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.knowledge import groups, known, table
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.sample import Measured
from toc_cli.pipeline.source import Fit, form_for
from toc_cli.pipeline.study import Study


def off_centre(study: Study, choice: Choice) -> list[dict[str, Any]]:
    """A warning where the paper's score follows where the codes lie, not how they differ."""
    ratios = [drowned(scores, study.options.weights) for level in choice.ranking.scores for scores in level]
    worst = max((ratio for ratio in ratios if ratio is not None), default=None)
    if worst is None:
        return []
    times = f"{worst:,.1f} times" if np.isfinite(worst) else "infinitely"
    text = (
        f"{printable(study.source.book.shown, 120)}: the codes lie far from 0, so the similarity term of --criterion "
        f"{choice.ranking.criterion} differs over dimensions {times} more than the variance term: dimensions with a large mean are "
        "dropped first, however much they tell apart. --criterion variance, usage-variance or pca do not see the mean."
    )
    return [{"id": "off_centre_codes", "codebook": study.source.id, "text": text}]


def stability_of(study: Study, choice: Choice) -> dict[str, Any] | None:
    """Overlap of the kept sets with those of resampled codes (or feature segments); None for a criterion that resamples nothing."""
    row = CRITERIA[choice.ranking.criterion]
    if row.maths.draws is None:
        return None
    found = []
    for at, level in enumerate(groups(study.source)):
        for head, group in enumerate(level):
            about = [known(study, choice.ranking.criterion, place, study.options.seed) for place in group]
            found.append(_overlap(study, choice, (at, head), row.maths.draws(about, study.options.seed)))
    return {
        "jaccard_mean": float(np.mean([each.mean for each in found])),
        "jaccard_min": float(np.min([each.least for each in found])),
        "resamples": found[0].resamples,
        "over": "features" if row.need in ("features", "pairs") else "codes",
    }


def _overlap(study: Study, choice: Choice, at: tuple[int, int], drawn: Sequence[Ranked]) -> Stability:
    """Of the set of (levels that choose, heads that choose); where levels share it, of the level that keeps most."""
    turns = [each for each in drawn if isinstance(each, Rotation)]
    level, head = at
    if len(choice.ranking.scores) < len(choice.kept):
        level = choice.sizes.index(choice.count)
    if choice.rotation is not None:
        return subspace_stability(choice.rotation_by_level[level][head].numpy(), turns)
    ratio = parse_ratio(study.options.ratio) if study.options.ratio else None
    return stability(choice.kept_by_level[level][head], [each for each in drawn if isinstance(each, Scores)], ratio)


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
    rows = []
    for level in groups(study.source):
        tables = [
            [replace(table(study, at, study.options.seed), usage=usage[at[0]][at[1]]) for at in group]
            for group in level
        ]
        found = [CRITERIA["usage-toc"].rank(group) for group in tables]
        kept = [select(each.score, count).kept for each in found if isinstance(each, Scores)]
        rows.append(torch.stack(kept * (study.full.heads // len(kept))))
    return torch.stack(rows)


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
            sides = {"before": study.source.came, "after": choice.form}
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
    stream = fit.dataset
    units = run.block_of_row if stream.bounds is None else stream.unit_of(run.positions)
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
    bounds = interval(totals(hits, weights) / totals(count, weights), blocks=len(used))
    per_class = {str(label): value for label, value in probe.accuracy(right, test_labels).items()}
    return {
        "accuracy": float(right.mean()), "ci95": list(bounds) if bounds else None, "test_rows": len(right), "per_class": per_class
    }  # fmt: skip
