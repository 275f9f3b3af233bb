"""Do the probes of `toc evaluate` say the same with more steps, or with more width? `probe_control.py RUN DATA` prints how far the
difference of any selection to all dimensions moves, in points.

    python examples/probe_control.py run avdigits.h5
"""

from __future__ import annotations

import sys
from pathlib import Path

from toc_cli.fcid.evaluation.evaluate import evaluate
from toc_cli.fcid.evaluation.options import EvaluateOptions

CONTROLS = {"as it is": {}, "twice the steps": {"probe_epochs": 120}, "twice the width": {"probe_width": 256}}


def differences(run: Path, data: Path, **probe: int) -> dict[tuple[str, str], float]:
    """(task, selection) -> its difference to all dimensions, in points: the first mean of each task."""
    options = EvaluateOptions(keep=("0.125",), criteria=("toc",), parts=("classification", "localisation"), **probe)
    found = evaluate(run, data, options)["evaluation"]
    rows = {row["task"]: row for part in options.parts for row in reversed(found[part]) if row["from"] is None}
    return {
        (task, name): 100 * result["delta"]
        for task, row in rows.items()
        for name, result in row["results"].items()
        if "delta" in result
    }


def main(run: Path, data: Path) -> None:
    found = {name: differences(run, data, **probe) for name, probe in CONTROLS.items()}
    usual = found.pop("as it is")
    for place, value in usual.items():
        others = "  ".join(f"{name} {own[place]:+6.2f}" for name, own in found.items())
        print(f"{place[0]:20} {place[1]:28} {value:+6.2f}  {others}")
    for name, own in found.items():
        moved = {place: abs(own[place] - value) for place, value in usual.items() if not place[1].startswith("worst")}
        print(
            f"{name}: moves a difference by at most {max(moved.values()):.2f} points (controls that keep the worst left out)"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
