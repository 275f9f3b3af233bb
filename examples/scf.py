"""Does the token-likelihood rotation (`scf`: ten steps towards the kept tokens' softmax likelihood) keep more tokens of residual
codebooks than `pca`? Printed by `python examples/scf.py` for three of four levels: it does not, so toc has no such criterion.

Rotations are chosen on every other row, a rotation per level, and all levels' agreement is measured on the rest. Legend: x (N, D)
rows that meet a level, e (K, D) its codes, t (N,) their tokens, P (D, D') the rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits

import toc_cli
from criteria import lloyd

SHARES = (0.5, 0.25, 0.125)
Array = np.ndarray


def tokens(x: Array, tables: Sequence[Array], rotations: Sequence[Array] | None = None) -> Array:
    """(N, L) tokens of the residual chain, of all dimensions or of the rotated ones, the dropped ones at the codes' mean."""
    found = []
    for level, e in enumerate(tables):
        mean = e.mean(0)
        turn = np.eye(len(mean)) if rotations is None else rotations[level]
        near = ((((x - mean) @ turn)[:, None] - ((e - mean) @ turn)[None]) ** 2).sum(-1).argmin(1)
        x = x - (mean + (e - mean) @ turn @ turn.T)[near]
        found.append(near)
    return np.stack(found, 1)


def leading(symmetric: Array, size: int) -> Array:
    """(D, D') eigenvectors of the largest eigenvalues."""
    return np.linalg.eigh(symmetric)[1][:, ::-1][:, :size]


def pca(x: Array, e: Array, t: Array, size: int) -> Array:
    weight = np.bincount(t, minlength=len(e)) / len(t)
    centred = e - weight @ e
    return leading(centred.T @ (centred * weight[:, None]), size)


def scf(x: Array, e: Array, t: Array, size: int) -> Array:
    """Frank-Wolfe on the likelihood of the tokens: softmax of -|P^T (x - e)|^2 over 0.6 times the trace of the error's scatter."""
    width = 0.6 * ((x - e[t]) ** 2).sum(1).mean()
    counts = np.bincount(t, minlength=len(e))
    turn, mean = pca(x, e, t, size), np.zeros((e.shape[1],) * 2)
    for step in range(10):
        scores = -(((x @ turn)[:, None] - (e @ turn)[None]) ** 2).sum(-1) / width
        likely = np.exp(scores - scores.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        pull = x.T @ (e[t] - likely @ e) / len(x)
        gradient = pull + pull.T + e.T @ (e * ((likely.sum(0) - counts) / len(x))[:, None])
        mean += (gradient - mean) * 2 / (step + 2)
        turn = leading(mean, size)
    return turn


def agreement(x: Array, tables: Sequence[Array], choose: Callable[..., Array], share: float) -> float:
    """Percent of the other half's tokens, of all levels, that stay."""
    whole = tokens(x, tables)
    own, rest, rotations = x[::2], x[1::2], []
    for level, e in enumerate(tables):
        t = whole[::2, level]
        rotations.append(choose(own, e, t, max(1, round(share * x.shape[1]))))
        own = own - e[t]
    return 100 * float((tokens(rest, tables, rotations) == whole[1::2]).mean())


def residual(x: Array, levels: int = 4) -> list[Array]:
    """Codes (64, D) of k-means on what each level leaves."""
    found, left = [], torch.from_numpy(x.astype(np.float32))
    for _ in range(levels):
        found.append(lloyd(left, 64))
        left = left - found[-1][toc_cli.quantize(left, found[-1])]
    return [e.double().numpy() for e in found]


def main() -> None:
    torch.set_num_threads(1)
    hidden = np.maximum(load_digits().data / 16 @ np.random.default_rng(0).standard_normal((64, 32)), 0)
    data = {"digits, hidden layer": hidden}
    for seed in (1, 2):
        draw = np.random.default_rng(seed)
        mixing = draw.standard_normal((24, 24)) * np.exp(-np.arange(24) / 8)
        data[f"gaussian {seed}"] = draw.standard_normal((4000, 24)) @ mixing
    print(f"{'agreement at ' + ' / '.join(f'{100 * s:g}' for s in SHARES) + ' %':32s}{'pca':>18s}{'scf':>18s}")
    for name, x in data.items():
        tables = residual(x)
        cells = [" ".join(f"{agreement(x, tables, choose, share):.1f}" for share in SHARES) for choose in (pca, scf)]
        print(f"{name:32s}" + "".join(f"{cell:>18s}" for cell in cells))


if __name__ == "__main__":
    main()
