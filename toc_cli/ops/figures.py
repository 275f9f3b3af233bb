"""What a report draws of one level and head, aggregated: bounded whatever the codebook, so that the record is enough.

Legend: K codes, D dimensions, D' kept dimensions, P points (at most POINTS), C codes shown or sampled.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch

from toc_cli.ops.linear import Array, eigh, float64, matmul, unit_rows

POINTS = 256
HEAT_CODES = 192
MAP_CODES = 512
SPECTRUM_CODES = 8192
WIDE = 1024
LEAST_SINGULAR = 1e-7  # share of the largest below which a singular value got from a Gram matrix is only rounding


def figures(before: Array, after: Array, usage_before: Array, usage_after: Array | None = None) -> dict[str, Any]:
    """All pictures of codes `before` (K, D) and `after` (K, D'), and of how often features choose them (K,).

    JSON-able, deterministic whatever the thread count; about 80 kB as JSON at most.
    """
    codes = len(before)
    by_usage = np.argsort(-_counts(usage_before), kind="stable")
    measured = even(by_usage, _measured(before.shape[1]))
    heat, shown = even(by_usage, HEAT_CODES), even(by_usage, MAP_CODES)
    mean, values, axes = principal(float64(before[measured]))
    return {
        "rank_frequency": rank_frequency(usage_before, usage_after),
        "spectrum": {
            "codes": len(measured),
            "of": codes,
            "before": _thinned(values * np.sqrt(codes / len(measured))),
            "after": _thinned(principal(float64(after[measured]))[1] * np.sqrt(codes / len(measured))),
        },
        "cosine": {"of": codes, **cosine(float64(before[heat]), float64(after[heat]))},
        "pca_map": {
            "of": codes,
            "usage": _counts(usage_before)[shown].tolist(),
            **pca_map(float64(before[shown]) - mean, values, axes),
        },
    }


def _measured(dim: int) -> int:
    """Codes of which a spectrum is drawn: more than D, or few enough that their own Gram matrix is small."""
    return max(SPECTRUM_CODES, 4 * dim) if dim <= WIDE else WIDE


def even(order: np.ndarray, most: int) -> np.ndarray:
    """At most `most` entries of `order`, evenly spaced, the first and the last among them."""
    return order[_even_positions(len(order), most)]


def rank_frequency(before: Array, after: Array | None) -> dict[str, Any]:
    """Counts of the codes by falling usage at log-spaced ranks (P,), and how many codes are used at all."""
    ranks = np.unique(np.rint(np.geomspace(1, len(before), POINTS)).astype(np.int64))
    result: dict[str, Any] = {"ranks": ranks.tolist(), "codes": len(before)}
    for name, usage in (("before", before), ("after", after)):
        counts = None if usage is None else np.sort(_counts(usage))[::-1]
        result[name] = None if counts is None else counts[ranks - 1].tolist()
        result[f"used_{name}"] = None if counts is None else int(np.count_nonzero(counts))
    return result


def principal(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of codes (C, D): mean (D,), singular values of the centred codes, descending, and two leading axes (D, 2 or 1).

    Each axis' largest loading is positive.
    """
    mean = codes.mean(axis=0)
    centred = codes - mean
    wide = centred.shape[0] < centred.shape[1]
    values, vectors = eigh(matmul(centred, centred.T) if wide else matmul(centred.T, centred))
    axes = unit_rows(matmul(centred.T, vectors[:, :2]).T).T if wide else vectors[:, :2]
    sign = np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1.0, 1.0)
    return mean, np.sqrt(values.clip(min=0)), axes * sign


def cosine(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Cosine between every two codes (C, D) and (C, D'), both in the order of clustering the codes before.

    The strict upper triangle, row by row, one byte each: round(127 * cosine) + 128, in base64.
    """
    unit = unit_rows(before)
    order = _clustered(unit)
    return {"codes": len(order), "before": _triangle(unit[order]), "after": _triangle(unit_rows(after)[order])}


def pca_map(centred: np.ndarray, values: np.ndarray, axes: np.ndarray) -> dict[str, Any]:
    """Coordinates of the centred codes (C, D) on the two leading axes, and the share of variance on each."""
    energy = float((values**2).sum())
    columns = [[_digits(value, 4) for value in column] for column in matmul(centred, axes).T]
    return {
        "codes": len(centred),
        "x": columns[0],
        "y": columns[1] if len(columns) > 1 else [0.0] * len(centred),
        "share": [_digits(float(value) ** 2 / energy, 4) if energy > 0 else 0.0 for value in values[:2]],
    }


def _counts(usage: Array) -> np.ndarray:
    return usage.cpu().numpy() if isinstance(usage, torch.Tensor) else np.asarray(usage)


def _even_positions(count: int, most: int) -> np.ndarray:
    if count == 0:
        return np.zeros(0, np.int64)
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(np.int64))


def _thinned(values: np.ndarray) -> dict[str, list[Any]]:
    """At most P of the singular values, with their ranks from 1; those that are only rounding are left out."""
    values = values[values > LEAST_SINGULAR * values[0]]
    index = _even_positions(len(values), POINTS)
    return {"rank": (index + 1).tolist(), "value": [_digits(value, 5) for value in values[index]]}


def _clustered(unit: np.ndarray) -> np.ndarray:
    """The order (C,) of average-linkage clustering by cosine distance, neighbours put side by side."""
    if len(unit) < 3:
        return np.arange(len(unit))
    distance = (1.0 - matmul(unit, unit.T)).clip(min=0)
    from scipy.cluster.hierarchy import leaves_list, linkage  # a fifth of a second that only drawing needs

    return leaves_list(linkage(distance[np.triu_indices(len(unit), 1)], method="average", optimal_ordering=True))


def _triangle(unit: np.ndarray) -> str:
    values = matmul(unit, unit.T)[np.triu_indices(len(unit), 1)].clip(-1, 1)
    return base64.b64encode((np.rint(values * 127) + 128).astype(np.uint8).tobytes()).decode()


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
