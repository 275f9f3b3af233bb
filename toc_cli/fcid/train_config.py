"""The settings of a run: how it is trained, the `[train]` table of its `config.toml`, beside the model's `[model]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from toc_cli.errors import UsageError
from toc_cli.fcid.config import ModelConfig, from_dict, to_dict
from toc_cli.fcid.schedule import one_cycle, steps_down
from toc_cli.fcid.settings import from_table, shown_value, to_table
from toc_cli.io.names import printable

Precision = Literal["float32", "bf16", "float64"]
Schedule = Literal["one-cycle", "steps", "constant"]
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}
"""Of the weights."""
# fields that change speed or comfort, never a weight: a run may be resumed under other values
RUNTIME_FIELDS = ("workers", "checkpoint_minutes", "log_every", "tensorboard")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation of one run; `published_training()` gives the values of the published code."""

    epochs: int = 60
    batch_size: int = 64
    """Clips per rank and step: R ranks train like one process with R times as many."""
    seed: int = 0
    """Of initialisation, batch order and every random choice of a step."""
    lr: float = 2e-3
    """Adam's rate for encoders, decoders and contrastive heads, at the top of the schedule."""
    mi_lr: float = 1e-3
    """Adam's rate for the mutual-information nets; constant, as published."""
    schedule: Schedule = "one-cycle"
    """`one-cycle`: warm up, then half a cosine. `steps`: times `gamma` after each milestone epoch (published).
    `constant`."""
    warmup: float = 0.1
    """Share of all steps in which `one-cycle` rises."""
    milestones: tuple[int, ...] = (10, 20, 30)
    gamma: float = 0.5
    clip_norm: float = 0.5
    """Largest L2 norm of the gradient of each module group, clipped separately (section 2 of the published order); 0
    is no clipping."""
    weight_decay: float = 0.05
    """Decoupled, as in AdamW; 0 is Adam."""
    precision: Precision = "float32"
    """`bf16`: autocast on CUDA, with codebook and distances in float32. `float64`: everything, on request."""
    compile: bool = False
    """Run the encoders and decoders through torch.compile."""
    train_split: str = "train"
    val_split: str = "val"
    """Split that picks the best epoch; without it in the data the last epoch is kept."""
    validate_every: int = 1
    """Epochs between two looks at the validation split."""
    drop_last: bool = True
    """Leave out the clips that do not fill a last batch (the published code keeps them)."""
    shuffle_buffer: int = 2048
    """Clips shuffled at a time, read in chunk order; a data set that fits is shuffled as a whole."""
    workers: int = 0
    """Processes that read ahead; each holds its own window of `shuffle_buffer` clips."""
    checkpoint_minutes: float = 10.0
    """Minutes between two saves of the resume state."""
    log_every: int = 10
    """Steps between two lines of log.jsonl."""
    tensorboard: bool = False
    """Write the same figures for TensorBoard beside log.jsonl."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every", "shuffle_buffer", "log_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("workers", "checkpoint_minutes", "clip_norm", "weight_decay", "seed"):
            _at_least(name, getattr(self, name), 0)
        for name in ("lr", "mi_lr", "gamma"):
            if not getattr(self, name) > 0:
                raise UsageError(f"train.{name} is {getattr(self, name)}; it must be above 0.")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"train.warmup is {self.warmup}; it is a share of the run, from 0 to below 1.")

    def rate_factor(self, step: int, total_steps: int, epoch: int) -> float:
        """What the schedule multiplies `lr` by at `step` of `total_steps`."""
        if self.schedule == "one-cycle":
            return one_cycle(step / total_steps, self.warmup)
        if self.schedule == "steps":
            return steps_down(epoch, self.milestones, self.gamma)
        return 1.0


def _at_least(name: str, value: float, low: int) -> None:
    if not value >= low:
        raise UsageError(f"train.{name} is {value}; it must be at least {low}.")


def published_training() -> TrainConfig:
    """The optimisation of the published code: batch 80, Adam 4e-4, halved at epochs 10, 20 and 30, the last partial
    batch kept."""
    return TrainConfig(epochs=4, batch_size=80, seed=43, lr=4e-4, weight_decay=0.0, schedule="steps", drop_last=False)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run: the tables `[model]` and `[train]` of its `config.toml`."""

    model: ModelConfig
    train: TrainConfig

    def table(self) -> dict[str, Any]:
        return {"model": to_dict(self.model), "train": to_table(self.train)}


def run_config(tables: Mapping[str, Any]) -> RunConfig:
    """The settings of a file; what it leaves out comes from the profile that `[model]` names (corrected, else
    published)."""
    for name in tables:
        if name not in ("model", "train"):
            raise UsageError(
                f"There is no table [{printable(name, 40)}] in a run's settings.", "The tables are [model] and [train]."
            )
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise UsageError(
                f"[{name}] is {shown_value(table)}, not a table.", f"Write [{name}] and its settings below it."
            )
    model = from_dict(dict(tables.get("model", {})))
    base = published_training() if model.profile == "published" else TrainConfig()
    return RunConfig(model, from_table(TrainConfig, tables.get("train", {}), base, "train"))
