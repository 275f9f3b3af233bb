"""A data set and settings so small that a run takes seconds."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.distributed as dist

from toc_cli.fcid.comm import Comm, current_comm
from toc_cli.fcid.data import open_split
from toc_cli.fcid.run_folder import RunFolder
from toc_cli.fcid.train_config import RunConfig, run_config
from toc_cli.fcid.trainer import StepReport, Trainer, Watcher

CLIPS = 30


def tiny_data(path: Path, *, clips: int = CLIPS, ragged: bool = False, words: int = 3) -> Path:
    """Clips of video (4, 2, 2, 6), audio (4, 5) and text (words, 4) that share a cause; `ragged` ones have lengths and
    gaps."""
    rng = np.random.default_rng(7)
    with h5py.File(path, "w") as file:
        for split, count in (("train", clips), ("val", 10)):
            cause = rng.integers(0, 3, count)
            group = file.create_group(split)
            for name, shape in (("video", (4, 2, 2, 6)), ("audio", (4, 5)), ("text", (words, 4))):
                means = np.random.default_rng(len(name)).normal(size=(3, *shape))
                values = means[cause] + 0.5 * rng.normal(size=(count, *shape))
                group.create_dataset(name, data=values.astype(np.float32), chunks=(4, *shape))
            group["caption"] = cause
            if ragged:
                group["audio_length"] = rng.integers(1, 5, count)
                group["text_length"] = rng.integers(1, words + 1, count)
                group["text_present"] = rng.random(count) > 0.2
    return path


def tiny_config(**train: object) -> RunConfig:
    """D=8, K=6; dropout, CLUB and CPC on, so that every source of chance is in play."""
    model = {
        "width": 8,
        "heads": 2,
        "codebook": {"size": 6, "dead_after": 3},
        "weights": {"cpc": 0.1},
    }
    return run_config({"model": model, "train": {"epochs": 3, "batch_size": 6, "log_every": 1, **train}})


def tiny_trainer(
    data: Path, run: Path, config: RunConfig | None = None, comm: Comm | None = None, watcher: Watcher | None = None
) -> Trainer:
    config = config or tiny_config()
    names = config.model.modalities
    return Trainer(
        config,
        open_split(data, "train", names),
        RunFolder(run),
        validation=open_split(data, "val", names),
        comm=comm,
        watcher=watcher,
    )


def processes() -> multiprocessing.context.ForkServerContext:
    """Children of a server with torch loaded once and no threads: a fork of the tests' own process could deadlock."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fcid.tiny", "torch._dynamo"])
    return context


def train_and_die(data: Path, run: Path, config: RunConfig, resume: bool, kills: dict[int, int]) -> None:
    """One process of a run; `kills` maps a step to the signal that it sends itself once the step is done."""
    torch.set_num_threads(1)

    def on_step(report: StepReport) -> None:
        if report.step in kills:
            os.kill(os.getpid(), kills[report.step])

    tiny_trainer(data, run, config, watcher=Watcher(on_step=on_step)).fit(resume=resume)


def one_rank(rank: int, world: int, data: Path, run: Path, config: RunConfig) -> None:
    """One of `world` processes that train together, joined by gloo."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{run}.rendezvous", rank=rank, world_size=world)
    tiny_trainer(data, run, config, comm=current_comm()).fit()
    dist.destroy_process_group()
