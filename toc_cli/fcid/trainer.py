"""The training loop: batches in, a run folder out, continued bit for bit after any stop.

What a step draws comes from (seed, step), the order of the clips from (seed, epoch): the state of a run is its tensors,
its step and the best score so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toc_cli.errors import InputError, OutputError, UsageError, missing_extra
from toc_cli.fcid.aligner import StepLosses, load_into
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.batches import BatchPlan, load_batches
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.data import Split
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.memory import steady_memory
from toc_cli.fcid.model import build_model
from toc_cli.fcid.run_folder import RunFolder
from toc_cli.fcid.settings import differences, flatten
from toc_cli.fcid.stop import StopSignal
from toc_cli.fcid.train_config import DTYPES, RUNTIME_FIELDS, RunConfig


@dataclass(frozen=True)
class StepReport:
    """What one step did; `terms` are the losses before weighting, `stats` codes in use, perplexity and the like."""

    step: int
    """Steps done so far, this one included."""
    total_steps: int
    epoch: int
    loss: float
    terms: dict[str, float]
    stats: dict[str, float]
    lr: float
    seconds: float
    """Since the step before."""
    clips: int
    """Over all ranks."""


@dataclass
class Watcher:
    """Who is told what happens; by default nobody. Only rank 0 tells."""

    on_step: Callable[[StepReport], None] = lambda report: None
    on_validation: Callable[[dict[str, Any]], None] = lambda record: None
    on_warning: Callable[[str], None] = lambda text: None
    to_go_on: str = "Continue with --resume."
    """What is said of a run that was stopped."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    steps: int
    epochs: int
    best_step: int
    validation: dict[str, float] = field(default_factory=dict)
    """Of the model kept; empty without a validation split."""
    writes: bool = True
    """Whether this process is the one that writes and reports."""

    def record(self, folder: Path) -> dict[str, Any]:
        """The same as plain values, with the names of the run's files."""
        values = {name: value for name, value in asdict(self).items() if name != "writes"}
        return {**values, "run": str(folder), "model": str(folder / "model.safetensors")}


class Trainer:
    """One run of `config` on `split`, written to `folder`; `validation` picks the best epoch, `initial` are the weights to
    start from.

    Under torchrun every rank makes one, with the communicator of its process group.
    """

    def __init__(
        self,
        config: RunConfig,
        split: Split,
        folder: RunFolder,
        *,
        validation: Split | None = None,
        device: torch.device | str = "cpu",
        comm: Comm | None = None,
        watcher: Watcher | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.split, self.validation, self.folder = config, split, validation, folder
        self.device, self.comm = torch.device(device), comm or Comm()
        self.watcher = watcher or Watcher()
        train = config.train
        if train.precision == "bf16" and self.device.type != "cuda":
            raise UsageError(
                f"train.precision is bf16 and the device is {self.device}; bf16 needs CUDA.", "Use float32."
            )
        self.plan = BatchPlan(
            clips=len(split),
            block=split.block,
            batch_size=train.batch_size,
            shuffle_buffer=train.shuffle_buffer,
            seed=train.seed,
            drop_last=train.drop_last,
            rank=self.comm.rank,
            world=self.comm.world,
        )
        self.total_steps = train.epochs * self.plan.steps_per_epoch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.model = build_model(config.model, split.specs)
        self._begun = initial is not None
        if initial is not None:
            load_into(self.model, initial)
        self.model.to(self.device, DTYPES[train.precision])
        if train.compile:
            self.model.compile_blocks()
        groups = self.model.parameter_groups()
        self.optimiser = torch.optim.AdamW(groups["main"], lr=train.lr, weight_decay=train.weight_decay, fused=True)
        self.mi_optimiser = torch.optim.Adam(groups["mi"], lr=train.mi_lr, fused=True) if groups["mi"] else None
        self.step, self.best_step, self.best = 0, 0, math.inf
        self.best_validation: dict[str, float] = {}
        self._board_class = tensorboard_writer() if train.tensorboard else None
        self._board: Any = None
        self._saved_at = self._stepped_at = time.monotonic()

    # -- the run ----------------------------------------------------------------------------------------------------

    def fit(self, *, resume: bool = False) -> Summary:
        """Train to the last epoch; at Ctrl-C or SIGTERM save the state, then end as the signal asks."""
        if resume:
            self._take_up()
        elif self._writes:
            self.folder.create(self.config.table())
            if self._begun:
                self._save(must=True)  # a run stopped before its first save would resume without those weights
        if self._board_class and self._writes:
            self._board = self._board_class(str(self.folder.path))
        self._saved_at = self._stepped_at = time.monotonic()
        with StopSignal() as stop, steady_memory():
            for batch in self._batches():
                self._tell(self.train_step(batch))
                if self.step % self.plan.steps_per_epoch == 0:
                    self._end_epoch(self.step // self.plan.steps_per_epoch)
                stopping, due = self._agree(stop.number is not None, self._checkpoint_due())
                done = self.step == self.total_steps
                if stopping or due or done:
                    self._save(must=stopping or done)
                if stopping and not done:
                    self._warn(
                        f"Stopped after step {self.step} of {self.total_steps}. {self.watcher.to_go_on}".rstrip()
                    )
                    stop.act()
        return Summary(self.step, self.config.train.epochs, self.best_step, self.best_validation, self._writes)

    def _batches(self) -> Iterator[Batch]:
        """Every batch from the current step to the last of the run."""
        while self.step < self.total_steps:
            epoch, position = divmod(self.step, self.plan.steps_per_epoch)
            yield from load_batches(self.split, self.plan.epoch(epoch, position), self.config.train.workers)

    def train_step(self, batch: Batch) -> StepReport:
        """One step on this rank's share of a batch."""
        train, epoch = self.config.train, self.step // self.plan.steps_per_epoch
        batch = batch.to(self.device, DTYPES[train.precision])
        draws = Draws.of_step(train.seed, self.step, self.device)
        comm = self.comm.bind(len(batch))
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            losses = self.model.training_step(batch, draws, comm, self.mi_optimiser)
        terms = self._finite_terms(losses, batch)
        losses.total.backward()
        comm.sum_gradients(self.optimiser.param_groups[0]["params"])
        self._clip(batch)
        lr = train.lr * train.rate_factor(self.step, self.total_steps, epoch)
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        seconds = time.monotonic() - self._stepped_at
        self._stepped_at += seconds
        loss = terms.pop("total")
        return StepReport(
            self.step, self.total_steps, epoch, loss, terms, losses.stats, lr, seconds, comm.rows or len(batch)
        )

    def _finite_terms(self, losses: StepLosses, batch: Batch) -> dict[str, float]:
        """Every term as a number, in one transfer; the first that is NaN or infinite stops the run."""
        terms = {**losses.terms, "total": losses.total}
        values = torch.stack([term.detach().double().reshape(()) for term in terms.values()]).tolist()
        for name, value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                self._diverged(f"The loss term {name!r} is {value}", batch)
        return dict(zip(terms, values, strict=True))

    def _clip(self, batch: Batch) -> None:
        """Clip each group's gradient to `clip_norm`; a gradient that is NaN or infinite stops the run."""
        limit = self.config.train.clip_norm or math.inf
        groups = self.model.clip_groups()
        norms = torch.stack(
            [nn.utils.clip_grad_norm_(parameters, limit, foreach=True) for parameters in groups.values()]
        )
        for name, norm in zip(groups, norms.tolist(), strict=True):
            if not math.isfinite(norm):
                self._diverged(f"The gradient of {name!r} has norm {norm}", batch)

    def _diverged(self, what: str, batch: Batch) -> None:
        assert batch.index is not None
        epoch, position = divmod(self.step, self.plan.steps_per_epoch)
        rows = ", ".join(map(str, batch.index[:8].tolist())) + (", ..." if len(batch) > 8 else "")
        good = f"The state in {self.folder.path} is intact" if self.folder.state.exists() else "No state was saved yet"
        raise InputError(
            f"{what} in step {self.step + 1} (epoch {epoch}, batch {position}: clips {rows} of {self.split.name!r}).",
            f"{good}. Lower --lr, or look at those clips.",
        )

    # -- validation -------------------------------------------------------------------------------------------------

    def _end_epoch(self, epoch: int) -> None:
        """Validate where it is due, and keep the model if it is the best so far (or the last, without validation)."""
        last = self.step == self.total_steps
        if self.validation is None:
            if last:
                self._keep_model(math.inf, {})
            return
        if epoch % self.config.train.validate_every and not last:
            return
        values = self.validate(self.validation)
        record = {"kind": "validation", "step": self.step, "epoch": epoch, **values}
        self._log(record)
        if self._writes:
            self.watcher.on_validation(record)
        if values["loss"] < self.best:
            self._keep_model(values["loss"], values)

    @torch.no_grad()
    def validate(self, split: Split) -> dict[str, float]:
        """The mean loss and terms on a split, by every rank alone, so that all agree; the codebook stays as it is."""
        self.model.eval()
        codebook = {name: value.clone() for name, value in self.model.codebook.state_dict().items()}
        totals: dict[str, float] = {}
        for position, batch in enumerate(split.batches(self.plan.global_batch)):
            batch = batch.to(self.device, DTYPES[self.config.train.precision])
            draws = Draws.of_step(self.config.train.seed, -1 - position, self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
                losses = self.model.training_step(batch, draws, Comm())
            for name, value in {"loss": losses.total, **losses.terms}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(batch)
        self.model.codebook.load_state_dict(codebook)
        self._stepped_at = time.monotonic()
        return {name: value / len(split) for name, value in totals.items()}

    def _keep_model(self, score: float, values: dict[str, float]) -> None:
        """Write the model; where that fails the old one stays, and training goes on."""
        try:
            if self._writes:
                self.folder.write_model(self.model, self.config.table())
        except OutputError as error:
            if self.step == self.total_steps:
                raise
            self._warn(f"The best model of step {self.step} could not be kept. {error} Training goes on.")
            return
        self.best, self.best_step, self.best_validation = score, self.step, values

    # -- state ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a bit-for-bit continuation needs."""
        return {
            "settings": self.config.table(),
            "data": self._data(),
            "global_batch": self.plan.global_batch,
            "step": self.step,
            "best": {"score": self.best, "step": self.best_step, "validation": self.best_validation},
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "mi_optimiser": self.mi_optimiser.state_dict() if self.mi_optimiser else None,
            "log_bytes": self.folder.log_size(),
        }

    def _data(self) -> dict[str, Any]:
        """What a continued run must find again: clips, disk blocks (they decide the order) and shapes."""
        specs = {name: [spec.length, *spec.spatial, spec.width] for name, spec in self.split.specs.items()}
        return {"clips": len(self.split), "block": self.split.block, "specs": specs}

    def _take_up(self) -> None:
        """Go on from the folder's state; from the start where a run was stopped before its first save."""
        state = self.folder.read_state()
        old = state or {
            "settings": self.folder.settings(),
            "data": self._data(),
            "global_batch": self.plan.global_batch,
        }
        new = {"settings": self.config.table(), "data": self._data(), "global_batch": self.plan.global_batch}
        ignored = tuple(f"settings.train.{name}" for name in (*RUNTIME_FIELDS, "batch_size"))
        changed = differences({name: old[name] for name in new}, new, ignored)
        if changed:
            fields = "; ".join(
                f"{name.removeprefix('settings.')}: {a} then, {b} now" for name, (a, b) in changed.items()
            )
            raise UsageError(
                f"The run in {str(self.folder.path)!r} has other settings: {fields}.",
                "Resume with --resume alone, or start a new folder.",
            )
        if self._writes:
            self.folder.sweep()
            self.folder.cut_log(state["log_bytes"] if state else 0)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.mi_optimiser:
            self.mi_optimiser.load_state_dict(state["mi_optimiser"])
        self.step, best = state["step"], state["best"]
        self.best, self.best_step, self.best_validation = best["score"], best["step"], best["validation"]

    def _checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved_at >= 60.0 * self.config.train.checkpoint_minutes

    def _save(self, must: bool) -> None:
        """Write the state; where that fails the last good one stays and, unless the run ends here, training goes on."""
        self._saved_at = time.monotonic()
        try:
            if self._writes:
                self.folder.write_state(self.state())
        except OutputError as error:
            if must:
                raise
            self._warn(f"The state of step {self.step} could not be saved: the last good one stays. {error}")

    def _agree(self, *flags: bool) -> list[bool]:
        """Each flag as any rank raises it."""
        if self.comm.world == 1:
            return list(flags)
        raised = self.comm.sum(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return [value > 0 for value in raised.tolist()]

    # -- telling ----------------------------------------------------------------------------------------------------

    @property
    def _writes(self) -> bool:
        return self.comm.rank == 0

    def _tell(self, report: StepReport) -> None:
        if self._writes:
            self.watcher.on_step(report)
        if report.step % self.config.train.log_every == 0 or report.step == self.total_steps:
            self._log({"kind": "step", **asdict(report)})

    def _log(self, record: dict[str, Any]) -> None:
        if not self._writes:
            return
        self._board_add(record)
        try:
            self.folder.append_log(record)
        except OSError as error:
            self._warn(f"log.jsonl could not be written ({error.strerror}). Training goes on.")

    def _board_add(self, record: dict[str, Any]) -> None:
        """The numbers of a log line for TensorBoard, under `step/` or `validation/`."""
        if self._board is None:
            return
        for name, value in flatten(record).items():
            if isinstance(value, float):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def _warn(self, text: str) -> None:
        if self._writes:
            self.watcher.on_warning(text)


def tensorboard_writer() -> Any:
    """TensorBoard's `SummaryWriter`; its library is an extra."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_extra("tensorboard", "tensorboard") from error
    return SummaryWriter
