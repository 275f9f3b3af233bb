"""The features of a run before quantisation, as a file that `toc optimize --features` reads."""

from __future__ import annotations

from pathlib import Path

import torch

from toc_cli.errors import UsageError
from toc_cli.fcid.data import open_split
from toc_cli.fcid.evaluation.sources import TrainedModel
from toc_cli.fcid.run import device_of
from toc_cli.fcid.run_folder import load_model
from toc_cli.io.atomic import atomic_file, check_target
from toc_cli.io.guarded import NewHdf5


def save_features(
    source: str | Path, data: str | Path, target: Path, *, level: str = "fine", split: str | None = None,
    device: str = "auto", force: bool = False,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Write what meets one codebook of a run: a dataset per modality, (N, T, D) of seconds or (N, D) of clips.

    `level` is `fine` or `coarse`; `split` defaults to the run's training split. Clips with missing seconds are left out,
    so that rows stay paired. Returns the shapes.
    """
    check_target(target, force=force, inputs=[Path(data)])
    model, config = load_model(source)
    run = TrainedModel(model, config, device_of(device))
    opened = open_split(data, split or config.train.train_split, run.modalities)
    readings = {name: own[level] for name in run.modalities if level in (own := run.encode(opened, name))}
    if not readings:
        raise UsageError(f"The run has no {level} codes; it has {', '.join(run.books)}.", "Name one of these.")
    complete = torch.stack([reading.mask.all(dim=1) for reading in readings.values()]).all(dim=0)
    shapes = {}
    with atomic_file(target) as temporary, NewHdf5(temporary) as file:
        for name, reading in readings.items():
            x = reading.x[complete].numpy()
            x = x[:, 0] if x.shape[1] == 1 else x
            file.root.create_dataset(name, data=x, track_times=False)
            shapes[name] = x.shape
    return shapes
