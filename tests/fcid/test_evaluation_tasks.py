"""Which labels are learned where: split names, what is asked for, transfer, and labels that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from fcid.labelled_clips import COUNTS, SECONDS, label, labelled_clips
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.evaluation.tasks import Splits, Task, held_out, split_triples, trials


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return labelled_clips(tmp_path / "clips.h5")


def described(splits: Splits, *wanted: str, transfer: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
    found = [trial.describe() for trial in trials(splits, wanted, transfer)]
    return [(t["task"], t["train"], t["val"], t["test"], t["transfer"]) for t in found]


def test_splits_belong_together_by_name() -> None:
    names = ["ave_test", "ave_train", "ave_val", "avvp_test", "avvp_train", "test", "train", "val", "lone_train"]
    assert split_triples(names) == [
        ("ave_train", "ave_val", "ave_test"), ("avvp_train", "val", "avvp_test"), ("train", "val", "test"),
    ]  # fmt: skip
    assert split_triples(["train", "test"]) == [("train", None, "test")]


def test_every_label_with_both_splits_is_a_task(data: Path) -> None:
    splits = Splits(data, ("video", "audio"))
    assert described(splits) == [
        ("label_clip", "a_train", "val", "a_test", False), ("label_second", "a_train", "val", "a_test", False),
    ]  # fmt: skip
    first, second = trials(splits, (), ())
    assert (first.task, second.task) == (Task("label_clip", "clip", 3), Task("label_second", "seconds", 3))
    seconds = second.task.labels(second.test, "audio")
    assert seconds is not None
    assert seconds.shape == (COUNTS["a_test"], SECONDS, 3)
    raw = second.test.label("label_second.audio")
    assert (seconds.sum(-1).numpy() == (raw != 3)).all()


def test_what_is_asked_for(data: Path) -> None:
    splits = Splits(data, ("video", "audio"))
    assert described(splits, "label_clip") == [("label_clip", "a_train", "val", "a_test", False)]
    assert described(splits, "label_clip=val:b_test") == [("label_clip", "val", None, "b_test", False)]
    assert described(splits, "label_clip=val:a_train:b_test") == [("label_clip", "val", "a_train", "b_test", False)]
    train, val = held_out(12)
    assert val.tolist() == [4, 9]
    assert sorted([*train, *val]) == list(range(12))


def test_transfer_to_a_split_and_to_another_file(data: Path, tmp_path: Path) -> None:
    splits = Splits(data, ("video", "audio"))
    other = labelled_clips(tmp_path / "other.h5", seed=8)
    moved = [t for t in trials(splits, ("label_clip",), ("b_test", str(other), f"{other}=val")) if t.transfer]
    assert [(t.test.path.name, t.test.name) for t in moved] == [
        ("clips.h5", "b_test"), ("other.h5", "a_test"), ("other.h5", "val"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="has no clip with the labels label_clip"):
        trials(splits, ("label_clip",), ("train",))
    with pytest.raises(InputError, match="is no file, and no split"):
        trials(splits, ("label_clip",), ("c_test",))
    third = labelled_clips(tmp_path / "third.h5")
    with h5py.File(third, "a") as file:
        file.move("a_test", "elsewhere")
    with pytest.raises(InputError, match="no split 'a_test'"):
        trials(splits, ("label_clip",), (str(third),))


@pytest.mark.parametrize(
    ("wanted", "error", "sentence"),
    [
        ("label_smell", InputError, "labels 'label_smell'; the data has label_clip, label_second"),
        ("label_clip=a_train", UsageError, "names no splits"),
        ("label_clip=a_train:c_test", InputError, "no split 'c_test'"),
        ("label_clip=train:a_test", InputError, "Split 'train' has no labels 'label_clip'; it has none"),
    ],
)
def test_what_cannot_be_asked_for(data: Path, wanted: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        trials(Splits(data, ("video", "audio")), (wanted,), ())


def test_a_missing_modality_is_named(data: Path) -> None:
    with pytest.raises(InputError, match=r"no modality 'smell'; it has audio, text, video.*--modality video"):
        Splits(data, ("video", "smell")).open("val")


def test_labels_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    other = labelled_clips(tmp_path / "other.h5")
    with h5py.File(other, "a") as file:
        del file["a_test/label_clip"], file["b_test/label_clip"]
        label(file["a_test"], "label_clip", np.full(COUNTS["a_test"], 5), classes=6)
        label(file["b_test"], "label_clip", np.zeros((COUNTS["b_test"], SECONDS)), classes=3)
    splits = Splits(data, ("audio",))
    for text, sentence in (("a_test", "label 5, out of range: label_clip has 3"), ("b_test", "labels clips")):
        *_, moved = trials(splits, ("label_clip",), (f"{other}={text}",))
        with pytest.raises(InputError, match=sentence):
            moved.task.labels(moved.test, "audio")


def test_labels_out_of_range(data: Path) -> None:
    with h5py.File(data, "a") as file:
        file["a_test/label_clip"][3] = 7
    with pytest.raises(InputError, match=r"Label 7 at row 3 of a_test/label_clip of clips.h5 is out of range"):
        trials(Splits(data, ("audio",)), (), ())
