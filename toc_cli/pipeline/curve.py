"""The keep-ratio curve: what each number of kept dimensions would cost, for the sweep and for `--keep auto`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toc_cli.errors import InputError, UsageError
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.metrics import Sums, measure, stack
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.selection import parse_keep
from toc_cli.pipeline.choice import choose, rank_dimensions
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.sample import measure_forms, shift_of
from toc_cli.pipeline.study import Study

FIELDS = ("token_agreement", "excess_distortion", "distortion")
AUTO_POINTS = 16
RANDOM_SEEDS = 5


def parse_sweep(text: str, dim: int) -> list[int]:
    """`0.1:1.0:10` (from, to, steps) or a list `0.25,0.5,64`, as ascending numbers of kept dimensions. UsageError otherwise."""
    hint = "Use FROM:TO:STEPS such as 0.1:1.0:10, or a list such as 0.25,0.5."
    parts = text.split(":")
    if len(parts) == 3:
        try:
            low, high, steps = float(parts[0]), float(parts[1]), int(parts[2])
        except ValueError:
            raise UsageError(f"--sweep {text!r} is not FROM:TO:STEPS.", hint) from None
        if not (0 < low <= high <= 1 and 1 <= steps <= 1000):
            raise UsageError(f"--sweep {text!r} leaves (0, 1], or has no steps.", hint)
        shares = [f"{share:.6f}" for share in np.linspace(low, high, steps)]
    else:
        shares = text.split(",")
    try:
        counts = [parse_keep(share, dim) for share in shares]
    except UsageError:
        raise UsageError(f"--sweep {text!r} names what no --keep could be, of {dim} dimensions.", hint) from None
    if len(parts) == 2 or None in counts:
        raise UsageError(f"--sweep {text!r} is not a range or a list.", hint)
    return sorted({count for count in counts if count is not None})


class Curve:
    """Measures pruned forms of one codebook at any number of kept dimensions, over all its modalities together."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def builder(self, criterion: str, count: int, seed: int) -> Callable[[], Quantiser]:
        """A form that ranks by `criterion` and keeps `count`, built when called."""
        study = self.study if criterion == self.study.options.criterion else self.study.asking(ratio=None)

        def build() -> Quantiser:
            return choose(study, rank_dimensions(study, criterion, seed), count).form

        return build

    def points(self, wanted: Sequence[tuple[str, int, int]]) -> dict[tuple[str, int, int], dict[str, float | None]]:
        """`FIELDS` at each (criterion, D', seed), pooled over modalities."""
        study = self.study
        forms = {str(at): self.builder(*point) for at, point in enumerate(wanted)}
        shift = shift_of(study)
        runs = [measure_forms(study, fit, forms, (), shift) for fit in study.fits]
        full = stack([run.sums["full"] for run in runs])
        pooled = {point: stack([run.sums[str(at)] for run in runs]) for at, point in enumerate(wanted)}
        return {point: figures(sums, full) for point, sums in pooled.items()}

    def sweep(self, counts: Sequence[int]) -> dict[str, Any]:
        """The record's `sweep`: every criterion that the given features allow, at every count."""
        options, dim = self.study.options, self.study.full.dim
        criteria = [
            name for name, row in CRITERIA.items() if row.need in ("codes", "usage") or name == options.criterion
        ]
        seeds = {name: RANDOM_SEEDS if name == "random" else 1 for name in criteria}
        below = [count for count in counts if count < dim]
        wanted = [(name, count, options.seed + k) for name in criteria for count in below for k in range(seeds[name])]
        found = self.points(wanted)
        lossless = {"token_agreement": 1.0, "excess_distortion": 0.0}
        curves: dict[str, Any] = {}
        for name in criteria:
            rows = [
                [found[name, count, options.seed + k] for k in range(seeds[name])] if count < dim else [lossless]
                for count in counts
            ]
            curves[name] = {field: [mean([row[field] for row in at]) for at in rows] for field in lossless}
        return {"kept_dims": list(counts), "criteria": curves}

    def smallest(self) -> int:
        """`--keep auto`: the smallest D' that meets the bounds, by a grid and a bisection below its first good point.

        All dimensions always meet them.
        """
        options, dim = self.study.options, self.study.full.dim
        grid = sorted({max(1, round(dim * at / AUTO_POINTS)) for at in range(1, AUTO_POINTS)} - {dim})
        found = self.points([(options.criterion, count, options.seed) for count in grid])
        good = [count for count in grid if meets(found[options.criterion, count, options.seed], options)]
        high = min(good, default=dim)
        low = max((count for count in grid if count < high), default=0)
        while high - low > 1:
            middle = (low + high) // 2
            point = (options.criterion, middle, options.seed)
            if meets(self.points([point])[point], options):
                high = middle
            else:
                low = middle
        return high


def meets(point: dict[str, float | None], options: Options) -> bool:
    """Whether a point is within --max-distortion and --min-agreement. InputError where a bound cannot be measured."""
    for bound, value in (
        (options.max_distortion, point["excess_distortion"]),
        (options.min_agreement, point["token_agreement"]),
    ):
        if bound is not None and value is None:
            raise InputError(
                "--keep auto: this codebook has no distortion to bound.", "Use --min-agreement, or a share."
            )
    agreement, excess = point["token_agreement"], point["excess_distortion"]
    near = options.max_distortion is None or (excess is not None and excess <= options.max_distortion)
    same = options.min_agreement is None or (agreement is not None and agreement >= options.min_agreement)
    return near and same


def figures(sums: Sums, full: Sums) -> dict[str, float | None]:
    """`FIELDS` of a form's sums; None where undefined."""
    values = measure(sums, full=full)
    return {name: number(values[name][0]) for name in FIELDS}


def number(value: float | np.floating) -> float | None:
    """A float for the record: None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean, None if any is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
