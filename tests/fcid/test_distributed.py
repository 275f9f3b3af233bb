"""One, two and three processes are one run: the same losses, the same codebook."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fcid.tiny import tiny_config, tiny_data, tiny_trainer
from toc_cli.fcid.comm import current_comm
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


def one_rank(rank: int, world: int, data: Path, run: Path, kind: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{run}.rendezvous", rank=rank, world_size=world)
    tiny_trainer(data, run, settings(kind, world), comm=current_comm()).fit()
    dist.destroy_process_group()


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
    for world in worlds:
        run = tmp_path / f"r{world}"
        mp.start_processes(one_rank, (world, data, run, kind), nprocs=world, start_method="fork")
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
