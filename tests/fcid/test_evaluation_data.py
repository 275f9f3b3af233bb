"""`toc evaluate` on data that is not what it hopes for: no labels, one split, absent modalities and classes, odd shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fcid.labelled_clips import COUNTS, SECONDS, label, labelled_clips, trained
from toc_cli.errors import InputError
from toc_cli.fcid.evaluation import EvaluateOptions, evaluate
from toc_cli.fcid.evaluation.tasks import held_out
from toc_cli.report import schema

QUICK = {"keep": (), "probe_seeds": 1, "probe_epochs": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return trained(labelled_clips(folder / "clips.h5"), folder / "run")


def changed(folder: Path, change: Callable[[h5py.File], None]) -> Path:
    path = labelled_clips(folder / "changed.h5")
    with h5py.File(path, "a") as file:
        change(file)
    return path


def unlabelled(file: h5py.File) -> None:
    for group in file.values():
        for name in [name for name in group if name.startswith("label")]:
            del group[name]


def replaced(group: h5py.Group, name: str, values: np.ndarray) -> None:
    attributes = dict(group[name].attrs)
    del group[name]
    group[name] = values
    for key, value in attributes.items():
        group[name].attrs[key] = value


def cut(clips: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for group in file.values():
            for name in list(group):
                replaced(group, name, group[name][:clips])

    return change


def ids(record: dict[str, Any]) -> list[str]:
    return [warning["id"] for warning in record["warnings"]]


def test_without_labels_the_rest_is_evaluated(run: Path, tmp_path: Path) -> None:
    data = changed(tmp_path, unlabelled)
    record = evaluate(run, data, EvaluateOptions(**QUICK))
    schema.validate(record)
    found = record["evaluation"]
    assert ids(record) == ["no_labels"]
    assert not found["classification"]
    assert not found["localisation"]
    assert {row["split"] for row in found["retrieval"]} == {"a_test"}
    assert [row["tasks"] for row in found["generation"]] == [{}, {}]
    assert found["generation"][0]["results"]["full"]["error"]["value"] > 0
    assert found["pictures"] == []
    with pytest.raises(InputError, match="no labels with a train and a test split"):
        evaluate(run, data, EvaluateOptions(**QUICK, parts=("classification",)))


def test_one_split_alone(run: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        for name in [name for name in file if name != "a_train"]:
            del file[name]

    data = changed(tmp_path, change)
    record = evaluate(run, data, EvaluateOptions(**QUICK))
    assert "its splits are a_train" in record["warnings"][0]["text"]
    assert {row["split"] for row in record["evaluation"]["retrieval"]} == {"a_train"}


@pytest.mark.parametrize("split", ["a_train", "a_test"])
def test_a_modality_that_no_labelled_clip_has(run: Path, tmp_path: Path, split: str) -> None:
    def change(file: h5py.File) -> None:
        file[split]["audio_present"] = np.zeros(COUNTS[split], np.int8)

    record = evaluate(run, changed(tmp_path, change), EvaluateOptions(**QUICK))
    schema.validate(record)
    assert f"label_clip: no labelled clip of {split} has audio" in record["warnings"][0]["text"]
    pairs = {(row["from"], row["to"]) for row in record["evaluation"]["classification"]}
    learnt, lost = ("video", "audio"), ("audio", "video")
    learnt, lost = (learnt, lost) if split == "a_train" else (lost, learnt)
    assert learnt in pairs
    assert lost not in pairs


def test_a_validation_split_without_the_modality_is_held_out(run: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["val"]["audio_present"] = np.zeros(COUNTS["val"], np.int8)

    found = evaluate(run, changed(tmp_path, change), EvaluateOptions(**QUICK))["evaluation"]
    pairs = {(row["from"], row["to"]): row["results"]["full"]["value"] for row in found["classification"]}
    assert pairs["audio", "video"] is not None


def test_absent_classes_and_ragged_clips(run: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        for name in ("label_clip", "label_second.audio", "label_second.video"):
            values = file["a_train"][name][:]
            file["a_train"][name][:] = np.where(values == 2, -1, values)
        for split, group in file.items():
            group["audio_length"] = np.arange(COUNTS[split]) % (SECONDS + 1)

    record = evaluate(run, changed(tmp_path, change), EvaluateOptions(**QUICK))
    schema.validate(record)
    assert all(0 <= row["results"]["full"]["value"] < 1 for row in record["evaluation"]["classification"])


@pytest.mark.parametrize("clips", [1, 2])
def test_tiny_splits(run: Path, tmp_path: Path, clips: int) -> None:
    data = changed(tmp_path, cut(clips))
    with h5py.File(data, "a") as file:
        del file["val"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = evaluate(run, data, EvaluateOptions(**QUICK))
    schema.validate(record)
    assert ids(record).count("held_out") == 2
    assert record["evaluation"]["classification"]


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("label_bits", (5,), r"label_bits of changed.h5 has the shape \(\d+, 5\); .*are: video 4, audio 4, text 3\."),
        ("label_second.audio", (2,), r"label_second.audio of changed.h5 has the shape \(\d+, 2\); .*are: audio 4\."),
    ],
)
def test_seconds_that_no_modality_has(
    run: Path, tmp_path: Path, name: str, shape: tuple[int, ...], sentence: str
) -> None:
    def change(file: h5py.File) -> None:
        for split in ("val", "a_train", "a_test"):
            if name in file[split]:
                del file[split][name]
            label(file[split], name, np.zeros((COUNTS[split], *shape)))

    with pytest.raises(InputError, match=sentence):
        evaluate(run, changed(tmp_path, change), EvaluateOptions(**QUICK))


def test_identifiers_are_no_classes(run: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        for split in ("val", "a_train", "a_test"):
            file[split]["label_id"] = np.arange(COUNTS[split]) * 1_000_000

    with pytest.raises(InputError, match=r"label_id of changed.h5 has 39,000,001 classes"):
        evaluate(run, changed(tmp_path, change), EvaluateOptions(**QUICK))


@pytest.mark.parametrize("clips", [1, 2, 4, 5, 11])
def test_held_out_clips_train_or_validate(clips: int) -> None:
    train, val = held_out(clips)
    assert len(train)
    assert len(val)
    assert sorted({*train, *val}) == list(range(clips))
    assert clips == 1 or not {*train} & {*val}
