"""The run record: what was read, what was kept, and what it changes, with intervals and baselines beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from toc_cli import __version__
from toc_cli.io.artefact import RECORD_SCHEMA
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.ops import work
from toc_cli.ops.bootstrap import FEW, beyond_chance, interval, resample_together
from toc_cli.ops.figures import figures
from toc_cli.ops.geometry import Geometry, geometry, usage_rank
from toc_cli.ops.metrics import measure, ratio_intervals, stack
from toc_cli.ops.scores import dead_dimensions
from toc_cli.ops.usage import count_tokens, is_rarefied, js_bits, matches, resampled_usage, usage
from toc_cli.pipeline.census import pairs_of
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.curve import RANDOM_SEEDS, mean, number
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.sample import Measured
from toc_cli.pipeline.source import Source
from toc_cli.pipeline.study import Study

MOST_FIGURES = 8
CHOSEN = "chosen"
BASELINE_FIELDS = ("token_agreement", "excess_distortion", "snr_db", "distortion")


def run_record(
    options: Options,
    inputs: Sequence[Mapping[str, Any]],
    features: Sequence[Mapping[str, Any]],
    warnings: Sequence[Mapping[str, Any]],
    codebooks: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The whole record but for its outputs and timing."""
    return {
        "schema_version": RECORD_SCHEMA,
        "tool": {"name": "toc", "version": __version__},
        "inputs": list(inputs),
        "features": list(features),
        "options": options.as_record(),
        "outputs": [],
        "warnings": list(warnings),
        "codebooks": list(codebooks),
        "timing": {},
    }


class BookRecord:
    """One codebook's part of the record, from the census, the choice and what was measured per modality."""

    def __init__(self, study: Study, choice: Choice, runs: Mapping[str, Measured]) -> None:
        self.source, self.census, self.options = study.source, study.census, study.options
        self.choice, self.runs = choice, runs
        self.levels, self.heads = len(study.full.levels), study.full.heads
        self.num_codes = [level.codes.shape[1] for level in study.full.levels]
        self.came = study.source.came
        self.came_codes = [level.codes.shape[1] for level in self.came.levels]
        self.before_geometry = _geometries([level.codes for level in self.came.levels], study.census.rows)
        self.after_geometry = _geometries([level.codes for level in choice.form.levels], study.census.rows)

    def build(self, **more: Any) -> dict[str, Any]:
        """The entry; `more` adds what other passes found (sweep, probe, stability, modality agreement)."""
        book, pooled = self.source.book, _pool(list(self.runs.values()))
        before, after, ci = self._figures(pooled)
        table = self.choice.table
        dead = [[int(dead_dimensions(row).sum()) for row in level] for level in table("variance")]
        return {
            "id": self.source.id,
            "key": book.label,
            "keys": [list(level) for level in book.keys],
            "family": book.family,
            "metric": book.metric,
            "dtype": book.dtype,
            "levels": self.levels,
            "heads": self.heads,
            "num_codes": self.num_codes,
            "dim": self.source.full.dim,
            "kept_dim": self.choice.count,
            **({} if isinstance(self.choice.size, int) else {"kept_dims": self.choice.sizes}),
            "residual": book.residual,
            "projection": self._projection(),
            "rotation": self.choice.rotation is not None,
            "fill": "mean" if self.choice.fill.any() else "zero",
            "kept": [level.tolist() for level in self.choice.kept_by_level],
            "order": self.choice.order.tolist(),
            **{name: table(name).tolist() for name in ("score", "similarity", "variance")},
            "sample": {
                "rows": self.census.rows,
                "evaluated": pooled.rows,
                "blocks": len(pooled.sums["full"].rows),
                "unit": pooled.unit,
                "units": pooled.units,
                "few_units": pooled.units < FEW,
                "rarefied": is_rarefied(pooled.rows, self.num_codes),
            },
            "usage": {"rows": self.census.rows, **_rounded(usage(self.census.pooled))},
            "before": before,
            "after": after,
            "ci95": ci,
            "baselines": self._baselines(pooled),
            "advantage_over_random": self._advantage(pooled),
            "per_level": [self._level(pooled, level) for level in range(self.levels)] if self.levels > 1 else [],
            "per_modality": {name: self._modality(run) for name, run in self.runs.items()}
            if len(self.runs) > 1
            else {},
            "cross_modal": self._cross_modal(),
            "dead_dimensions": max(map(max, dead)),
            "dead_by_head": dead,
            "constant_dimensions": constant_everywhere(self.source),
            "left_out": self._left_out(pooled),
            "figures": self._pictures(pooled),
            **more,
        }

    def _projection(self) -> dict[str, Any] | None:
        if self.source.book.outer_width is None:
            return None
        return {"width": self.source.book.outer_width, "applied": any(fit.projected for fit in self.census.fits)}

    def _figures(
        self, run: Measured, level: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """`before`, `after` and their intervals on one sample, pooled or of one modality, over all levels or through one."""
        weights = resample_together(run.strata, self.options.seed)
        sides, intervals = [], []
        for name, shape in (("full", self.before_geometry), (CHOSEN, self.after_geometry)):
            pruned = name == CHOSEN
            full = run.sums["full"] if pruned else None
            one = {
                k: number(v[0]) for k, v in measure(run.sums[name], full=full, spread=run.spread, level=level).items()
            }
            many = measure(run.sums[name], full=full, spread=run.spread, weights=weights, level=level)
            tokens = run.tokens[name] if level is None else run.tokens[name][:, level : level + 1]
            sizes = self.num_codes if pruned else self.came_codes
            counts = [count for at, count in enumerate(count_tokens(run.tokens[name], sizes)) if level in (None, at)]
            codes = sizes if level is None else [sizes[level]]
            used = _rounded(usage(counts))
            one |= used | _shape(shape if level is None else [shape[level]])
            one["usage_rank"] = _usage_rank(
                [each.codes for each in self._levels(name, level)], counts, self.census.rows
            )
            one["bytes"] = sum(
                level.codes.numel() * BYTES[self.source.book.dtype] for level in self._levels(name, level)
            )
            assert run.block_of_row is not None
            many |= resampled_usage(tokens, run.block_of_row, codes, weights)
            sides.append({field: one.get(field) for field in _FIELDS})
            blocks = independent_blocks(run)
            sharp = ratio_intervals(run.sums[name], weights, run.strata, full=full, level=level)
            intervals.append(
                {
                    field: list(sharp[field]) if field in sharp else _interval(values, blocks, one.get(field), field)
                    for field, values in many.items()
                }
            )
        return sides[0], sides[1], {"before": intervals[0], "after": intervals[1]}

    def _levels(self, name: str, level: int | None) -> list[Any]:
        form = self.came if name == "full" else self.choice.form
        return list(form.levels) if level is None else [form.levels[level]]

    def _baselines(self, run: Measured) -> dict[str, Any]:
        def at(name: str) -> dict[str, float | None]:
            values = measure(run.sums[name], full=run.sums["full"], spread=run.spread)
            return {field: number(values[field][0]) if field in values else None for field in BASELINE_FIELDS}

        draws = [at(f"random{seed}") for seed in range(RANDOM_SEEDS)]
        return {
            "random": {field: _spread([draw[field] for draw in draws]) for field in BASELINE_FIELDS},
            "variance": at("variance"),
            "pca": at("pca") if "pca" in run.sums else dict.fromkeys(BASELINE_FIELDS),
        }

    def _left_out(self, pooled: Measured) -> dict[str, str]:
        """Figures that would have cost more than the run, and why each is null."""
        rows, dim = self.census.rows, self.source.full.dim
        largest = max(self.num_codes)
        reason = f"of {largest} codes in {dim} dimensions it costs more than quantising {rows} rows"
        run = work.search(largest, dim, rows)
        found = {}
        if not work.affordable(work.pairs(largest, dim), run):
            found["min_distance"] = reason
        if not work.affordable(work.spectrum(largest, dim), run):
            found["effective_rank"] = found["usage_rank"] = reason
        if "pca" not in pooled.sums:
            found["baselines.pca"] = reason if dim <= work.WIDEST_ROTATION else f"it rotates {dim} dimensions"
        return found

    def _advantage(self, run: Measured) -> dict[str, Any]:
        """How much less excess distortion, and more agreement, than random dimensions, paired over the same blocks; the interval
        carries the random sets' own spread."""
        weights = resample_together(run.strata, self.options.seed)
        full = run.sums["full"]
        result = {}
        for name, field, sign in (("distortion", "excess_distortion", 1), ("agreement", "token_agreement", -1)):

            def values(form: str, w: np.ndarray | None, field: str = field, sign: int = sign) -> np.ndarray:
                return sign * measure(run.sums[form], full=full, weights=w)[field]

            def draws(w: np.ndarray | None) -> np.ndarray:
                return np.array([values(f"random{k}", w) for k in range(RANDOM_SEEDS)])

            gap = draws(None).mean() - values(CHOSEN, None)[0]
            bounds = interval(
                beyond_chance(values(CHOSEN, weights), draws(weights), self.options.seed),
                blocks=independent_blocks(run),
            )
            result[name] = {"value": number(gap), "ci95": list(bounds) if bounds else None}
        return result

    def _level(self, run: Measured, level: int) -> dict[str, Any]:
        before, after, _ = self._figures(run, level)
        return {"level": level, "before": before, "after": after}

    def _modality(self, run: Measured) -> dict[str, Any]:
        before, after, ci = self._figures(run)
        return {"rows": run.rows, "before": before, "after": after, "ci95": ci}

    def _cross_modal(self) -> dict[str, Any]:
        result = {}
        for a, b in pairs_of(self.census.fits):
            left, right = self.runs[a.dataset.name], self.runs[b.dataset.name]
            entry: dict[str, Any] = {"paired_rows": left.rows}
            for side, name in (("before", "full"), ("after", CHOSEN)):
                p, q = left.tokens[name], right.tokens[name]
                sizes = self.num_codes if name == CHOSEN else self.came_codes
                entry[side] = {
                    "code_agreement": matches(p, q) / len(p),
                    "js_bits": js_bits(count_tokens(p, sizes), count_tokens(q, sizes)),
                }
            result[f"{a.dataset.name}|{b.dataset.name}"] = entry
        return result

    def _pictures(self, run: Measured) -> list[dict[str, Any]]:
        before = self._counts_by_new_id(run.tokens["full"])
        after = count_tokens(run.tokens[CHOSEN], self.num_codes)
        places = [(level, head) for level in range(self.levels) for head in range(self.heads)][:MOST_FIGURES]
        return [
            {"level": level, "head": head, **figures(
                self.source.full.levels[level].codes[head], self.choice.form.levels[level].codes[head],
                before[level][head], after[level][head],
            )}
            for level, head in places
        ]  # fmt: skip

    def _counts_by_new_id(self, tokens: torch.Tensor) -> list[np.ndarray]:
        """How often each code that stays was chosen before, (H, K_l) per level: by those that merged into it as well."""
        kept, cut = tokens[:, : self.levels].long(), self.source.codes
        if cut is None:
            return count_tokens(kept, self.num_codes)
        new = cut.cut.translate(kept)
        counts = count_tokens(new + 1, [size + 1 for size in self.num_codes])  # the vanished ones first
        return [table[:, 1:] for table in counts]


_FIELDS = (
    "token_agreement", "excess_distortion", "distortion", "snr_db", "near_tie_rate", "used_codes", "dead_codes", "perplexity",
    "entropy", "mean_cosine", "min_distance", "effective_rank", "usage_rank", "bytes",
)  # fmt: skip


def constant_dimensions(source: Source) -> dict[tuple[int, int], list[int]]:
    """Per (level, head) that has any: the dimensions with one value in every code."""
    found = {}
    for at, level in enumerate(source.full.levels):
        for head, same in enumerate((level.codes == level.codes[:, :1]).all(1)):  # (D,)
            found[at, head] = same.nonzero().flatten().tolist()
    return {place: dims for place, dims in found.items() if dims}


def constant_everywhere(source: Source) -> list[int]:
    """Dimensions with one value in every code of each level and head."""
    found = constant_dimensions(source)
    tables = len(source.full.levels) * source.full.heads
    return sorted(set.intersection(*map(set, found.values()))) if len(found) == tables else []


def _pool(runs: Sequence[Measured]) -> Measured:
    """The samples of all modalities as one."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    spreads = [run.spread for run in runs if run.spread is not None]
    blocks = np.cumsum([0, *(len(run.sums["full"].rows) for run in runs)])
    apart = {run.strata[0][0]: run for run in reversed(runs)}
    kinds = {run.unit for run in runs}
    return Measured(
        rows=sum(run.rows for run in runs),
        unit=kinds.pop() if len(kinds) == 1 else "units",
        units=sum(run.units for run in apart.values()),
        strata=tuple(stratum for run in runs for stratum in run.strata),
        spread=stack(spreads) if len(spreads) == len(runs) else None,
        sums={name: stack([run.sums[name] for run in runs]) for name in first.sums},
        tokens={name: torch.cat([run.tokens[name] for run in runs]) for name in first.tokens},
        block_of_row=np.concatenate([run.block_of_row + start for run, start in zip(runs, blocks, strict=False)]),
    )


def _geometries(levels: Sequence[torch.Tensor], rows: int) -> list[list[Geometry]]:
    """Of every table; what costs more than choosing codes for all rows did is left out."""
    return [[geometry(codes, work.search(codes.shape[0], codes.shape[1], rows)) for codes in level] for level in levels]


def _shape(levels: Sequence[Sequence[Geometry]]) -> dict[str, float | None]:
    """Means over tables of cosine and rank, the least distance."""
    tables = [table for level in levels for table in level]
    return {
        "mean_cosine": number(np.mean([table.mean_cosine for table in tables])),
        "effective_rank": number(np.mean([table.effective_rank for table in tables])),
        "min_distance": number(np.min([table.min_distance for table in tables])),
    }


def _usage_rank(levels: Sequence[torch.Tensor], counts: Sequence[np.ndarray], rows: int) -> float | None:
    """Mean over tables of codes (H, K, D) per level and their counts (H, K); None where it costs more than the run."""
    shapes = [(codes.shape[1], codes.shape[2]) for codes in levels]
    if not all(work.affordable(work.spectrum(k, d), work.search(k, d, rows)) for k, d in shapes):
        return None
    tables = [
        (codes, n) for book, used in zip(levels, counts, strict=True) for codes, n in zip(book, used, strict=True)
    ]
    return float(np.mean([usage_rank(*table) for table in tables]))


def _rounded(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isinstance(value, int) else number(value) for name, value in figures.items()}


def independent_blocks(run: Measured) -> int:
    """Blocks that were drawn by themselves, one for each further sample taken off: what an interval may count on."""
    strata = dict(run.strata)
    return sum(strata.values()) - len(strata) + 1


def _interval(values: np.ndarray, blocks: int, centre: float | None, field: str) -> list[float] | None:
    if (
        field == "snr_db" and centre is not None
    ):  # the power about a mean of few units is too small: once here, twice in `values`
        middle: float | None = 2 * centre - float(values.mean())
    else:
        middle = centre if field in ("perplexity", "entropy") else None
    bounds = interval(values, blocks=blocks, centre=middle)
    return None if bounds is None else list(bounds)


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "min": None, "max": None, "seeds": len(values)}
    return {"mean": mean(values), "min": min(known), "max": max(known), "seeds": len(values)}
