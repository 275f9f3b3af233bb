"""`train`: settings, data and processes joined into one run; what the command, a notebook and a test call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toc_cli.errors import UsageError
from toc_cli.fcid.comm import Comm, current_comm
from toc_cli.fcid.config import of_codebooks
from toc_cli.fcid.data import open_split, split_names
from toc_cli.fcid.run_folder import RunFolder, load_model
from toc_cli.fcid.settings import merge, read_settings
from toc_cli.fcid.train_config import RunConfig, run_config
from toc_cli.fcid.trainer import Summary, Trainer, Watcher
from toc_cli.io.peers import Peers, announced


def train(
    data: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    codebooks: int | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Summary:
    """Train a model on the paired features of `data` and leave it in the folder `output`.

    `config` is a TOML or YAML file with the tables `[model]` and `[train]`; `overrides`, tables of the same form, go before
    it; the profile gives the rest. `codebooks`, 1 or 2, are trained and read out. `init` is a run (or its model.safetensors)
    to start from: its weights, and its model's settings as the base. With `resume` the run in `output` goes on, its own
    settings being the base.
    Under torchrun this process is one of several that train together.
    """
    folder, watcher = RunFolder(output), watcher or Watcher()
    if not resume:
        folder.require_new()
    elif init is not None:
        raise UsageError(
            "--resume goes on with the weights of the run itself.", "Leave out --init, or name a new folder."
        )
    begun, base = initial_of(init) if init is not None else (None, {})
    settings = settings_of(folder, config, overrides or {}, resume, base, codebooks)
    options, names = settings.train, settings.model.modalities
    split = open_split(data, options.train_split, names, options.shuffle_buffer)
    validation = None
    if options.val_split in split_names(data):
        validation = open_split(data, options.val_split, names, options.shuffle_buffer)
    with processes(device) as (comm, place):
        if validation is None and comm.rank == 0:
            watcher.on_warning(f"The data has no split {options.val_split!r}: the model of the last epoch is kept.")
        trainer = Trainer(
            settings, split, folder, validation=validation, device=place, comm=comm, watcher=watcher, initial=begun
        )
        return trainer.fit(resume=resume)


def settings_of(
    folder: RunFolder,
    config: str | Path | None,
    overrides: Mapping[str, Any],
    resume: bool,
    base: Mapping[str, Any] | None = None,
    codebooks: int | None = None,
) -> RunConfig:
    """The settings of a run: `base`, those of `config` (or of the run to resume), of so many `codebooks`, then `overrides`."""
    tables = merge(base or {}, read_settings(Path(config)) if config else folder.settings() if resume else {})
    if codebooks is not None:
        model = merge(tables, overrides).get("model", {})
        tables = merge(tables, {"model": of_codebooks(codebooks, str(model.get("alignment", "fine-coarse")))})
    return run_config(merge(tables, overrides))


def initial_of(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a run's model, and the settings that build it: how it was trained is not taken over."""
    model, config = load_model(path)
    return model.state_dict(), {"model": config.table()["model"]}


@contextmanager
def processes(device: str) -> Iterator[tuple[Comm, torch.device]]:
    """This process's communicator and device; under torchrun it joins the others (gloo on CPUs, nccl on GPUs)."""
    place = device_of(device, int(os.environ.get("LOCAL_RANK", "0")))
    rank, world = announced()
    if world == 1 or dist.is_initialized():
        yield current_comm(), place
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    peers = Peers(rank, world)
    peers.join("nccl" if place.type == "cuda" else "gloo")
    with peers.watched():
        try:
            yield current_comm(), place
        finally:
            dist.destroy_process_group()


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is one; each process of a machine takes the GPU of its local rank."""
    count = torch.cuda.device_count()
    try:
        place = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"There is no device {name!r}.", "Use --device auto, cpu, cuda or cuda:0.") from error
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f"Training on {name!r} is not supported.", "Use --device auto, cpu, cuda or cuda:0.")
    if place.type == "cuda":
        place = torch.device("cuda", local_rank if place.index is None else place.index)
        if place.index >= count:
            raise UsageError(f"Device {place} is not here: this machine has {count} CUDA devices.", "Use --device cpu.")
    return place
