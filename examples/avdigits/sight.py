"""What AV-Digits shows: real handwritten digits, turned and shifted among strokes and noise, and what edge filters see of it.

A frame is 16 x 16 grey values, 0..255. Its features are sums of sixteen edge filters over a 4 x 4 grid, in integers throughout.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.signal import convolve2d

SIDE, CELLS, FILTERS = 16, 4, 16


def draw_digit(image: NDArray[np.float64], near: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """An 8 x 8 digit (0..16) on the 16 x 16 canvas, (0..1): turned, sheared, shifted, large where near and small where far."""
    turn, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2)
    size = rng.uniform(1.5, 1.9) if near else rng.uniform(0.95, 1.25)
    forward = size * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, shear], [0, 1]]
    back = np.linalg.inv(forward)
    room = max(0.0, (SIDE - 8 * size) / 2)
    centre = (SIDE - 1) / 2 + rng.uniform(-room, room, 2)
    return affine_transform(image / 16, back, offset=3.5 - back @ centre, output_shape=(SIDE, SIDE), order=1)


def draw_frame(digit: NDArray[np.float64] | None, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One second, (16, 16): the digit if there is one, one or two strokes of clutter, and noise of that standard deviation."""
    canvas = np.zeros((SIDE, SIDE)) if digit is None else digit.copy()
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    for _ in range(rng.integers(1, 3)):
        (y, x), angle, half = rng.uniform(0, SIDE, 2), rng.uniform(0, np.pi), rng.uniform(1.5, 4)
        along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
        across = (columns - x) * np.sin(angle) - (rows - y) * np.cos(angle)
        stroke = np.clip(1.5 - np.abs(across), 0, 1) * np.clip(half + 0.5 - np.abs(along), 0, 1)
        canvas = np.maximum(canvas, 0.6 * stroke)
    canvas = canvas + rng.normal(0, noise, canvas.shape)
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


def edge_filters() -> NDArray[np.int64]:
    """(16, 5, 5): derivatives of a Gaussian in sixteen directions, rounded to integers."""
    y, x = np.mgrid[-2:3, -2:3]
    bell = np.exp(-(x**2 + y**2) / 2.5)
    turns = 2 * np.pi * np.arange(FILTERS) / FILTERS
    return np.rint([20 * bell * (x * np.cos(turn) + y * np.sin(turn)) for turn in turns]).astype(np.int64)


def see(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Frames (L, 16, 16) to (L, 4, 4, 16): each filter's response above zero, summed over each 4 x 4 cell."""
    padded = np.pad(frames.astype(np.int64), ((0, 0), (2, 2), (2, 2))).reshape(
        -1, SIDE + 4
    )  # below one another, each with a margin
    seen = np.empty((len(frames), CELLS, CELLS, FILTERS), np.int64)
    for at, kernel in enumerate(edge_filters()):
        full = convolve2d(padded, kernel, mode="same").reshape(len(frames), SIDE + 4, SIDE + 4)[:, 2:-2, 2:-2]
        cells = np.maximum(full, 0).reshape(len(frames), CELLS, SIDE // CELLS, CELLS, SIDE // CELLS)
        seen[..., at] = cells.sum(axis=(2, 4))
    return seen
