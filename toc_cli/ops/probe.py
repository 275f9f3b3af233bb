"""How much of a label the codes of one modality tell about another: a linear probe in closed form.

Legend: N rows, V width of the code vectors, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from toc_cli.errors import InputError
from toc_cli.ops.linear import aligned, float64, matmul, one_thread

RIDGE = 1e-3
"""Penalty on the weights of standardised inputs, as a share of the rows."""


@dataclass(frozen=True)
class Probe:
    """One-against-all ridge regression to +1 and -1 on standardised vectors."""

    classes: np.ndarray  # (C,) int64 ascending
    weight: np.ndarray  # (V, C)
    bias: np.ndarray  # (C,)

    def predict(self, vectors: torch.Tensor) -> np.ndarray:
        """The class (N,) of each vector (N, V); ties to the smaller class."""
        return self.classes[(matmul(vectors, self.weight) + self.bias).argmax(axis=1)]


def fit(blocks: Iterable[tuple[torch.Tensor, np.ndarray]]) -> Probe:
    """Fit on blocks of code vectors (N, V) and integer labels (N,), read once. InputError under two classes."""
    count, shift, first, gram = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))
    by_class: dict[int, tuple[int, np.ndarray]] = {}
    for vectors, labels in blocks:
        x = float64(vectors)
        if not count:
            shift = x.sum(axis=0) / len(x)
            first, gram = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        x = x - shift
        count += len(x)
        first += x.sum(axis=0)
        gram += matmul(x.T, x)
        for label in np.unique(labels):
            own = x[labels == label]
            rows, total = by_class.get(int(label), (0, 0.0))
            by_class[int(label)] = rows + len(own), total + own.sum(axis=0)
    if len(by_class) < 2:
        raise InputError(f"The labels have {len(by_class)} class: a probe needs two.", "Leave the labels out.")
    probe = _solve(count, first, gram, dict(sorted(by_class.items())))
    return replace(probe, bias=probe.bias - np.einsum("v,vc->c", shift, probe.weight))


def _solve(count: int, first: np.ndarray, gram: np.ndarray, by_class: dict[int, tuple[int, np.ndarray]]) -> Probe:
    mean = first / count
    covariance = gram / count - np.outer(mean, mean)
    scale = np.sqrt(np.clip(np.diag(covariance), 0, None))
    # a constant column tells nothing and is left out
    scale = np.where(scale > 1e-9 * max(1e-300, float(scale.max())), scale, np.inf)
    share = np.array([rows / count for rows, _ in by_class.values()])  # (C,)
    moments = np.stack([total / count for _, total in by_class.values()], axis=1)  # (V, C): mean of x [label = c]
    target = 2 * (moments - np.outer(mean, share)) / scale[:, None]  # covariance with +-1 labels
    normal = covariance / np.outer(scale, scale) + RIDGE * np.eye(len(mean))
    with one_thread():
        weight = torch.linalg.solve(aligned(normal), aligned(target)).numpy() / scale[:, None]
    bias = 2 * share - 1 - np.einsum("v,vc->c", mean, weight)
    return Probe(np.array(list(by_class)), weight, bias)


def accuracy(correct: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Per class of labels (N,) the share of its rows that are `correct` (N,) bool."""
    return {int(label): float(correct[labels == label].mean()) for label in np.unique(labels)}
