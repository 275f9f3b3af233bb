"""One picture or sound as an array, at the size or rate that a codec reads.

Legend: C channels, H height, W width, T samples.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.errors import InputError, missing_extra
from toc_cli.io.names import printable
from toc_cli.media.listing import Mediakind

MOST_PIXELS = 64_000_000
MOST_SECONDS = 3600.0
"""A file that is larger is taken for a bomb; --crop, --resize and --seconds do not help, because it would be decoded first."""


@dataclass(frozen=True)
class Shape:
    """What a codec reads: its channels, and how a file is brought to its size."""

    channels: int
    resize: int | None = None
    """Pictures: the shorter side after scaling; None: as it is."""
    crop: int | None = None
    """Pictures: the side of a centred square that is cut out; None: the largest whole multiple of `factor`."""
    factor: int = 1
    """Pictures: height and width are whole multiples of this."""
    mean: tuple[float, ...] = (0.5,)
    scale: tuple[float, ...] = (0.5,)
    """Pictures: (value in 0 … 1 - mean) / scale, per channel."""
    rate: int = 0
    """Sound: samples a second."""
    seconds: float | None = None
    """Sound: no more than that from its beginning."""
    least: int = 1
    """Sound: samples that the codec needs; shorter ones are padded with silence."""


def read_media(path: Path, kind: Mediakind, shape: Shape) -> np.ndarray:
    """A picture (C, H, W) or sound (C, T) as float32. InputError that names the file where it cannot be read or is too large."""
    return _image(path, shape) if kind == "image" else _sound(path, shape)


def _image(path: Path, shape: Shape) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing_extra("Pillow", "images") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise InputError(
                        f"{printable(path)} claims {picture.width} x {picture.height} pixels, more than {MOST_PIXELS:,}.",
                        "Scale it down first.",
                    )
                turned = ImageOps.exif_transpose(picture).convert("L" if shape.channels == 1 else "RGB")
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise InputError(f"{printable(path)} is no readable picture: {printable(error)}.") from None
    if shape.resize is not None:
        ratio = shape.resize / min(turned.size)
        size = tuple(max(1, round(side * ratio)) for side in turned.size)
        turned = turned.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    width, height = (
        (side // shape.factor) * shape.factor if shape.crop is None else shape.crop for side in turned.size
    )
    if not width or not height or width > turned.width or height > turned.height:
        raise InputError(
            f"{printable(path)} has {turned.width} x {turned.height} pixels, too few for "
            f"{shape.crop or shape.factor} x {shape.crop or shape.factor}.",
            "--resize N scales the shorter side first.",
        )
    left, top = (turned.width - width) // 2, (turned.height - height) // 2
    values = np.asarray(turned.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    mean, scale = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (shape.mean, shape.scale))
    return (pixels - mean) / scale


def _sound(path: Path, shape: Shape) -> np.ndarray:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise missing_extra("soundfile", "sound") from error
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = int(file.samplerate), int(file.frames)
            wanted = shape.seconds if shape.seconds is not None else MOST_SECONDS
            if shape.seconds is None and frames > MOST_SECONDS * rate:
                raise InputError(
                    f"{printable(path)} lasts {frames / rate:,.0f} seconds.", "--seconds N takes its beginning."
                )
            values = file.read(min(frames, math.ceil(wanted * rate)), dtype="float32", always_2d=True).T
    except InputError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{printable(path)} is no readable sound: {printable(error)}.") from None
    if not values.size:
        raise InputError(f"{printable(path)} is silent: it has no samples.")
    values = resampled(_mixed(values, shape.channels), rate, shape.rate)
    if not np.isfinite(values).all():
        raise InputError(f"{printable(path)} holds NaN or Inf.")
    return np.pad(values, ((0, 0), (0, max(0, shape.least - values.shape[1]))))


def _mixed(values: np.ndarray, channels: int) -> np.ndarray:
    """(C, T) in as many channels as are wanted: the mean of all, or the first ones, one repeated."""
    if channels == 1:
        return values.mean(axis=0, keepdims=True)
    return np.repeat(values, channels, axis=0) if len(values) == 1 else values[:channels]


def resampled(values: np.ndarray, before: int, after: int) -> np.ndarray:
    """(C, T) at another rate, by a polyphase filter; float32."""
    if before == after:
        return values
    from scipy.signal import resample_poly

    common = math.gcd(before, after)
    changed: Any = resample_poly(values.astype(np.float64), after // common, before // common, axis=1)
    return changed.astype(np.float32)
