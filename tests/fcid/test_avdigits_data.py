"""The bundled AV-Digits: what a data set must be, as the data room reads it, and that its builder gives these very arrays."""

from __future__ import annotations

import importlib
import shutil
from itertools import combinations

import h5py
import numpy as np
import pytest

from conftest import ROOT
from toc_cli.demo import AVDIGITS
from toc_cli.fcid.data import open_split, split_names

LABELLED = ("val", "ave_train", "ave_test", "avvp_train", "avvp_val", "avvp_test", "other_test")


def test_it_ships_small_and_says_where_it_comes_from() -> None:
    assert AVDIGITS.stat().st_size <= 8e6
    with h5py.File(AVDIGITS) as file:
        for source in ("10.24432/C50P49", "CC BY 4.0", "BSD-3-Clause", "espeak-ng"):
            assert source in file.attrs["sources"]
        assert {line.split()[0] for line in file.attrs["versions"]} == {"numpy", "scipy", "sklearn", "python"}


def test_every_split_is_read() -> None:
    assert set(split_names(AVDIGITS)) == {"train", *LABELLED}
    clips = {name: len(open_split(AVDIGITS, name)) for name in split_names(AVDIGITS)}
    assert clips["ave_test"] >= 1000
    assert clips["val"] >= 500
    assert open_split(AVDIGITS, "train").label_names == []
    for name in LABELLED:
        split = open_split(AVDIGITS, name)
        batch = split.read(np.arange(3))
        assert {key: tuple(value.shape[1:]) for key, value in batch.x.items()} == {
            "video": (10, 4, 4, 16), "audio": (10, 128), "text": (10, 64)
        }  # fmt: skip
        assert np.array_equal(split.label("label_clip") >= 0, np.full(len(split), not name.startswith("avvp")))
        seen, heard = (split.label(f"label_second.{key}") for key in ("video", "audio"))
        agree = (seen == heard).mean()
        assert 0.8 < agree < 0.9 if name.startswith("avvp") else 0.93 < agree < 0.97
    split = open_split(AVDIGITS, "val")
    digit, attribute = split.label("label_clip"), split.label("label_attribute")
    assert np.array_equal(attribute % 10, digit)
    assert np.bincount(attribute).min() >= 10


def test_training_features_are_standard() -> None:
    with h5py.File(AVDIGITS) as file:
        for name in ("video", "audio"):
            values = file["train"][name][:] / file["train"][name].attrs["scale"]
            axes = tuple(range(values.ndim - 1))
            assert np.abs(values.mean(axis=axes)).max() < 0.12  # rounded to half a standard deviation
            assert np.abs(values.std(axis=axes) - 1).max() < 0.05


def test_parts_share_no_digit_and_no_voice() -> None:
    parts = {
        "train": ("train", "ave_train", "avvp_train"),
        "val": ("val", "avvp_val"),
        "test": ("ave_test", "avvp_test"),
    }
    parts["other"] = ("other_test",)
    with h5py.File(AVDIGITS) as file:
        for what in ("image", "voice"):
            used = {
                part: set(np.concatenate([file[name][what][:].ravel() for name in names])) - {-1}
                for part, names in parts.items()
            }
            for one, two in combinations(used.values(), 2):
                assert len(one) > 5
                assert not one & two


def test_frames_and_sound_can_be_looked_at_and_heard() -> None:
    with h5py.File(AVDIGITS) as file:
        for name in LABELLED:
            frames, sound = file[name]["frames"][:], file[name]["waveform"][:]
            shown = file[name]["label_second.video"][: len(frames)] < 10
            assert frames.dtype == np.uint8
            assert frames[shown].mean() > 1.3 * frames[~shown].mean()
            assert sound.shape[1] == 10 * file[name]["waveform"].attrs["rate"]
            assert np.abs(sound).max() == 127


def test_the_builder_gives_these_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (test-libs)")
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not here: apt-get install espeak-ng")
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "avdigits"))
    build, speech = (importlib.import_module(name) for name in ("build", "speech"))
    with h5py.File(AVDIGITS) as file:
        made_with = file.attrs["espeak-ng"]
        if speech.version() != made_with:
            pytest.skip(f"the arrays were made with espeak-ng {made_with}, here is {speech.version()}")
        builder = build.Builder()
        assert builder.voices == list(file.attrs["voices"])
        for name in build.PLANS:
            for key, values in builder.split(name, most=8).items():
                if key not in file[name]:
                    assert name == "train"
                    continue
                if key in ("video", "audio"):
                    values = build.standardise(values, file[f"{key}_mean"][:], file[f"{key}_deviation"][:])
                assert np.array_equal(values, file[name][key][: len(values)]), (name, key)
