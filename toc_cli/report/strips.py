"""The pictures of an evaluation: true and generated frames of a clip, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toc_cli.errors import missing_extra
from toc_cli.report.evaluation import pair
from toc_cli.report.words import name as shown


@dataclass(frozen=True)
class Strip:
    """True and generated frames of one clip as PNG data URIs."""

    title: str
    images: tuple[tuple[str, str], ...]
    """Caption and address of each."""


def strips(record: Mapping[str, Any]) -> list[Strip]:
    """The pictures of what was generated."""
    found = []
    for picture in (record.get("evaluation") or {}).get("pictures", ()):
        sides = tuple((side, _png(frames(picture, side))) for side in ("true", "generated"))
        found.append(Strip(f"{pair(picture)}, clip {picture['clip']} of {shown(picture['split'])}", sides))
    return found


def frames(picture: Mapping[str, Any], side: str) -> np.ndarray:
    """(T, H, W) or (T, H, W, 3) uint8 of a picture's `true` or `generated` side."""
    values = np.frombuffer(base64.b64decode(picture[side], validate=True), np.uint8)
    return values.reshape(picture["shape"])


def _png(values: np.ndarray) -> str:
    """Seconds side by side, as a data URI."""
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise missing_extra("matplotlib", "report") from error
    row = np.concatenate(list(np.pad(values, [(0, 0), (0, 0), (0, 1), *[(0, 0)] * (values.ndim - 3)])), axis=1)
    buffer = io.BytesIO()
    imsave(buffer, row, format="png", cmap="gray", vmin=0, vmax=255)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
