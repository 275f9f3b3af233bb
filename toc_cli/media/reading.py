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
from toc_cli.media.arrays import read_item
from toc_cli.media.listing import MediaFile, Mediakind

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


def read_media(file: MediaFile, kind: Mediakind, shape: Shape) -> np.ndarray:
    """A picture (C, H, W) or sound (C, T) as float32. InputError that names the file where it cannot be read or is too large.

    Items of arrays: bytes are pictures as a file holds them, floats are what the model reads, at its size and rate.
    """
    if file.item is not None:
        return (_picture_item if kind == "image" else _sound_item)(file, shape)
    return _image(file.path, shape) if kind == "image" else _sound(file.path, shape)


def _picture_item(file: MediaFile, shape: Shape) -> np.ndarray:
    values = read_item(file)
    if values.ndim == 3 and values.shape[0] not in (1, 3) and values.shape[-1] in (1, 3):
        values = values.transpose(2, 0, 1)
    values = values[None] if values.ndim == 2 else values
    if values.dtype == np.uint8 and len(values) in (1, 3):
        image = _pillow()[0]
        picture = image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
        return _fitted(picture.convert("L" if shape.channels == 1 else "RGB"), file.name, shape)
    if values.dtype.kind != "f" or len(values) != shape.channels:
        raise InputError(
            f"{printable(file.name)} is {values.dtype} {values.shape}; the model reads {shape.channels} channels.",
            "Give bytes (uint8) as a picture file holds them, or floats as the model reads them.",
        )
    if shape.resize is not None and shape.resize != min(values.shape[1:]):
        raise InputError(
            f"{printable(file.name)} holds floats, which are not resized.", "Leave out --resize, or give uint8."
        )
    left, top, width, height = _box((values.shape[2], values.shape[1]), file.name, shape)
    return _finite(values[:, top : top + height, left : left + width].astype(np.float32), file.name)


def _sound_item(file: MediaFile, shape: Shape) -> np.ndarray:
    values = read_item(file)
    if values.dtype.kind not in "fi":
        raise InputError(
            f"{printable(file.name)} is {values.dtype}: sound is floats, or whole numbers of 16 or 32 bits."
        )
    scale = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max) + 1
    values = (values.reshape(-1, values.shape[-1]) / scale).astype(np.float32)
    if shape.seconds is not None:
        values = values[:, : max(1, math.ceil(shape.seconds * shape.rate))]
    return _padded(_finite(_mixed(values, shape.channels), file.name), shape)


def _finite(values: np.ndarray, name: object) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(f"{printable(str(name))} holds NaN or Inf.")
    return values


def _padded(values: np.ndarray, shape: Shape) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, max(0, shape.least - values.shape[1]))))


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing_extra("Pillow", "images") from error
    return Image, ImageOps


def _image(path: Path, shape: Shape) -> np.ndarray:
    Image, ImageOps = _pillow()
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
    return _fitted(turned, str(path), shape)


def _fitted(turned: Any, name: str, shape: Shape) -> np.ndarray:
    """A picture of Pillow, resized and cropped, as float32 (C, H, W) about the mean."""
    if shape.resize is not None:
        ratio = shape.resize / min(turned.size)
        size = tuple(max(1, round(side * ratio)) for side in turned.size)
        turned = turned.resize((size[0], size[1]), _pillow()[0].Resampling.BICUBIC)
    left, top, width, height = _box(turned.size, name, shape)
    values = np.asarray(turned.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    mean, scale = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (shape.mean, shape.scale))
    return (pixels - mean) / scale


def _box(size: tuple[int, int], name: str, shape: Shape) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the centred part of a picture that is read. InputError where it is too small."""
    width, height = ((side // shape.factor) * shape.factor if shape.crop is None else shape.crop for side in size)
    if not width or not height or width > size[0] or height > size[1]:
        raise InputError(
            f"{printable(name)} has {size[0]} x {size[1]} pixels, too few for "
            f"{shape.crop or shape.factor} x {shape.crop or shape.factor}.",
            "--resize N scales the shorter side first.",
        )
    return (size[0] - width) // 2, (size[1] - height) // 2, width, height


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
    return _padded(_finite(values, path), shape)


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
