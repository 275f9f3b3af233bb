"""`toc bench train` measures real steps: its stages sum to the step, its terms are those of the loss."""

from __future__ import annotations

import pytest

from toc_cli.fcid import bench
from toc_cli.fcid.bench import Workload, measure


def test_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [Workload("AV-Digits", "corrected", "fine-coarse"), Workload("AV-Digits", "corrected", "uniform")]
    monkeypatch.setattr(bench, "WORKLOADS", both)
    monkeypatch.setattr(bench, "STEPS_A_REPEAT", {"AV-Digits": 1})
    found = measure("cpu", repeats=1)
    assert (found["bench"], found["device"]) == ("train", "cpu")
    steps = [row for row in found["rows"] if row["part"] == "step"]
    assert [row["model"] for row in steps] == ["corrected fine-coarse", "corrected uniform"]
    assert steps[0]["over_uniform"] == steps[0]["seconds"] / steps[1]["seconds"]
    for step in steps:
        assert step["over_floor"] == step["seconds"] / step["floor_seconds"]
        assert step["peak_bytes"] > 50 * 2**20
        parts = {row["part"]: row["seconds"] for row in found["rows"] if row["model"] == step["model"]}
        stages = [seconds for part, seconds in parts.items() if part != "step" and not part.startswith("loss ")]
        assert len(stages) == 5
        assert sum(stages) == pytest.approx(step["seconds"])
    terms = {row["part"] for row in found["rows"] if row["part"].startswith("loss ")}
    assert {"loss club", "loss second_infonce", "loss fine_reconstruction", "loss cpc"} <= terms
