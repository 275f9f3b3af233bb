"""Pictures and sound that lie as arrays in a file: (N, C, H, W), (N, H, W, C) or (N, H, W); (N, C, T) or (N, T).

Legend: N items, C channels, H height, W width, T samples.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.features import Features, Part, open_features
from toc_cli.io.features.source import Opened
from toc_cli.io.names import printable
from toc_cli.media.listing import MediaFile, Mediakind, spread_over

AXES = {"image": (3, 4), "sound": (2, 3)}
"""Numbers of axes of arrays of pictures and of sound."""
MOST_BYTES = 1 << 30


def list_arrays(path: str | Path, kind: Mediakind, *, limit: int | None = None) -> list[MediaFile]:
    """Every item of every array of pictures or sound in a file; `limit` takes that many, spread evenly.

    Labels are those of an integer array `label` with one number per item. InputError where there is no such array.
    """
    features = _opened(str(path))
    found: list[MediaFile] = []
    for part in _parts(features):
        shape = part.source.shape
        if len(shape) not in AXES[kind] or not all(shape):
            continue
        labels = _labels(features, shape[0])
        name = part.key or Path(part.path).stem
        found += [
            MediaFile(Path(path), f"{name}[{at}]", None if labels is None else str(labels[at]), (part.key, at))
            for at in range(shape[0])
        ]
    if not found:
        listed = ", ".join(
            f"{printable(part.key or '(only array)', 60)} {part.source.shape}" for part in _parts(features)[:4]
        )
        wanted = "(N, C, H, W), (N, H, W, C) or (N, H, W)" if kind == "image" else "(N, C, T) or (N, T)"
        raise InputError(
            f"{printable(path)} holds no array of {'pictures' if kind == 'image' else 'sound'}, {wanted}: there is {listed or 'none'}.",
            "Features that were captured go to --features of toc optimize as they are.",
        )
    return spread_over(found, limit)


def read_item(file: MediaFile) -> np.ndarray:
    """One item as it is stored. InputError where it cannot be read, or is larger than MOST_BYTES."""
    assert file.item is not None
    key, at = file.item
    part = next(part for part in _parts(_opened(str(file.path))) if part.key == key)
    size = part.source.shape[1:]
    count = int(np.prod(size[:-1], dtype=np.int64))
    if count * size[-1] * part.source.dtype.itemsize > MOST_BYTES:
        raise InputError(f"{printable(file.name)} has shape {size}: more than {MOST_BYTES >> 20:,} MiB.")
    out = np.empty((count, size[-1]), part.dtype)
    with Opened(1 << 24) as opened:
        part.source.reader(len(size), opened).read(at * count, (at + 1) * count, out)
    return out.reshape(size)


@lru_cache(maxsize=2)
def _opened(path: str) -> Features:
    return open_features(path)


def _parts(features: Features) -> list[Part]:
    return [part for stream in features.datasets.values() for part in stream.parts]


def _labels(features: Features, count: int) -> Any:
    for labels in features.labels.values():
        if labels.shape == (count,):
            return labels.read()
    return None
