"""Labelled clips and a run trained on them, small enough for tests: splits train, val, a_train, a_test, b_test."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from toc_cli.fcid.data import open_split
from toc_cli.fcid.run_folder import RunFolder
from toc_cli.fcid.train_config import run_config
from toc_cli.fcid.trainer import Trainer

SECONDS = 4
SHAPES = {"video": (SECONDS, 2, 2, 6), "audio": (SECONDS, 5), "text": (3, 4)}
COUNTS = {"train": 60, "val": 24, "a_train": 40, "a_test": 30, "b_test": 20}


def labelled_clips(path: Path, *, seed: int = 7, frames: bool = True, ragged: bool = False) -> Path:
    """Clips of video, audio and text that share one of three causes; seconds without it are background (3)."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for split, count in COUNTS.items():
            group = file.create_group(split)
            cause = rng.integers(0, 3, count)
            happens = rng.random((count, SECONDS)) < 0.7
            happens[:, 0] = True
            for name, shape in SHAPES.items():
                means = 2 * np.random.default_rng(len(name)).normal(size=(4, *shape[1:]))
                seconds = (
                    np.where(happens, cause[:, None], 3) if name != "text" else np.repeat(cause[:, None], 3, axis=1)
                )
                values = means[seconds] + 0.5 * rng.normal(size=(count, *shape))
                group.create_dataset(name, data=values.astype(np.float32), chunks=(4, *shape))
            group["caption"] = cause
            if frames:
                shades = np.array([50, 120, 190, 0])[np.where(happens, cause[:, None], 3)]
                group["frames"] = np.broadcast_to(shades[..., None, None], (count, SECONDS, 3, 3)).astype(np.uint8)
            if ragged:
                group["audio_length"] = rng.integers(1, SECONDS + 1, count)
                group["video_present"] = (rng.random(count) > 0.2).astype(np.int8)
            if split != "train":
                label(group, "label_clip", cause, classes=3)
                for name in ("audio", "video"):
                    seconds = np.where(happens, cause[:, None], 3)
                    label(group, f"label_second.{name}", seconds, classes=4, background=3)
    return path


def label(group: h5py.Group, name: str, values: np.ndarray, **attributes: int) -> None:
    group[name] = values.astype(np.int8)
    for key, value in attributes.items():
        group[name].attrs[key] = value


def trained(data: Path, folder: Path, epochs: int = 1, **model: object) -> Path:
    """A run of a few epochs, D=8, K=6; `model` are settings of the model, the rest is of its profile."""
    small = {"width": 8, "heads": 2, "codebook": {"size": 6}, **model}
    config = run_config(
        {"model": small, "train": {"epochs": epochs, "batch_size": 12, "lr": 3e-3, "schedule": "constant"}}
    )
    names = config.model.modalities
    splits = {name: open_split(data, name, names) for name in ("train", "val")}
    Trainer(config, splits["train"], RunFolder(folder), validation=splits["val"]).fit()
    return folder
