"""The pictures of a codebook as inline SVG: drawn by matplotlib, coloured by the page's own CSS variables.

Every picture has one width for text that reads at 400 px and 1400 px alike; every name out of a file is plain text.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from toc_cli.report.metrics import METRICS
from toc_cli.report.svg import INK, TEXT, picture
from toc_cli.report.words import MINUS, number
from toc_cli.report.words import name as shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 256
DOTS, DOT = 400, 4.6

COLD, WARM = (38, 110, 190), (200, 78, 42)  # negative and positive cosine; zero is transparent


def series_colour(name: str, chosen: str, others: Sequence[str]) -> str:
    """The CSS variable of a criterion's line."""
    if name == chosen:
        return "after"
    if name in ("random", "variance", "pca"):
        return name
    return f"other{others.index(name) % 4 + 1}"


def rank_frequency(figure: Mapping[str, Any], *, small: bool = False) -> str:
    """How often the codes are chosen, by falling rank, before and after; where each curve ends, codes are dead."""
    data = figure["rank_frequency"]
    with picture(small) as (axes, result):
        top = 1
        for side in ("before", "after"):
            if data[side] is None:
                continue
            counts = np.asarray(data[side])
            live = counts > 0
            axes.plot(np.asarray(data["ranks"])[live], counts[live], color=INK[side], lw=1.8, solid_capstyle="round")
            top = max(top, int(counts.max()))
            used = data[f"used_{side}"]
            if used < data["codes"]:
                axes.axvline(used, color=INK[side], lw=1, ls=(0, (3, 3)))
        axes.set(xscale="log", yscale="log", xlim=(0.9, max(data["codes"], 2) * 1.1), ylim=(0.8, top * 1.6))
        _count_ticks(axes.xaxis)
        _count_ticks(axes.yaxis)
        _label(axes, "rank" if small else "rank of the code, most chosen first", "times chosen")
    return result[0]


def scores(codebook: Mapping[str, Any], level: int = 0, head: int = 0, *, small: bool = False) -> str:
    """Score of every dimension, best first, kept and dropped apart; beyond 256, means over neighbouring ranks."""
    score = np.asarray(codebook["score"][level][head])
    kept = np.zeros(len(score), bool)
    kept[[index for index in codebook["kept"][level][head] if index < len(score)]] = True
    order = np.argsort(-score, kind="stable")
    groups = np.array_split(order, min(len(order), BARS // (2 if small else 1)))
    height = np.array([score[group].mean() for group in groups])
    keeps = np.array([kept[group].mean() > 0.5 for group in groups])
    left = np.array([0, *np.cumsum([len(group) for group in groups])]) + 0.5
    with picture(small) as (axes, result):
        for which, colour in ((keeps, "after"), (~keeps, "dropped")):
            _bars(axes, left[:-1][which], left[1:][which], height[which], INK[colour])
        axes.axhline(0, color=INK["muted"], lw=0.8)
        axes.set_xlim(0.5, len(score) + 0.5)
        axes.margins(y=0.06)
        _plain_ticks(axes)
        _label(axes, "component, best first" if codebook["rotation"] else "dimension, best first", "score")
    return result[0]


def similarity_variance(codebook: Mapping[str, Any], options: Mapping[str, Any], level: int = 0, head: int = 0) -> str:
    """The two halves of the score of each dimension, kept and dropped; the line is the paper's score at the cut."""
    similarity, variance = (np.asarray(codebook[name][level][head]) for name in ("similarity", "variance"))
    kept = np.zeros(len(similarity), bool)
    kept[codebook["kept"][level][head]] = True
    with picture() as (axes, result):
        for which, colour in ((~kept, "dropped"), (kept, "after")):
            index = np.flatnonzero(which)[:: max(1, math.ceil(which.sum() / DOTS))]
            axes.plot(similarity[index], variance[index], "o", ms=DOT, mew=0, color=INK[colour], alpha=0.85)
        _cut_line(axes, codebook, options, kept, level, head)
        _plain_ticks(axes)
        _label(axes, "similarity (to keep low)", "variance (to keep high)")
    return result[0]


def spectrum(figure: Mapping[str, Any], *, small: bool = False) -> str:
    """Singular values of the centred codebook, before and after."""
    with picture(small) as (axes, result):
        most, least, last = 0.0, math.inf, 1
        for side in ("before", "after"):
            rank, value = (figure["spectrum"][side][name] for name in ("rank", "value"))
            if value:
                axes.plot(rank, value, color=INK[side], lw=1.8, solid_capstyle="round")
                most, least, last = max(most, *value), min(least, *value), max(last, *rank)
        if most > 0:
            axes.set(yscale="log", ylim=(least / 1.4, most * 1.4))
            _log_ticks(axes.yaxis, least, most)
        axes.set_xlim(1, max(last, 2))
        _plain_ticks(axes, y=False)
        _label(axes, "rank" if small else "singular value, largest first", "singular value")
    return result[0]


def heat(figure: Mapping[str, Any], side: str, *, small: bool = False) -> str:
    """Cosine between every two of the shown codes, in the order of the clustering."""
    matrix = triangle(figure["cosine"][side], figure["cosine"]["codes"])
    if small and len(matrix) > 128:
        half = len(matrix) // 2
        matrix = matrix[: 2 * half, : 2 * half].reshape(half, 2, half, 2).mean(axis=(1, 3))
    steps = np.rint(matrix * 16) / 16  # 33 colours: what the eye can tell apart, and a third of the bytes
    pixels = np.zeros((*matrix.shape, 4), np.uint8)
    pixels[..., :3] = np.where(steps[..., None] < 0, COLD, WARM)
    pixels[..., 3] = np.rint(np.sqrt(np.abs(steps)) * 255)
    with picture(small, square=True) as (axes, result):
        axes.imshow(pixels, interpolation="none", aspect="equal")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=INK["rule"])
    return result[0]


def triangle(encoded: str, codes: int) -> np.ndarray:
    """The symmetric matrix (C, C) in -1..1 behind the record's base64 triangle."""
    values = (np.frombuffer(base64.b64decode(encoded), np.uint8).astype(np.float64) - 128) / 127
    matrix = np.eye(codes)
    matrix[np.triu_indices(codes, 1)] = values
    return np.maximum(matrix, matrix.T) + np.minimum(matrix, matrix.T) - np.diag(np.diag(matrix))


def pca_map(figure: Mapping[str, Any]) -> str:
    """Codes on their two leading principal axes, sized by usage; codes that nothing chose are hollow."""
    data = figure["pca_map"]
    x, y, usage = (np.asarray(data[name], float) for name in ("x", "y", "usage"))
    share = usage / max(usage.max(initial=0), 1)
    with picture() as (axes, result):
        axes.plot(x[usage == 0], y[usage == 0], "o", ms=3, mfc="none", mec=INK["random"], mew=0.9)
        edges = np.linspace(0, 1, 7) ** 2
        for low, high, size in zip(edges[:-1], edges[1:], (2.4, 3.6, 5.0, 6.6, 8.4, 10.4), strict=True):
            which = (share > low) & (share <= high)
            axes.plot(x[which], y[which], "o", ms=size, mew=0, color=INK["after"], alpha=0.5)
        axes.margins(0.07)
        _plain_ticks(axes)
        names = [f"axis {i + 1} ({number(s, 'share')} of variance)" for i, s in enumerate((*data["share"], 0.0)[:2])]
        _label(axes, names[0], names[1])
    return result[0]


def sweep(codebook: Mapping[str, Any], metric: str, chosen: str) -> str:
    """One metric over the number of kept dimensions, a line per criterion; the upright line is this run."""
    data = codebook["sweep"]
    unit = METRICS[metric].unit
    percent = unit in ("share", "change")
    others = sorted(set(data["criteria"]) - {chosen, "random", "variance", "pca"})
    with picture() as (axes, result):
        axes.axvline(codebook["kept_dim"], color=INK["muted"], lw=1, ls=(0, (3, 3)))
        for name in sorted(data["criteria"], key=lambda name: name == chosen):
            points = [
                (dims, value)
                for dims, value in zip(data["kept_dims"], data["criteria"][name].get(metric, ()), strict=False)
                if value is not None
            ]
            if points:
                first = name == chosen
                xs, ys = zip(*points, strict=True)
                axes.plot(
                    xs, ys, color=INK[series_colour(name, chosen, others)], lw=2.2 if first else 1.4,
                    ls="-" if first or name != "random" else (0, (4, 2)), marker="o" if first else None, ms=4, mew=0,
                )  # fmt: skip
        _metric_axis(axes, unit)
        axes.set_xlim(0, codebook["dim"] * 1.02)
        _plain_ticks(axes, y=not percent)
        _label(axes, "dimensions kept", METRICS[metric].label.lower())
    return result[0]


def intervals(rows: Sequence[tuple[str, float, Sequence[float] | None, str]], metric: str) -> str:
    """One metric for several things, a dot each with its interval or range: (label, value, bounds, colour)."""
    with picture(**_lines(len(rows))) as (axes, result):
        for index, (_, value, bounds, colour) in enumerate(rows):
            if bounds is not None:
                axes.plot(bounds, [index, index], color=INK[colour], lw=2.2, alpha=0.45, solid_capstyle="round")
            axes.plot([value], [index], "o", ms=6.5, mew=0, color=INK[colour])
        _name_lines(axes, [label for label, *_ in rows], metric)
    return result[0]


def paired(rows: Sequence[tuple[str, float | None, float | None]], metric: str) -> str:
    """One metric before and after for several things: (label, before, after)."""
    with picture(**_lines(len(rows))) as (axes, result):
        for index, (_, old, new) in enumerate(rows):
            if old is not None and new is not None:
                axes.plot([old, new], [index, index], color=INK["rule"], lw=2.2)
            for value, colour in ((old, "before"), (new, "after")):
                if value is not None:
                    axes.plot([value], [index], "o", ms=6.5, mew=0, color=INK[colour])
        _name_lines(axes, [label for label, *_ in rows], metric)
    return result[0]


def _lines(count: int) -> dict[str, Any]:
    """The sheet for `count` named lines."""
    return {"height": 66 + 26 * count, "left": 112, "bottom": 46}


def _name_lines(axes: Axes, labels: Sequence[str], metric: str) -> None:
    unit = METRICS[metric].unit
    axes.set_yticks(range(len(labels)), [shown(label, 14) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(False, axis="y")
    _metric_axis(axes, unit, axis="x")
    axes.set_xlabel(METRICS[metric].label.lower() + {"db": " (dB)", "bits": " (bits)"}.get(unit, ""))


def _cut_line(
    axes: Axes, codebook: Mapping[str, Any], options: Mapping[str, Any], kept: np.ndarray, level: int, head: int
) -> None:
    """J = w_var V - w_sim S at the cut, where the kept dimensions are exactly those above it."""
    score = np.asarray(codebook["score"][level][head])
    if options.get("criterion") != "toc" or kept.all() or not score[kept].min() > score[~kept].max():
        return
    w_similarity, w_variance = (float(weight) for weight in options["weights"])
    if w_variance == 0:
        return
    cut = (score[kept].min() + score[~kept].max()) / 2
    x = np.array(axes.get_xlim())
    y = axes.get_ylim()
    axes.plot(x, (cut + w_similarity * x) / w_variance, color=INK["muted"], lw=1, ls=(0, (3, 3)))
    axes.set(xlim=x, ylim=y)


def _bars(axes: Axes, left: np.ndarray, right: np.ndarray, height: np.ndarray, colour: str) -> None:
    """All bars of one colour as a single path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if len(left) == 0:
        return
    gap = 0.12 * (right - left) if len(left) <= 64 else 0 * left
    zero = np.zeros_like(height)
    corners = np.stack(
        [np.stack([left + gap, zero], 1), np.stack([left + gap, height], 1), np.stack([right - gap, height], 1),
         np.stack([right - gap, zero], 1), np.stack([left + gap, zero], 1)],
        axis=1,
    )  # fmt: skip
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(left))
    axes.add_patch(PathPatch(Path(corners.reshape(-1, 2), codes), fc=colour, lw=0))
    axes.update_datalim(corners.reshape(-1, 2))
    axes.autoscale_view()


def _metric_axis(axes: Axes, unit: str, axis: str = "y") -> None:
    """Percent where the metric is a share or a change; a zero line belongs to a change."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    target = axes.yaxis if axis == "y" else axes.xaxis
    target.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if unit in ("share", "change"):
        low, high = sorted(axes.get_ylim() if axis == "y" else axes.get_xlim())
        digits = 0 if high - low > 0.05 else 1 if high - low > 0.005 else 2
        sign = "+" if unit == "change" else ""
        target.set_major_formatter(
            FuncFormatter(lambda v, _: "0%" if abs(v) < 1e-12 else f"{100 * v:{sign}.{digits}f}%".replace("-", MINUS))
        )
    else:
        target.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _plain_ticks(axes: Axes, *, x: bool = True, y: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if wanted:
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _count_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v) if v >= 1 else ""))
    axis.set_minor_formatter(NullFormatter())


def _log_ticks(axis: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    narrow = high / low < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    """`10k`, `0.05`, `−2`: short enough for a narrow margin."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:g}{letter}".replace("-", MINUS)
    return (f"{value:g}" if size >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")).replace("-", MINUS)


def _label(axes: Axes, x: str, y: str) -> None:
    """The x label under the axis, the y label level above it, where it is read first."""
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=TEXT, color=INK["muted"], pad=7, x=-42 / axes.bbox.width)
