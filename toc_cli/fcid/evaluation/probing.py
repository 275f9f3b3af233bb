"""Classification, localisation and transfer: a probe learns one modality's codes and is tested on the others'.

Every choice (epoch, thresholds) is made on validation clips of the modality that was learned; test clips are read once.

Legend: N clips, T seconds, C classes, S seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toc_cli.fcid.data import Split
from toc_cli.fcid.evaluation.figures import Figure, Mean, Ratio, macro_f1, share, summary
from toc_cli.fcid.evaluation.forms import FULL, Form, Variant
from toc_cli.fcid.evaluation.reader import CodeReader
from toc_cli.fcid.evaluation.sources import shared_levels
from toc_cli.fcid.evaluation.tasks import Task, Trial, held_out
from toc_cli.fcid.probe_fit import fit_probes
from toc_cli.fcid.probes import Labelled, NeuralProbe, ProbeConfig, predict_clips, predict_seconds
from toc_cli.io.names import printable

Levels = tuple[str, ...]
Target = tuple[Trial, str]
"""Where a probe is tested: the trial's test split, and the modality."""


@dataclass(frozen=True)
class Course:
    """One modality's codes to learn, and the targets that read the same levels."""

    trial: Trial
    modality: str
    levels: Levels
    targets: tuple[Target, ...]


def courses(reader: CodeReader, trials: Sequence[Trial], modalities: Sequence[str]) -> list[Course]:
    """Every probe to train: trials that share training and validation share their probes."""
    targets: dict[tuple[Trial, str, Levels], list[Target]] = defaultdict(list)
    first: dict[tuple[Task, Split, Split | None], Trial] = {}
    for trial in trials:
        lead = first.setdefault((trial.task, trial.train, trial.val), trial)
        for a in modalities:
            for b in modalities:
                levels = shared_levels(reader.source, a, b, "probed")
                learnt = bool(levels) and fits(reader, trial.task, trial.train, a, levels)
                if learnt and fits(reader, trial.task, trial.test, b, levels):
                    targets[lead, a, levels].append((trial, b))
    return [Course(lead, modality, levels, tuple(own)) for (lead, modality, levels), own in targets.items()]


def fits(reader: CodeReader, task: Task, split: Split, modality: str, levels: Levels) -> bool:
    """Whether the split labels what these levels of the modality say: clips, or as many seconds, of one clip or more."""
    y = task.labels(split, modality)
    if y is None:
        return False
    read = [reader.readings(split, modality)[level] for level in levels]
    seconds = max(reading.x.shape[1] for reading in read)
    return (task.kind == "clip" or seconds in (1, y.shape[1])) and known(y, read[0].mask)


def known(y: Tensor, mask: Tensor) -> bool:
    """Whether any clip has a label y (N, ...) and a second of mask (N, T)."""
    return bool((y[mask.any(dim=1)] >= 0).any())


def mute(reader: CodeReader, trials: Sequence[Trial], modalities: Sequence[str]) -> list[str]:
    """A sentence per split and modality whose labelled clips all lack that modality."""
    found = []
    for trial in trials:
        for split in (trial.train, trial.test):
            for modality in modalities:
                y = trial.task.labels(split, modality)
                mask = next(iter(reader.readings(split, modality).values())).mask
                if y is not None and not known(y, mask):
                    found.append(
                        f"{printable(trial.task.name)}: no labelled clip of {printable(split.name)} has {modality}; "
                        "what needs it is left out."
                    )
    return list(dict.fromkeys(found))


def labelled(
    reader: CodeReader, task: Task, split: Split, modality: str, levels: Levels, forms: Mapping[str, Form]
) -> Labelled:
    """Code vectors and labels of a split; clips without the modality count as unlabelled."""
    x, mask = reader.read_out(split, modality, levels, forms)
    y = task.labels(split, modality)
    assert y is not None
    return aligned(x, mask, y)


def aligned(x: Tensor, mask: Tensor, y: Tensor) -> Labelled:
    """Vectors (N, T or 1, F) with labels (N,) or (N, T, C)."""
    if y.ndim == 3 and x.shape[1] == 1:
        x, mask = x.expand(-1, y.shape[1], -1), mask.expand(-1, y.shape[1])
    absent = ~mask.any(dim=1)
    return Labelled(x, mask, y.masked_fill(absent.reshape(-1, *[1] * (y.ndim - 1)), -1))


def rows_of(data: Labelled, rows: np.ndarray) -> Labelled:
    index = torch.from_numpy(rows)
    return Labelled(data.x[index], data.mask[index], data.y[index])


def train_and_val(trial: Trial, data: Callable[[Split], Labelled]) -> tuple[Labelled, Labelled]:
    """The clips that train and the clips that validate: held out where no validation clip has label and modality."""
    train = data(trial.train)
    val = data(trial.val) if trial.val is not None else None
    if val is not None and known(val.y, val.mask):
        return train, val
    rows = np.flatnonzero((train.y >= 0).reshape(len(train.y), -1).any(dim=1).numpy())
    first, second = held_out(len(rows))
    return rows_of(train, rows[first]), rows_of(train, rows[second])


def fit(task: Task, parts: Sequence[tuple[Labelled, Labelled]], configs: Sequence[ProbeConfig]) -> list[NeuralProbe]:
    """The probes of a task: one for each (training, validation) and its config, trained as one batch."""
    return fit_probes(parts, task.classes, configs, per_second=task.kind != "clip")


def clip_sums(task: Task, probe: NeuralProbe, data: Labelled) -> np.ndarray:
    """What `share` (hits, cases) or `macro_f1` (per class hits, predicted, true) reads, per clip: (N, 2) or (N, 3 C)."""
    if task.kind == "clip":
        cases = data.y >= 0
        hits = (predict_clips(probe, data) == data.y) & cases
        return torch.stack([hits, cases], dim=1).double().numpy()
    valid = data.mask[..., None] & (data.y >= 0)
    predicted, true = predict_seconds(probe, data) & valid, (data.y > 0) & valid
    parts = [part.sum(dim=1) for part in (predicted & true, predicted, true)]
    return torch.cat(parts, dim=1).double().numpy()


def figure(task: Task, sums: Sequence[np.ndarray]) -> Ratio:
    """Accuracy of clips, or macro F1 of seconds, from the sums of every seed."""
    return Ratio(np.stack(sums), share if task.kind == "clip" else macro_f1)


def metric(task: Task) -> str:
    """What the figure is."""
    return "accuracy" if task.kind == "clip" else "f1"


def as_wide(configs: Sequence[ProbeConfig], features: int) -> list[ProbeConfig]:
    """The configs with the width of all probes that are compared: what was asked, or that of the widest read-out (F)."""
    return [replace(config, width=max(config.width, features)) for config in configs]


def run_course(
    reader: CodeReader,
    course: Course,
    variants: Sequence[Variant],
    configs: Sequence[ProbeConfig],
    advance: Callable[[int], None],
) -> tuple[int, dict[Target, dict[str, Figure]]]:
    """Train the probes of a course under every variant and seed; their common width, and figures per target and variant."""
    task = course.trial.task

    def read(variant: Variant, number: int, modality: str, split: Split) -> Labelled:
        return labelled(reader, task, split, modality, course.levels, variant.draw(number))

    parts = {
        (variant.id, number): train_and_val(course.trial, partial(read, variant, number, course.modality))
        for variant in variants
        for number in range(min(len(variant.draws), len(configs)))
    }
    configs = as_wide(configs, parts[FULL, 0][0].x.shape[-1])
    asked = [(variant, number) for variant in variants for number in range(len(configs))]
    trained = fit(
        task,
        [parts[variant.id, number % len(variant.draws)] for variant, number in asked],
        [configs[number] for _, number in asked],
    )
    advance(len(asked))
    probes = {(variant.id, number): one for (variant, number), one in zip(asked, trained, strict=True)}
    figures: dict[Target, dict[str, Figure]] = {target: {} for target in course.targets}
    for trial, b in course.targets:
        for variant in variants:
            tests = [read(variant, number, b, trial.test) for number in range(min(len(variant.draws), len(configs)))]
            own = [probes[variant.id, number] for number in range(len(configs))]
            sums = [clip_sums(task, probe, tests[number % len(tests)]) for number, probe in enumerate(own)]
            figures[trial, b][variant.id] = figure(task, sums)
    return configs[0].width, figures


def entries(
    reader: CodeReader,
    plan: Sequence[Course],
    variants: Sequence[Variant],
    configs: Sequence[ProbeConfig],
    seed: int,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """The record's rows: one per trial and pair of modalities, and a mean over the pairs of different ones that read the same levels:
    a mean over all would hide those that share the seconds behind those that share the clip alone."""
    pairs: dict[Trial, dict[tuple[str, str], tuple[Levels, dict[str, Figure]]]] = defaultdict(dict)
    trained: dict[tuple[Trial, str, str], dict[str, Any]] = {}
    for course in plan:
        width, of_targets = run_course(reader, course, variants, configs, advance)
        for (trial, b), figures in of_targets.items():
            pairs[trial][course.modality, b] = (course.levels, figures)
            trained[trial, course.modality, b] = {"width": width, "lr": configs[0].lr, "epochs": configs[0].epochs}
    found = []
    for trial, own in pairs.items():
        found += [
            entry(trial, a, b, levels, figures, len(trial.test), seed)
            | {"chance": chance(trial, b), "probe": trained[trial, a, b]}
            for (a, b), (levels, figures) in own.items()
        ]
        alike: dict[Levels, dict[tuple[str, str], dict[str, Figure]]] = defaultdict(dict)
        for (a, b), (levels, figures) in own.items():
            if a != b:
                alike[levels][a, b] = figures
        for levels, crossed in alike.items():
            if len(crossed) > 1:
                means = {
                    variant.id: Mean([figures[variant.id] for figures in crossed.values()]) for variant in variants
                }
                mean = entry(trial, None, None, levels, means, len(trial.test), seed)
                found.append(mean | {"chance": None, "pairs": [list(pair) for pair in crossed]})
    return found


def entry(
    trial: Trial,
    a: str | None,
    b: str | None,
    levels: Levels,
    figures: Mapping[str, Figure],
    clips: int,
    seed: int,
) -> dict[str, Any]:
    """One row: results per variant, each with its paired difference to all dimensions. No modalities: their mean."""
    whole = figures[FULL]
    results = {id: summary(own, None if id == FULL else whole, seed, clips) for id, own in figures.items()}
    head = {"from": a, "to": b, "levels": list(levels), "metric": metric(trial.task), "clips": clips}
    return trial.describe() | head | {"results": results}


def chance(trial: Trial, modality: str) -> float | None:
    """The accuracy of always naming the most frequent class; None for seconds."""
    y = trial.task.labels(trial.test, modality)
    if y is None or y.ndim > 1:
        return None
    known = y[y >= 0]
    return float(known.bincount().max()) / len(known)
