"""One, two and three processes are one run: the same losses, the same codebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fcid.tiny import one_rank, processes, tiny_config, tiny_data, tiny_trainer
from toc_cli.fcid.run_folder import RunFolder
from toc_cli.fcid.train_config import RunConfig, run_config

GLOBAL_BATCH = 6
RTOL = 1e-6


def settings(kind: str, world: int) -> RunConfig:
    """20 steps in float64 (10 for the variants); every profile and alignment, with a last batch that the ranks share unevenly."""
    profile, _, alignment = kind.partition(" ")
    model = tiny_config().table()["model"] if profile == "corrected" and not alignment else {}
    model |= {
        "profile": profile,
        "width": 8,
        "heads": 2,
        "codebook": {**model.get("codebook", {}), "size": 6, "dead_after": 3},
    }
    if alignment:
        model["alignment"] = alignment
    train = {
        "epochs": 4 if kind == "corrected" else 2,
        "batch_size": GLOBAL_BATCH // world,
        "log_every": 1,
        "precision": "float64",
        "drop_last": False,
    }
    return run_config({"model": model, "train": train})


@pytest.mark.parametrize(
    ("kind", "worlds"),
    [("corrected", (2, 3)), ("published", (2,)), ("corrected uniform", (3,)), ("published uniform", (2,))],
)
def test_ranks_are_one_process(kind: str, worlds: tuple[int, ...], tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "tiny.h5", clips=28, ragged=True, words=4)
    tiny_trainer(data, tmp_path / "r1", settings(kind, 1)).fit()
    alone, state = losses(tmp_path / "r1"), RunFolder(tmp_path / "r1").read_state()
    assert len(alone) == (20 if kind == "corrected" else 10)
    assert state is not None
    processes()  # torch.multiprocessing takes children from the same server
    for world in worlds:
        run = tmp_path / f"r{world}"
        arguments = (world, data, run, settings(kind, world))
        mp.start_processes(one_rank, arguments, nprocs=world, start_method="forkserver")
        for step, (ours, theirs) in enumerate(zip(losses(run), alone, strict=True), 1):
            assert ours == pytest.approx(theirs, rel=RTOL, abs=1e-9), f"step {step} on {world} ranks"
        shared = RunFolder(run).read_state()
        assert shared is not None
        for name, value in state["model"].items():
            torch.testing.assert_close(
                shared["model"][name], value, rtol=RTOL, atol=1e-9, msg=f"{name} on {world} ranks"
            )


def losses(run: Path) -> list[dict[str, float]]:
    """Every figure of every step, the loss and its terms, codes in use and perplexity."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{"loss": line["loss"], **line["terms"], **line["stats"]} for line in lines if line["kind"] == "step"]
