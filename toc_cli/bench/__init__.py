"""What `toc bench` measures, each against its floor and its peers in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toc_cli.errors import UsageError

MILLION = 1_000_000
ROOMS = ("criterion", "optimize", "choose", "assign", "intervals", "growth", "features", "measuring", "train")


def run_bench(
    what: str, *, device: str, rows: int | None, repeats: int, verify: bool, axes: Sequence[str] = ()
) -> dict[str, Any]:
    """The figures of one room, JSON-able: `bench`, `rows` (a dictionary each) and what holds for all of them.

    UsageError for a room that is not there.
    """
    if what == "criterion":
        from toc_cli.bench.road import measure_criterion

        return {"bench": what, "rows": [measure_criterion(repeats)]}
    if what == "optimize":
        from toc_cli.bench.road import measure_optimize

        return {"bench": what, "features": rows or MILLION, "rows": measure_optimize(rows or MILLION, repeats=repeats)}
    if what == "choose":
        from toc_cli.bench.choose import measure_choice

        return {"bench": what, "features": rows or MILLION, "rows": measure_choice(rows or MILLION, repeats)}
    if what == "assign":
        from toc_cli.bench import assign

        return assign.verify(device) if verify else assign.measure(device, repeats=repeats)
    if what == "intervals":
        from toc_cli.bench.intervals import measure_intervals

        return {"bench": what, "rows": measure_intervals()}
    if what == "growth":
        from toc_cli.bench.growth import measure_growth

        return {"bench": what, "rows": measure_growth(axes)}
    if what == "features":
        from toc_cli.bench.features import measure_reading

        return {"bench": what, "rows": measure_reading(rows or 400_000)}
    if what == "measuring":
        from toc_cli.bench.features import measure_measuring

        return {"bench": what, "rows": measure_measuring(rows or 200_000)}
    if what == "train":
        from toc_cli.fcid.bench import measure

        return measure(device=device, repeats=repeats)
    raise UsageError(f"toc bench {what!r} is unknown.", f"Use one of: {', '.join(ROOMS)}.")
