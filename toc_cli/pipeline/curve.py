"""The keep-ratio curve: what each number of kept dimensions would cost, for the sweep and for `--keep auto`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from toc_cli.errors import InputError, UsageError
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.metrics import Sums, measure, stack
from toc_cli.ops.selection import Size, parse_keep
from toc_cli.pipeline.choice import Choice, choose, constants, rank_dimensions
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.sample import Measured, Sample, measure_forms, shift_of
from toc_cli.pipeline.study import Study

FIELDS = ("token_agreement", "excess_distortion", "distortion")
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
        raise UsageError(f"--sweep {text!r} names what no --keep could be.", hint) from None
    if len(parts) == 2 or None in counts:
        raise UsageError(f"--sweep {text!r} is not a range or a list.", hint)
    return sorted({count for count in counts if count is not None})


Point: TypeAlias = tuple[str, Size, int]
"""Criterion, D', seed."""
Figures: TypeAlias = dict[str, float | None]
"""`FIELDS`."""


class Curve:
    """Measures pruned forms of one codebook at any number of kept dimensions, over all its modalities together.

    Each modality's sample is read and met by the full codebook once, as far as `hold` bytes allow for a study of several passes.
    With `part` (0 or 1) it sees one part of the sampled units (`share_of`).
    """

    def __init__(self, study: Study, hold: int = 0, part: int | None = None) -> None:
        self.study, self.hold, self.part = study, hold, part

    @cached_property
    def _fill(self) -> np.ndarray:
        return constants(self.study)

    @cached_property
    def samples(self) -> list[Sample]:
        """The sample of each modality."""
        shift = shift_of(self.study)
        hold = self.hold // len(self.study.fits)
        return [Sample(self.study, fit, shift, hold, self.part) for fit in self.study.fits]

    @property
    def apart(self) -> bool:
        """Whether no unit is in both parts: only a single one cannot be split."""
        return self.part is not None and all(len(sample.whole) > 1 for sample in self.samples)

    def choice(self, criterion: str, size: Size, seed: int) -> Choice:
        """What `criterion` keeps of `size` dimensions; `--ratio` goes with the run's own criterion alone."""
        study = self.study if criterion == self.study.options.criterion else self.study.asking(ratio=None)
        return choose(study, rank_dimensions(study, criterion, seed), size, self._fill)

    def measure(self, wanted: Mapping[str, Choice], keep: Collection[str] = ()) -> dict[str, Measured]:
        """What each choice does on each modality's sample; choices that keep the same are measured once."""
        first: dict[bytes, str] = {}
        same = {name: first.setdefault(choice.identity, name) for name, choice in wanted.items()}
        forms = {name: wanted[name].build for name in first.values()}
        asked = {same.get(name, name) for name in keep}
        runs = {sample.fit.dataset.name: measure_forms(sample, forms, asked) for sample in self.samples}
        for run in runs.values():
            run.sums |= {name: run.sums[of] for name, of in same.items()}
            run.tokens |= {name: run.tokens[of] for name, of in same.items() if of in asked}
        return runs

    def points(self, wanted: Sequence[Point]) -> dict[Point, Figures]:
        """`FIELDS` at each point, pooled over modalities."""
        return self.pooled(self.measure(self.choices(wanted)), wanted)

    def choices(self, wanted: Sequence[Point]) -> dict[str, Choice]:
        """The choice of each point, by the name that `pooled` knows it by."""
        return {repr(point): self.choice(*point) for point in wanted}

    def pooled(self, runs: Mapping[str, Measured], wanted: Sequence[Point]) -> dict[Point, Figures]:
        """`FIELDS` of points that were measured."""
        full = stack([run.sums["full"] for run in runs.values()])
        return {point: curve_figures(stack([run.sums[repr(point)] for run in runs.values()]), full) for point in wanted}

    def of(self, runs: Mapping[str, Measured], name: str) -> Figures:
        """`FIELDS` of a form that was measured, pooled over modalities."""
        full, own = (stack([run.sums[form] for run in runs.values()]) for form in ("full", name))
        return curve_figures(own, full)

    def swept(self, counts: Sequence[int]) -> list[Point]:
        """The points of `--sweep`: every criterion that the given features allow, at every count that loses something."""
        below = [count for count in counts if count < self._lossless]
        return [(name, count, seed) for name, seeds in self._criteria().items() for count in below for seed in seeds]

    @property
    def _lossless(self) -> int:
        """The size from which nothing is lost: all dimensions, unless codes or levels were cut before."""
        source = self.study.source
        return source.full.dim + (source.came is not source.full)

    def _criteria(self) -> dict[str, list[int]]:
        """The criteria of a sweep, with their seeds."""
        options = self.study.options
        names = [
            name
            for name, row in CRITERIA.items()
            if name == options.criterion
            or (row.need in ("codes", "usage") and (not row.rotates or self.study.affords_rotation))
        ]
        return {name: [options.seed + k for k in range(RANDOM_SEEDS if name == "random" else 1)] for name in names}

    def sweep(self, counts: Sequence[int], found: Mapping[Point, Figures]) -> dict[str, Any]:
        """The record's `sweep`, from the points that `swept` asked for."""
        lossless = {"token_agreement": 1.0, "excess_distortion": 0.0}
        curves: dict[str, Any] = {}
        for name, seeds in self._criteria().items():
            rows = [
                [found[name, count, seed] for seed in seeds] if count < self._lossless else [lossless]
                for count in counts
            ]
            curves[name] = {field: [mean([row[field] for row in at]) for at in rows] for field in lossless}
        return {"kept_dims": list(counts), "criteria": curves}


def meets(point: Figures, options: Options) -> bool:
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


def curve_figures(sums: Sums, full: Sums) -> Figures:
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
