"""Zero-shot retrieval: the clip vectors of one modality search those of another by cosine.

Legend: Q queries, N clips in the gallery, F dimensions. Codes tie clips, so all figures are expectations over a random
order of what ties: the one relevant clip of a group of n lies at its middle, (n + 1) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.data import Split
from toc_cli.fcid.evaluation.figures import Figure, Median, Ratio, share, summary
from toc_cli.fcid.evaluation.forms import FULL, Variant
from toc_cli.fcid.evaluation.reader import CodeReader
from toc_cli.fcid.evaluation.sources import shared_levels
from toc_cli.io.names import printable
from toc_cli.ops.linear import matmul, unit_rows

RANKS = (1, 5, 10)
QUERIES = 256
MOST_CLIPS = 2000
"""Of a split; a longer one is thinned evenly."""


@dataclass(frozen=True)
class Ranked:
    """Per query, (Q,) each."""

    first: np.ndarray
    """Expected rank, from 1, of the first relevant clip."""
    precision: np.ndarray
    """Expected average precision over all relevant clips."""


def rank(scores: np.ndarray, relevant: np.ndarray) -> Ranked:
    """Scores (Q, N), the higher the better, and which clips are right (Q, N) bool, one or more per query.

    In a group of n equal scores with r relevant clips behind b clips, the first relevant one is expected at
    b + (n + 1) / (r + 1); average precision over ties: McSherry and Najork, ECIR 2008.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    value, right = np.take_along_axis(scores, order, 1), np.take_along_axis(relevant, order, 1)
    at = np.arange(scores.shape[1])
    opens = np.concatenate([np.ones((len(value), 1), bool), value[:, 1:] != value[:, :-1]], axis=1)
    start = np.maximum.accumulate(np.where(opens, at, 0), axis=1)  # (Q, N): where the group of each place begins
    closes = np.concatenate([opens[:, 1:], np.ones((len(value), 1), bool)], axis=1)
    stop = np.minimum.accumulate(np.where(closes, at, at[-1])[:, ::-1], axis=1)[:, ::-1] + 1
    seen = np.concatenate([np.zeros((len(value), 1)), right.cumsum(axis=1)], axis=1)
    before = np.take_along_axis(seen, start, 1)  # relevant clips ahead of the group
    inside = np.take_along_axis(seen, stop, 1) - before
    size = stop - start
    hit = (inside > 0).argmax(axis=1)
    rows = np.arange(len(value))
    first = start[rows, hit] + (size[rows, hit] + 1) / (inside[rows, hit] + 1)
    place = at - start  # 0-based in the group
    others = np.divide((inside - 1) * place, size - 1, out=np.zeros(value.shape), where=size > 1)
    precision = inside / size * (before + others + 1) / (at + 1)
    return Ranked(first, precision.sum(axis=1) / right.sum(axis=1))


def cosines(queries: Tensor, gallery: Tensor) -> np.ndarray:
    """(Q, N) cosines of rows (Q, F) and (N, F); equal rows give equal scores to the last bit."""
    (q, q_at), (g, g_at) = (torch.unique(rows, dim=0, return_inverse=True) for rows in (queries, gallery))
    return matmul(unit_rows(q), unit_rows(g).T)[q_at.numpy()][:, g_at.numpy()]


def search(queries: Tensor, gallery: Tensor, groups: np.ndarray) -> Ranked:
    """Every row (N, F) of `queries` searches `gallery` (N, F); right are the clips of the same group (N,)."""
    scores = cosines(queries, gallery)
    parts = []
    for start in range(0, len(scores), QUERIES):
        rows = slice(start, start + QUERIES)
        parts.append(rank(scores[rows], groups[rows, None] == groups[None]))
    return Ranked(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "precision")))


def rank_figures(ranked: Sequence[Ranked]) -> dict[str, Figure]:
    """R@1, R@5, R@10, median rank and mAP over the draws of a variant."""
    first = np.stack([r.first for r in ranked])
    ones = np.ones_like(first)
    found: dict[str, Figure] = {
        f"r{k}": Ratio(np.stack([first <= k, ones], axis=-1).astype(np.float64), share) for k in RANKS
    }
    found["median_rank"] = Median(first)
    precision = np.stack([r.precision for r in ranked])
    return found | {"map": Ratio(np.stack([precision, ones], axis=-1), share)}


def groups_of(split: Split, relevance: str) -> tuple[np.ndarray, str]:
    """(N,) ids, equal where one clip is a right answer for the other (-1: left out), and what that rests on."""
    if relevance == "caption" and split.captions is None:
        raise InputError(f"Split {printable(split.name)!r} has no captions.", "Use --relevance clip.")
    if relevance in ("auto", "caption") and split.captions is not None:
        return split.captions, "caption"
    if relevance in ("auto", "clip"):
        return np.arange(len(split)), "clip"
    labels = split.label(relevance)
    if labels.ndim != 1:
        raise UsageError(f"--relevance {relevance!r} labels seconds.", "Use clip, caption, or a label of clips.")
    return labels, relevance


def entries(
    reader: CodeReader, split: Split, modalities: Sequence[str], variants: Sequence[Variant], relevance: str, seed: int
) -> list[dict[str, Any]]:
    """The record's rows of a split: every ordered pair of modalities, by codes and by continuous vectors."""
    groups, kind = groups_of(split, relevance)
    found = []
    for a in modalities:
        for b in modalities:
            levels = shared_levels(reader.source, a, b, "retrieved")
            if a == b or not levels:
                continue
            both = present(reader, split, a, levels) & present(reader, split, b, levels)
            rows = np.flatnonzero(both & (groups >= 0))
            rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_CLIPS)).round().astype(int)]
            if len(rows) < 2:
                continue
            for continuous in (False, True):
                own = [v for v in variants if not continuous or v.form != "slice"]
                results = _searched(reader, split, (a, b), levels, rows, groups, own, continuous, seed)
                head = {"from": a, "to": b, "split": split.name, "levels": list(levels), "clips": len(rows)}
                vectors = "continuous" if continuous else "codes"
                found.append(head | {"vectors": vectors, "relevance": kind, "results": results})
    return found


def present(reader: CodeReader, split: Split, modality: str, levels: Sequence[str]) -> np.ndarray:
    """(N,) bool: clips that have the modality."""
    return reader.readings(split, modality)[levels[0]].mask.any(dim=1).numpy()


def _searched(
    reader: CodeReader,
    split: Split,
    pair: tuple[str, str],
    levels: tuple[str, ...],
    rows: np.ndarray,
    groups: np.ndarray,
    variants: Sequence[Variant],
    continuous: bool,
    seed: int,
) -> dict[str, dict[str, Any]]:
    index, right = torch.from_numpy(rows), groups[rows]
    found: dict[str, Mapping[str, Figure]] = {}
    for variant in variants:
        ranked = []
        for forms in variant.draws:
            a, b = (reader.clip_vectors(split, name, levels, forms, continuous)[index] for name in pair)
            ranked.append(search(a, b, right))
        found[variant.id] = rank_figures(ranked)
    whole = found[FULL]
    return {
        id: {name: summary(own, None if id == FULL else whole[name], seed, len(rows)) for name, own in by_name.items()}
        for id, by_name in found.items()
    }
