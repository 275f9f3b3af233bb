"""`--criterion auto` and `--keep auto`: what is chosen on one part of the sampled units is measured on the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.offered import supported
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.selection import Size, most, size_text
from toc_cli.pipeline.budget import needed
from toc_cli.pipeline.census import pairs_of
from toc_cli.pipeline.curve import Curve, Figures, meets
from toc_cli.pipeline.knowledge import held_bytes
from toc_cli.pipeline.options import AUTO, Options
from toc_cli.pipeline.study import Study

NEARBY = 24
"""Sizes right below the smallest good one that are all tried: a curve need not fall with every dimension."""
SPREAD = 16
"""Sizes tried further below, evenly spaced."""


def candidates(ckpt: Checkpoint, study: Study) -> tuple[str, ...]:
    """The criteria that a run may rank by: the one asked for; of `auto` those that the asked forms, the features, the family and
    `--max-memory` allow. Dear ones are left to runs without rotations, which keep more than any choice of dimensions."""
    options, full = study.options, study.full
    if options.criterion != AUTO:
        return (options.criterion,)
    offered = supported(ckpt, study.source.book, rotated=True)
    turns = study.affords_rotation and not any(offered[mode] for mode in options.emit)
    reads = ("codes", "usage") if full.logits is not None else ("codes", "usage", "features")
    needs = (*reads, "pairs") if full.logits is None and pairs_of(study.fits) else reads
    return tuple(
        name
        for name, row in CRITERIA.items()
        if row.need in needs
        and row.contends
        and not (row.rotates and not turns)
        and not (row.dear and turns)
        and held_bytes(study, name) <= study.budget // 4
    )


class Auto:
    """The search of one codebook's criterion and size."""

    def __init__(self, study: Study, hold: int) -> None:
        self.study = study
        self.trial, self.proof = (Curve(study, hold // 2, part) for part in (0, 1))
        self._tried: dict[tuple[str, Size], Figures] = {}
        self._proved: dict[tuple[str, Size], Figures] = {}

    def best(self, size: Size) -> str:
        """The candidate that keeps most with `size` dimensions on the first part; of equals the first of the table."""
        found = self._try([size], self.study.criteria)
        return max(self.study.criteria, key=lambda name: rated(found[name, size], self.study.options))

    def figures(self, counts: Sequence[Size]) -> list[Figures]:
        """The figures of the best candidate at each size, on the first part."""
        found = self._try(counts, self.study.criteria)
        return [found[self.best(count), count] for count in counts]

    def figures_of_best(self, at: Size, counts: Sequence[Size]) -> list[Figures]:
        """The figures of the candidate that is best at the size `at`, at several sizes, on the first part."""
        name = self.best(at)
        found = self._try(counts, [name])
        return [found[name, count] for count in counts]

    def smallest(self) -> int:
        """The smallest size found at which the best candidate meets the bounds on both parts; all dimensions always do.

        Doubling or halving from the usage rank, then bisection; then sizes below are looked through, because a curve may dip and
        rise again, and the search goes on from whatever is found there.
        """
        dim = self.study.full.dim
        high = self._bisect(0, dim, needed(self.study))
        while True:
            below = self._below(high)
            names = self._leaders(high)
            found = self._try(below, names)
            hopeful = [n for n in below if any(meets(found[name, n], self.study.options) for name in names)]
            smaller = next((count for count in hopeful if self.good(count)), None)
            if smaller is None:
                return high
            high = self._bisect(max((n for n in below if n < smaller), default=0), smaller)

    def decided(self, size: Size) -> Curve:
        """The curve of the second part, its study now asking for the criterion that was found."""
        self.proof.study = self.study.asking(criterion=self.best(size))
        return self.proof

    def good(self, count: int) -> bool:
        """Whether the best candidate meets the bounds on both parts."""
        options = self.study.options
        if count >= self.study.full.dim:
            return True
        name = self.best(count)
        if not meets(self._tried[name, count], options):
            return False
        if (name, count) not in self._proved:
            self._proved[name, count] = self.proof.points([(name, count, options.seed)])[name, count, options.seed]
        return meets(self._proved[name, count], options)

    def account(self, size: Size, rows: int) -> dict[str, Any]:
        """For the record: who was tried at the size taken, which sizes were, and on what; `rows` were measured afterwards."""
        best, options = self.best(size), self.study.options
        sizes = sorted({at for _, at in self._tried}, key=lambda at: (most(at), str(at)))
        chosen_on = sum(sample.rows for sample in self.trial.samples)
        return {
            "criterion": best,
            "by": "excess_distortion" if _by_distortion(options) else "token_agreement",
            "candidates": {name: _shown(self._tried[name, size]) for name in self.study.criteria},
            "sizes": {size_text(at): _shown(max((f for (_, n), f in self._tried.items() if n == at), key=lambda f: rated(f, options)))
                      for at in sizes},
            "split": {"seed": options.seed, "chosen_on": chosen_on, "measured_on": rows, "apart": self.trial.apart},
        }  # fmt: skip

    def _bisect(self, low: int, high: int, at: int | None = None) -> int:
        """A good size in (low, high] with a bad one, or `low`, right below; `high` is good."""
        dim = self.study.full.dim
        at = (low + high) // 2 if at is None else min(at, high - 1)
        while high - low > 1:
            if self.good(at):
                high = at
            else:
                low = at
            at = (
                (low + high) // 2
                if low and high < dim
                else high // 2
                if not low
                else min(2 * low, (low + high) // 2 + 1)
            )
            at = min(max(at, low + 1), high - 1)
        return high

    def _below(self, high: int) -> list[int]:
        """Sizes to look through."""
        near = max(1, high - NEARBY)
        far = {1 + at * (near - 1) // SPREAD for at in range(SPREAD)} if near > 1 else set()
        return sorted({*far, *range(near, high)})

    def _leaders(self, count: int) -> tuple[str, ...]:
        """The two best candidates at a size: the ones worth trying at many others."""
        count = min(count, self.study.full.dim - 1)
        if count < 1:
            return self.study.criteria[:1]
        found = self._try([count], self.study.criteria)
        ordered = sorted(
            self.study.criteria, key=lambda name: rated(found[name, count], self.study.options), reverse=True
        )
        return tuple(ordered[:2])

    def _try(self, counts: Iterable[Size], names: Sequence[str]) -> dict[tuple[str, Size], Figures]:
        """The figures of criteria at sizes on the first part, measured together where they are not known."""
        seed = self.study.options.seed
        wanted = [(name, count) for count in counts for name in names]
        missing = [(name, count, seed) for name, count in wanted if (name, count) not in self._tried]
        found = self.trial.points(missing) if missing else {}
        self._tried |= {(name, count): figures for (name, count, _), figures in found.items()}
        return {point: self._tried[point] for point in wanted}


def _by_distortion(options: Options) -> bool:
    return options.max_distortion is not None and options.min_agreement is None


def rated(point: Figures, options: Options) -> tuple[bool, float]:
    """What the asked bound makes of a point, more is better: agreement, or little excess distortion where only that is bound."""
    agreement, excess = point["token_agreement"], point["excess_distortion"]
    worth = (-math.inf if excess is None else -excess) if _by_distortion(options) else agreement
    bound = options.max_distortion is not None or options.min_agreement is not None
    return bound and meets(point, options), -math.inf if worth is None else worth


def _shown(point: Figures) -> Figures:
    return {name: point[name] for name in ("token_agreement", "excess_distortion")}
