"""Pictures of what was generated, where the data has frames: for each generated second, the training frame whose features
lie nearest.

Legend: N clips, the first M with frames, T seconds, H x W pixels, F features of a second.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from toc_cli.errors import InputError
from toc_cli.fcid.data import Split
from toc_cli.fcid.evaluation.generation import Typical, seconds_of
from toc_cli.fcid.evaluation.sources import BATCH, TrainedModel
from toc_cli.io.names import printable
from toc_cli.ops.assign import assign

CLIPS = 4
SECONDS = 12
PIXELS = 64
"""Most clips, seconds of each, and pixels of a side, that a record holds."""


def frames_of(split: Split) -> h5py.Dataset | None:
    """The dataset `frames` (M, T, H, W) or (M, T, H, W, 3) of the first M <= N clips of a split."""
    if "frames" not in split.columns:
        return None
    frames = split.group["frames"]
    if (
        frames.ndim not in (4, 5)
        or not 0 < len(frames) <= len(split)
        or (frames.ndim == 5 and frames.shape[4] not in (1, 3))
    ):
        raise InputError(
            f"{printable(split.name)}/frames of {split.path.name} has the shape {frames.shape}.",
            "Frames are (clips, seconds, height, width), of all clips or of the first ones, or with 3 channels behind.",
        )
    return frames


def seen_modality(split: Split, names: Sequence[str]) -> str | None:
    """The modality that frames belong to: the first with positions, else `video`."""
    maps = [name for name in names if split.specs[name].spatial]
    return maps[0] if maps else "video" if "video" in names else None


def pictures(
    run: TrainedModel, train: Split, test: Split, shared: Mapping[str, Mapping[str, Tensor]], b: str, usual: Typical
) -> list[dict[str, Any]]:
    """The first clips of a test split: true frames, and those of training seconds nearest to what each modality's codes
    generate. `shared` holds vectors (N, T, D) per modality and side: `generated`, and `pruned` where codes were.
    """
    known, true = frames_of(train), frames_of(test)
    if known is None or true is None:
        return []
    count, seconds = min(CLIPS, len(true)), min(SECONDS, true.shape[1])
    rows = torch.cat([seconds_of(batch.x[b]) for batch in train.batches(BATCH)])[: len(known)]  # (M, T, F)
    flat = rows.flatten(0, 1).contiguous()

    def nearest(vectors: Tensor) -> np.ndarray:
        """(count, T) numbers of training seconds."""
        made = run.decode(b, vectors[:count], usual.expanded(count, vectors.shape[1]).to(run.device))
        return assign(seconds_of(made).flatten(0, 1).contiguous(), flat).reshape(count, -1).numpy()

    found = []
    for a, sides in shared.items():
        chosen = {side: nearest(vectors) for side, vectors in sides.items()}
        for clip in range(count):
            drawn = {"true": grey_or_colour(true[clip, :seconds])}
            for side, numbers in chosen.items():
                at = [divmod(int(row), rows.shape[1]) for row in numbers[clip, :seconds]]
                drawn[side] = grey_or_colour(np.stack([known[n, t] for n, t in at]))
            encoded = {side: base64.b64encode(values.tobytes()).decode() for side, values in drawn.items()}
            shape = list(drawn["true"].shape)
            found.append({"from": a, "to": b, "split": test.name, "clip": clip, "shape": shape, **encoded})
    return found


def grey_or_colour(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) or (T, H, W, 3) uint8 at most `PIXELS` wide; floats are stretched to 0..255."""
    step = -(-max(frames.shape[1:3]) // PIXELS)
    frames = frames[:, ::step, ::step]
    frames = frames[..., 0] if frames.ndim == 4 and frames.shape[3] == 1 else frames
    if frames.dtype == np.uint8:
        return np.ascontiguousarray(frames)
    values = np.nan_to_num(frames.astype(np.float64))
    low, high = values.min(), values.max()
    return np.round(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
