"""Which labels are learned, on which clips, and where they are tested.

Legend: N clips, T seconds, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.data import Split, open_split, split_names
from toc_cli.fcid.probes import one_hot_seconds
from toc_cli.io.names import printable

Kind = Literal["clip", "seconds"]
HELD_OUT = 5
"""Without a validation split, every fifth training clip validates."""
MOST_CLASSES = 10_000
"""A label beyond is taken for a mistake, such as an identifier of the clip."""


@dataclass(frozen=True)
class Task:
    """One label as every modality shows it: `label_second` for the datasets label_second.audio, label_second.video."""

    name: str
    kind: Kind
    classes: int

    def of(self, split: Split, modality: str) -> str | None:
        """The dataset that holds it for a modality."""
        return next((name for name in (f"{self.name}.{modality}", self.name) if name in split.columns), None)

    def labels(self, split: Split, modality: str) -> Tensor | None:
        """(N,) of clips, or (N, T, C) yes or no per second; -1 where unlabelled. None if the split has none."""
        name = self.of(split, modality)
        if name is None:
            return None
        values = torch.from_numpy(split.label(name))
        check_shape(split, name, tuple(values.shape))
        if (values.ndim == 1) != (self.kind == "clip"):
            raise InputError(
                f"{_at(split, name)} has the shape {tuple(values.shape)}; elsewhere {self.name} labels {self.kind}s.",
                "Give labels of clips and of seconds different names.",
            )
        empty = background(split, name) if values.ndim == 2 else None
        top = 2 if values.ndim == 3 else self.classes + (empty is not None)
        if (values >= top).any():
            raise InputError(
                f"{_at(split, name)} has the label {int(values.max())}, out of range: {self.name} has {top} classes.",
                "Labels go from 0 to one less; -1 is unlabelled.",
            )
        if values.ndim == 2:
            values = one_hot_seconds(values, empty, top)
        if values.ndim == 3 and values.shape[2] != self.classes:
            raise InputError(
                f"{_at(split, name)} has {values.shape[2]} classes, elsewhere {self.classes}.",
                "Give every split the same attributes 'classes' and 'background'.",
            )
        return values


def check_shape(split: Split, name: str, shape: tuple[int, ...]) -> None:
    """InputError where labels (clips, seconds, ...) name other seconds than the modalities they can belong to have."""
    own = name.partition(".")[2]
    lengths = {n: spec.length for n, spec in split.specs.items() if own in ("", n)}
    if len(shape) > 1 and lengths and shape[1] not in lengths.values():
        have = ", ".join(f"{printable(n)} {length}" for n, length in lengths.items())
        raise InputError(
            f"{_at(split, name)} has the shape {shape}; the seconds (or words) of a clip are: {have}.",
            "Labels are (clips,), (clips, seconds) or (clips, seconds, classes).",
        )


def _at(split: Split, name: str) -> str:
    return f"{printable(split.name)}/{printable(name)} of {split.path.name}"


@dataclass(frozen=True)
class Trial:
    """A task with the splits it is trained, validated and tested on."""

    task: Task
    train: Split
    val: Split | None
    """None: every fifth training clip."""
    test: Split
    transfer: bool = False

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {
            "task": self.task.name,
            "kind": self.task.kind,
            "classes": self.task.classes,
            "train": self.train.name,
            "val": self.val.name if self.val else None,
            "test": self.test.name,
            "transfer": self.transfer,
        }


class Splits:
    """The splits of the data files, each opened once with the modalities that are evaluated."""

    def __init__(self, data: Path, modalities: tuple[str, ...]) -> None:
        self.data, self.modalities = data, modalities
        self.names = split_names(data)
        self._open: dict[tuple[Path, str], Split] = {}

    def open(self, name: str, path: Path | None = None) -> Split:
        """A split of the data, or of another file. InputError for a name, or a modality, that is not there."""
        at = (path or self.data, name)
        if at not in self._open:
            have = open_split(*at).modalities
            missing = [modality for modality in self.modalities if modality not in have]
            if missing:
                raise InputError(
                    f"Split {printable(name)!r} of {at[0].name} has no modality {printable(missing[0])!r}; "
                    f"it has {', '.join(map(printable, have))}.",
                    f"Evaluate those it has: {' '.join(f'--modality {m}' for m in self.modalities if m in have)}",
                )
            self._open[at] = Split(*at, self.modalities)
        return self._open[at]


def trials(splits: Splits, wanted: Sequence[str], transfer: Sequence[str]) -> list[Trial]:
    """The tasks asked for, or every label that has a training and a test split; then each of them on the transfer
    targets that have its labels."""
    found = [trial for text in wanted for trial in _asked(splits, text)] if wanted else _all(splits)
    learned = {(trial.task.name, trial.train.name): trial for trial in found}
    for text in transfer:
        moved = [
            replace(trial, test=test, transfer=True)
            for trial in learned.values()
            if (test := _target(splits, text, trial))
        ]
        if not moved:
            labels = ", ".join(sorted({t.task.name for t in found}))
            raise InputError(
                f"--transfer {text!r} has no clip with the labels {labels} that is not tested already.",
                "Name another split (or FILE=SPLIT) whose labels have the same names.",
            )
        found += moved
    return found


def _all(splits: Splits) -> list[Trial]:
    found = []
    for train, val, test in split_triples(splits.names):
        for name in label_tasks(splits.open(train)):
            trial = _trial(splits, name, train, val, test)
            if trial and labelled(trial.task, trial.train) and labelled(trial.task, trial.test):
                found.append(trial)
    return found


def _asked(splits: Splits, text: str) -> list[Trial]:
    """`LABEL`, `LABEL=TRAIN:TEST` or `LABEL=TRAIN:VAL:TEST`."""
    name, equals, places = text.partition("=")
    if not equals:
        found = [trial for trial in _all(splits) if trial.task.name == name]
        if not found:
            labels = sorted({task for split in splits.names for task in label_tasks(splits.open(split))})
            raise InputError(
                f"No pair of a train and a test split has labels {name!r}; the data has {', '.join(labels) or 'none'}.",
                f"Name the splits: --task {name}=TRAIN:VAL:TEST.",
            )
        return found
    parts = places.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[-1]:
        raise UsageError(f"--task {text!r} names no splits.", "Write LABEL=TRAIN:VAL:TEST; LABEL=TRAIN:TEST holds out.")
    train, val, test = parts[0], parts[1] if len(parts) == 3 else "", parts[-1]
    for place in (train, test, *filter(None, [val])):
        if name not in label_tasks(splits.open(place)):
            have = ", ".join(label_tasks(splits.open(place))) or "none"
            raise InputError(f"Split {printable(place)!r} has no labels {printable(name)!r}; it has {have}.")
    trial = _trial(splits, name, train, val or None, test)
    assert trial is not None
    for split in (trial.train, trial.test, *filter(None, [trial.val])):
        if not labelled(trial.task, split):
            raise InputError(f"Every clip of split {split.name!r} is unlabelled in {printable(name)!r}.")
    return [trial]


def _trial(splits: Splits, name: str, train: str, val: str | None, test: str) -> Trial | None:
    """The task on these splits; a validation split without its labels counts as none."""
    opened = [splits.open(train), splits.open(test)]
    if any(name not in label_tasks(split) for split in opened):
        return None
    task = task_of(name, opened)
    held = splits.open(val) if val else None
    return Trial(task, opened[0], held if held and labelled(task, held) else None, opened[1])


def task_of(name: str, splits: Sequence[Split]) -> Task:
    """The kind and the classes of a label over several splits."""
    datasets = [column for column in splits[0].label_names if column.partition(".")[0] == name or column == name]
    values = splits[0].label(datasets[0])
    if values.ndim > 3:
        raise InputError(f"{printable(datasets[0])} has {values.ndim} axes; labels have one, two or three.")
    if values.ndim == 3:
        return Task(name, "seconds", values.shape[2])
    count = class_count(splits, datasets)
    if values.ndim == 2:
        return Task(name, "seconds", count - (background(splits[0], datasets[0]) is not None))
    return Task(name, "clip", count)


def label_tasks(split: Split) -> list[str]:
    """Names of the labels of a split, one for all modalities' own datasets."""
    return sorted({name.partition(".")[0] for name in split.label_names})


def labelled(task: Task, split: Split) -> bool:
    """Whether any clip has the label."""
    names = [name for name in split.label_names if name.partition(".")[0] == task.name]
    return any((split.label(name) >= 0).any() for name in names)


def class_count(splits: Sequence[Split], names: Sequence[str]) -> int:
    """The attribute `classes`, else one more than the largest label."""
    top = 0
    for split in splits:
        for name in names:
            if name in split.columns:
                attribute = split.group[name].attrs.get("classes")
                top = max(top, int(attribute) if attribute is not None else int(split.label(name).max(initial=-1)) + 1)
    if top > MOST_CLASSES:
        raise InputError(
            f"{_at(splits[0], names[0])} has {top:,} classes; a probe learns up to {MOST_CLASSES:,}.",
            "Labels are small numbers from 0; the attribute 'classes' says how many there are.",
        )
    return top


def background(split: Split, name: str) -> int | None:
    """The class of seconds in which nothing happens."""
    value = split.group[name].attrs.get("background")
    return None if value is None else int(value)


def split_triples(names: Sequence[str]) -> list[tuple[str, str | None, str]]:
    """Training, validation and test splits that belong together by name: ave_train, ave_test, and ave_val or else val."""
    found = []
    for train in names:
        if "train" not in train:
            continue
        test = train.replace("train", "test")
        if test in names:
            candidates = (train.replace("train", "val"), "val")
            found.append((train, next((name for name in candidates if name in names), None), test))
    return found


def _target(splits: Splits, text: str, trial: Trial) -> Split | None:
    """Where `--transfer` tests a trial: None if there are no such labels there, or it is the trial's own training or
    test split."""
    if text in splits.names:
        test = splits.open(text)
    else:
        file, _, name = text.partition("=")
        path = Path(file)
        if not path.is_file():
            have = ", ".join(map(printable, splits.names))
            raise InputError(f"--transfer {text!r} is no file, and no split of the data.", f"The splits are: {have}.")
        names = split_names(path)
        place = name or next((n for n in (trial.test.name, "test") if n in names), "")
        if not place:
            raise InputError(
                f"{path.name} has no split {trial.test.name!r}; it has {', '.join(map(printable, names))}.",
                f"Name one: --transfer {text}=SPLIT.",
            )
        test = splits.open(place, path)
    own = test is trial.test or test is trial.train
    return None if own or trial.task.name not in label_tasks(test) or not labelled(trial.task, test) else test


def held_out(clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows of a split that serves as both; a lone clip is either."""
    validates = np.arange(clips) % HELD_OUT == HELD_OUT - 1
    if clips < HELD_OUT:
        validates = np.arange(clips) == clips - 1
    return np.flatnonzero(~validates if clips > 1 else validates), np.flatnonzero(validates)
