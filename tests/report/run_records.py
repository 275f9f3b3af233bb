"""Run records for the tests of the report: every number computed from a synthetic codebook and features, none typed in.

Legend: K codes, D dimensions, D' kept, N features per modality, L levels.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from toc_cli.ops.figures import figures

BLOCK = 50
RESAMPLES = 200


def build_record(
    *,
    codes: int = 48,
    dim: int = 24,
    keep: float = 0.5,
    levels: int = 1,
    modalities: tuple[str, ...] = ("audio", "video"),
    rows: int = 600,
    key: str = "quantizer.codebook",
    criterion: str = "toc",
    sweep: bool = True,
    dead: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """A record as `toc optimize` writes it, for a residual quantiser of `levels` levels and paired modalities."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(3, 0.05, dim)[rng.permutation(dim)]
    books = [rng.normal(0, 1, (codes, dim)) * scale / (level + 1) + 0.3 * scale for level in range(levels)]
    for book in books:
        book[:, :dead] = 0.25
    truth = rng.integers(0, codes, rows)
    x = {m: books[0][truth] + rng.normal(0, 0.5, (rows, dim)) * scale for m in modalities}
    kept_dim = max(1, int(keep * dim + 0.5))
    score, similarity, variance = _scores(books)
    order = np.argsort(-score, kind="stable")
    selections = {"toc": order, "variance": np.argsort(-variance, kind="stable")}
    pooled = np.concatenate(list(x.values()))

    chosen = _measure(books, pooled, np.sort(selections[criterion][:kept_dim]))
    random = [_measure(books, pooled, np.sort(rng.permutation(dim)[:kept_dim])) for _ in range(5)]
    baselines = {
        "random": {name: _spread([r["after"][name] for r in random]) for name in BASELINE},
        "variance": _pick(_measure(books, pooled, np.sort(selections["variance"][:kept_dim]))["after"]),
        "pca": _pick(_pca(books, pooled, kept_dim)),
    }
    parts = {m: _measure(books, rows_of, np.sort(selections[criterion][:kept_dim])) for m, rows_of in x.items()}
    alone = {m: np.sort(np.argsort(-_alone(books, x[m]), kind="stable")[:kept_dim]) for m in modalities}
    book = {
        "id": 0,
        "key": key,
        "keys": [[key if levels == 1 else f"{key}.{level}"] for level in range(levels)],
        "family": "synthetic",
        "metric": "euclidean",
        "dtype": "float32",
        "levels": levels,
        "heads": 1,
        "num_codes": [codes] * levels,
        "dim": dim,
        "kept_dim": kept_dim,
        "residual": levels > 1,
        "projection": None,
        "rotation": False,
        "fill": "mean",
        "kept": [[np.sort(selections[criterion][:kept_dim]).tolist()]],
        "order": [[order.tolist()]],
        "score": [[score.tolist()]],
        "similarity": [[similarity.tolist()]],
        "variance": [[variance.tolist()]],
        "sample": {"rows": len(pooled), "evaluated": len(pooled), "blocks": len(pooled) // BLOCK, "rarefied": len(pooled) < 10 * codes},
        "before": {**chosen["before"], "code_agreement": None, "js_bits": None},
        "after": {**chosen["after"], "code_agreement": None, "js_bits": None},
        "ci95": chosen["ci95"],
        "baselines": baselines,
        "advantage_over_random": {
            "distortion": _advantage([r["excess"] for r in random], chosen["excess"], +1),
            "agreement": _advantage([r["same"] for r in random], chosen["same"], -1),
        },
        "stability": _stability(books, order, kept_dim, rng),
        "dead_dimensions": int((variance < 1e-6 * variance.max()).sum()),
        "constant_dimensions": np.flatnonzero(variance == 0).tolist(),
        "modality_agreement": None,
        "sweep": _sweep(books, pooled, selections, rng) if sweep else None,
        "probe": None,
        "figures": [
            {"level": level, "head": 0, **figures(books[level], books[level][:, order[:kept_dim]], *chosen["usage"][level])}
            for level in range(min(levels, 8))
        ],
    }  # fmt: skip
    if levels > 1:
        book["per_level"] = [
            {"level": level, "before": before, "after": after} for level, (before, after) in enumerate(chosen["levels"])
        ]
    if len(modalities) > 1:
        _add_modalities(book, parts, alone, modalities, rows)
    return _wrap(book, criterion, keep, modalities, rows)


BASELINE = ("token_agreement", "excess_distortion", "snr_db", "distortion")


def _wrap(book: dict[str, Any], criterion: str, keep: float, modalities: tuple[str, ...], rows: int) -> dict[str, Any]:
    digest = hashlib.sha256(book["key"].encode()).hexdigest()
    return {
        "schema_version": 2,
        "tool": {"name": "toc", "version": "0.1.0"},
        "inputs": [
            {"role": "checkpoint", "name": "model.safetensors", "bytes": 4 * book["dim"] * book["num_codes"][0], "sha256": digest},
            {"role": "features", "name": "feats.h5", "bytes": 4 * book["dim"] * rows * len(modalities), "sha256": digest[::-1]},
        ],
        "options": {"keep": str(keep), "criterion": criterion, "weights": [0.7, 0.3], "normalize": "none", "seed": 0, "metric": None,
                    "emit": ["codebook"], "modalities": list(modalities)},
        "outputs": [{"mode": "codebook", "name": "model.toc.safetensors", "bytes": book["after"]["bytes"] + 640, "sha256": digest}],
        "warnings": [],
        "codebooks": [book],
        "timing": {},
    }  # fmt: skip


def _scores(books: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    variance = np.mean([book.var(axis=0, ddof=1) for book in books], axis=0)
    similarity = np.mean([book.mean(axis=0) ** 2 - book.var(axis=0, ddof=1) / len(book) for book in books], axis=0)
    return 0.3 * variance - 0.7 * similarity, similarity, variance


def _alone(books: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    p = np.bincount(_nearest(x, books[0]), minlength=len(books[0])) / len(x)
    mean = p @ books[0]
    return p @ (books[0] - mean) ** 2


def _nearest(x: np.ndarray, book: np.ndarray) -> np.ndarray:
    return (((x * x).sum(1)[:, None] - 2 * x @ book.T) + (book * book).sum(1)).argmin(axis=1)


def _quantise(
    x: np.ndarray, books: list[np.ndarray], kept: np.ndarray | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens per level and the running reconstruction after each level."""
    total, tokens, sums = np.zeros_like(x), [], []
    for level, book in enumerate(books):
        table = book
        if kept is not None:
            table = np.tile(book.mean(axis=0) if level == 0 else np.zeros(book.shape[1]), (len(book), 1))
            table[:, kept] = book[:, kept]
        tokens.append(_nearest(x - total, table))
        total = total + table[tokens[-1]]
        sums.append(total)
    return tokens, sums


def _measure(books: list[np.ndarray], x: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Everything about one selection: M before and after, intervals, usage and per-row terms."""
    old, old_sums = _quantise(x, books, None)
    new, new_sums = _quantise(x, books, kept)
    error = {"before": ((x - old_sums[-1]) ** 2).sum(1), "after": ((x - new_sums[-1]) ** 2).sum(1)}
    same = np.mean([a == b for a, b in zip(old, new, strict=True)], axis=0)
    signal = ((x - x.mean(axis=0)) ** 2).sum(1).mean()
    sides: dict[str, Any] = {}
    for side, tokens in (("before", old), ("after", new)):
        tables = books if side == "before" else [book[:, kept] for book in books]
        sides[side] = {
            "distortion": error[side].mean(),
            "snr_db": 10 * np.log10(signal / error[side].mean()),
            "near_tie_rate": 0.0,
            **_usage(tokens, len(books[0])),
            **_geometry(tables),
            "bytes": 4 * tables[0].size * len(tables),
        }
    sides["after"] |= {
        "token_agreement": same.mean(),
        "excess_distortion": error["after"].mean() / error["before"].mean() - 1,
    }
    levels = [
        ({"snr_db": _snr(signal, x, old_sums[i]), **_usage([old[i]], len(books[0]))},
         {"snr_db": _snr(signal, x, new_sums[i]), **_usage([new[i]], len(books[0])),
          "token_agreement": float((old[i] == new[i]).mean()),
          "excess_distortion": float(((x - new_sums[i]) ** 2).sum() / ((x - old_sums[i]) ** 2).sum() - 1)})
        for i in range(len(books))
    ]  # fmt: skip
    usage = [tuple(np.bincount(t[level], minlength=len(books[0])) for t in (old, new)) for level in range(len(books))]
    return {
        "before": _plain(sides["before"]), "after": _plain(sides["after"]), "levels": [(_plain(a), _plain(b)) for a, b in levels],
        "same": same, "excess": error["after"] / error["before"].mean(), "usage": usage, "ci95": _intervals(error, same),
    }  # fmt: skip


def _snr(signal: float, x: np.ndarray, total: np.ndarray) -> float:
    return float(10 * np.log10(signal / ((x - total) ** 2).sum(1).mean()))


def _usage(tokens: list[np.ndarray], codes: int) -> dict[str, float]:
    counts = np.stack([np.bincount(t, minlength=codes) for t in tokens])
    p = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1).mean()
    used = int((counts > 0).sum())
    return {
        "used_codes": used,
        "dead_codes": counts.size - used,
        "perplexity": np.exp(entropy),
        "entropy": entropy / np.log(codes),
    }


def _geometry(tables: list[np.ndarray]) -> dict[str, float]:
    cosines, closest, ranks = [], [], []
    for table in tables:
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        off = ~np.eye(len(table), dtype=bool)
        cosines.append((unit @ unit.T)[off].mean())
        closest.append(np.sqrt((((table[:, None] - table[None]) ** 2).sum(2))[off].min()))
        values = np.linalg.svd(table - table.mean(axis=0), compute_uv=False)
        p = values[values > 0] / values.sum()
        ranks.append(np.exp(-(p * np.log(p)).sum()))
    return {"mean_cosine": np.mean(cosines), "min_distance": min(closest), "effective_rank": np.mean(ranks)}


def _resample(count: int) -> np.ndarray:
    """Block indices (RESAMPLES, blocks), seeded."""
    return np.random.default_rng(7).integers(0, count, (RESAMPLES, count))


def _blocks(values: np.ndarray) -> np.ndarray:
    return values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)


def _intervals(error: dict[str, np.ndarray], same: np.ndarray) -> dict[str, Any]:
    before, after, agree = _blocks(error["before"]), _blocks(error["after"]), _blocks(same)
    draws = _resample(len(agree))
    old, new = before[draws].mean(axis=1), after[draws].mean(axis=1)
    return {
        "before": {"distortion": _percentiles(old)},
        "after": {
            "token_agreement": _percentiles(agree[draws].mean(axis=1)),
            "excess_distortion": _percentiles(new / old - 1),
            "distortion": _percentiles(new),
        },
    }


def _percentiles(draws: np.ndarray) -> list[float]:
    return np.percentile(draws, [2.5, 97.5]).tolist()


def _advantage(random: list[np.ndarray], chosen: np.ndarray, sign: int) -> dict[str, Any]:
    blocks = _blocks(sign * (np.mean(random, axis=0) - chosen))
    draws = blocks[_resample(len(blocks))].mean(axis=1)
    return {"value": float(blocks.mean()), "ci95": _percentiles(draws)}


def _spread(found: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(found)), "min": min(found), "max": max(found), "seeds": len(found)}


def _pick(block: dict[str, Any]) -> dict[str, Any]:
    return {name: block[name] for name in BASELINE}


def _pca(books: list[np.ndarray], x: np.ndarray, kept_dim: int) -> dict[str, Any]:
    _, vectors = np.linalg.eigh(np.cov(np.concatenate(books).T))
    turned = [book @ vectors[:, ::-1] for book in books]
    return _measure(turned, x @ vectors[:, ::-1], np.arange(kept_dim))["after"]


def _stability(books: list[np.ndarray], order: np.ndarray, kept_dim: int, rng: np.random.Generator) -> dict[str, Any]:
    kept, overlaps = set(order[:kept_dim].tolist()), []
    for _ in range(40):
        draw = rng.integers(0, len(books[0]), len(books[0]))
        other = set(np.argsort(-_scores([book[draw] for book in books])[0], kind="stable")[:kept_dim].tolist())
        overlaps.append(len(kept & other) / len(kept | other))
    return {"jaccard_mean": float(np.mean(overlaps)), "jaccard_min": min(overlaps), "resamples": 40, "over": "codes"}


def _sweep(
    books: list[np.ndarray], x: np.ndarray, orders: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, Any]:
    dim = books[0].shape[1]
    dims = sorted({max(1, round(dim * share)) for share in np.linspace(0.1, 1, 10)})
    curves = {}
    for name, order in {**orders, "random": rng.permutation(dim)}.items():
        found = [_measure(books, x, np.sort(order[:count]))["after"] for count in dims]
        curves[name] = {metric: [f[metric] for f in found] for metric in BASELINE[:3]}
    found = [_pca(books, x, count) for count in dims]
    curves["pca"] = {metric: [f[metric] for f in found] for metric in BASELINE[:3]}
    return {"kept_dims": dims, "criteria": curves}


def _add_modalities(
    book: dict[str, Any], parts: dict[str, Any], alone: dict[str, np.ndarray], names: tuple[str, ...], rows: int
) -> None:
    book["per_modality"] = {
        name: {
            "rows": rows,
            "before": parts[name]["before"],
            "after": parts[name]["after"],
            "ci95": parts[name]["ci95"],
            "kept_if_alone": [[alone[name].tolist()]],
        }
        for name in names
    }
    pairs = {}
    book["cross_modal"] = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            sets = set(alone[a].tolist()), set(alone[b].tolist())
            pairs[f"{a}|{b}"] = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
            book["cross_modal"][f"{a}|{b}"] = {"paired_rows": rows, **_paired(parts[a], parts[b])}
    book["modality_agreement"] = {"jaccard": float(np.mean(list(pairs.values()))), "pairs": pairs}
    for side in ("before", "after"):
        for metric in ("code_agreement", "js_bits"):
            book[side][metric] = float(np.mean([pair[side][metric] for pair in book["cross_modal"].values()]))


def _paired(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for index, side in enumerate(("before", "after")):
        p, q = (part["usage"][0][index] / part["usage"][0][index].sum() for part in (a, b))
        result[side] = {"code_agreement": float(np.minimum(p, q).sum()), "js_bits": _js(p, q)}
    return result


def _js(p: np.ndarray, q: np.ndarray) -> float:
    def entropy(r: np.ndarray) -> float:
        return float(-(r * np.log2(np.where(r > 0, r, 1))).sum())

    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def _plain(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in block.items()}
