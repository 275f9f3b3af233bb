"""The loop around a step: what stops it, what does not, and what it leaves."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fcid.tiny import tiny_config, tiny_data, tiny_trainer
from toc_cli.errors import InputError, OutputError, UsageError
from toc_cli.fcid.aligner import StepLosses
from toc_cli.fcid.run_folder import RunFolder, load_model
from toc_cli.fcid.schedule import one_cycle, steps_down
from toc_cli.fcid.settings import read_settings
from toc_cli.fcid.train_config import RunConfig, TrainConfig, run_config
from toc_cli.fcid.trainer import StepReport, Trainer, Watcher


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "tiny.h5")


def test_a_run_learns_and_leaves_what_it_promises(data: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    config = tiny_config(epochs=6)
    trainer = tiny_trainer(data, tmp_path / "run", config, watcher=Watcher(on_step=reports.append))
    summary = trainer.fit()
    assert [report.step for report in reports] == list(range(1, 31))
    assert sum(r.loss for r in reports[-5:]) < 0.9 * sum(r.loss for r in reports[:5])
    assert all(math.isfinite(value) for report in reports for value in report.terms.values())
    assert run_config(read_settings(tmp_path / "run/config.toml")) == config
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [5, 10, 15, 20, 25, 30]
    best = min((line for line in lines if line["kind"] == "validation"), key=lambda line: line["loss"])
    assert summary.best_step == best["step"]
    assert summary.validation["loss"] == best["loss"]


def test_the_model_file_stands_alone(data: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(data, tmp_path / "run", tiny_config(epochs=1))
    trainer.fit()
    model, config = load_model(tmp_path / "run")
    assert config == trainer.config
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), trainer.model.state_dict().values(), strict=True)
    )
    with safe_open(tmp_path / "run/model.safetensors", framework="pt") as file:
        assert {"codebook.coarse.embedding", "codebook.fine.embedding", "codebook.fine.ema_count"} <= set(file.keys())
    (tmp_path / "run/model.safetensors").write_bytes(b"no header")
    with pytest.raises(InputError, match="can't be read"):
        load_model(tmp_path / "run")


def test_without_validation_the_last_model_is_kept(data: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(data, tmp_path / "run", tiny_config(epochs=2))
    trainer.validation = None
    assert trainer.fit().best_step == 10
    model, _ = load_model(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trainer.model.parameters(), strict=True))


def test_validation_leaves_model_and_codebook_alone(data: Path, tmp_path: Path) -> None:
    for profile in ("corrected", "published"):
        config = run_config({**tiny_config().table(), "model": {"profile": profile, "width": 8, "heads": 2}})
        trainer = tiny_trainer(data, tmp_path / profile, config)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        assert trainer.validation is not None
        assert trainer.validate(trainer.validation) == trainer.validate(trainer.validation)
        assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


class BadTerm:
    """Makes one loss term NaN from step `at` on, as an overflow would."""

    def __init__(self, trainer: Trainer, at: int) -> None:
        self.trainer, self.at, self.step = trainer, at, trainer.model.training_step
        trainer.model.training_step = self  # type: ignore[assignment, method-assign]

    def __call__(self, *arguments: object) -> StepLosses:
        losses = self.step(*arguments)  # type: ignore[arg-type]
        if self.trainer.step + 1 < self.at:
            return losses
        terms = {**losses.terms, "cmcm": losses.terms["cmcm"] * math.nan}
        return StepLosses(losses.total * math.nan, terms, losses.stats)


def test_a_nan_loss_names_term_and_batch_and_leaves_the_last_state(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = tiny_trainer(data, run, tiny_config(checkpoint_minutes=0.0))
    BadTerm(trainer, at=8)
    with pytest.raises(InputError) as error:
        trainer.fit()
    rows = trainer.plan.epoch(1)[2]
    assert error.value.what == (
        f"The loss term 'cmcm' is nan in step 8 (epoch 1, batch 2: clips {', '.join(map(str, rows))} of 'train')."
    )
    state = RunFolder(run).read_state()
    assert state is not None
    assert state["step"] == 7
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    resumed = tiny_trainer(data, run)
    assert resumed.fit(resume=True).steps == 15


def test_a_nan_gradient_stops_too(data: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(data, tmp_path / "run")
    bias = next(parameter for parameter in trainer.model.encoder.parameters() if parameter.requires_grad)  # type: ignore[union-attr]
    bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(InputError, match="The gradient of 'encoder' has norm nan in step 1"):
        trainer.fit()


def test_nan_features_are_named(data: Path, tmp_path: Path) -> None:
    import h5py

    bad = tiny_data(tmp_path / "bad.h5")
    with h5py.File(bad, "a") as file:
        file["train/audio"][17, 2] = np.nan
    with pytest.raises(InputError, match=r"train/audio of bad.h5 holds NaN or infinity in row 17"):
        tiny_trainer(bad, tmp_path / "run").fit()


class FullDisk:
    """os.fsync that fails as a full disk does, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, fsync = False, os.fsync

        def failing(descriptor: int) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)


def test_a_full_disk_warns_and_training_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, warnings = FullDisk(monkeypatch), []
    run = tmp_path / "run"

    def on_step(report: StepReport) -> None:
        disk.full = 4 <= report.step <= 11
        state = RunFolder(run).read_state()
        if 4 <= report.step <= 12:
            assert state is not None
            assert state["step"] == 3  # the last good one

    config = tiny_config(checkpoint_minutes=0.0)
    summary = tiny_trainer(data, run, config, watcher=Watcher(on_step=on_step, on_warning=warnings.append)).fit()
    assert summary.steps == 15
    assert sum("could not be saved: the last good one stays" in text for text in warnings) == 8
    assert any("The best model of step 5 could not be kept" in text for text in warnings)
    assert all("No space left on device" in text for text in warnings)
    assert not list(run.glob(".*"))
    free = tiny_trainer(data, tmp_path / "free")
    free.fit()
    assert all(torch.equal(a, b) for a, b in zip(free.model.parameters(), load_last(run).values(), strict=False))


def load_last(run: Path) -> dict[str, Tensor]:
    state = RunFolder(run).read_state()
    assert state is not None
    return {name: value for name, value in state["model"].items() if not name.startswith("codebook")}


def test_a_full_disk_at_the_end_is_an_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)

    def on_step(report: StepReport) -> None:
        disk.full = report.step == 15

    with pytest.raises(OutputError, match=r"model\.safetensors could not be written: No space left"):
        tiny_trainer(data, tmp_path / "run", watcher=Watcher(on_step=on_step)).fit()


def test_a_missing_modality_is_named(tmp_path: Path) -> None:
    import h5py

    path = tiny_data(tmp_path / "d.h5")
    with h5py.File(path, "a") as file:
        del file["train/text"]
    with pytest.raises(InputError, match=r"Split 'train' of d.h5 has no modality 'text'; it has audio, video"):
        tiny_trainer(path, tmp_path / "run")


def test_bf16_needs_cuda(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bf16 needs CUDA"):
        tiny_trainer(data, tmp_path / "run", tiny_config(precision="bf16"))


def test_float64_on_request(data: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(data, tmp_path / "run", tiny_config(precision="float64", epochs=1))
    trainer.fit()
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float64}
    assert load_model(tmp_path / "run")[0].codebook["coarse"].embedding.dtype == torch.float64


def test_a_last_smaller_batch_is_kept_on_request(tmp_path: Path) -> None:
    sizes: list[int] = []
    path = tiny_data(tmp_path / "d.h5", clips=14)
    watcher = Watcher(on_step=lambda report: sizes.append(report.clips))
    tiny_trainer(path, tmp_path / "run", tiny_config(epochs=1, drop_last=False), watcher=watcher).fit()
    assert sizes == [6, 6, 2]


def test_tensorboard_gets_the_figures_of_the_log(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_trainer(data, tmp_path / "run", tiny_config(epochs=1, tensorboard=True)).fit()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    logged = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in logged if line["kind"] == "step"}
    assert {event.step: event.value for event in events.Scalars("step/loss")} == pytest.approx(losses)
    assert len(events.Scalars("validation/loss")) == 1


def test_schedules() -> None:
    assert one_cycle(0.0, 0.1) == pytest.approx(0.04)
    assert one_cycle(0.1, 0.1) == pytest.approx(1.0)
    assert one_cycle(1.0, 0.1) == pytest.approx(0.004)
    rates = [one_cycle(step / 100, 0.1) for step in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert [steps_down(epoch, (10, 20, 30), 0.5) for epoch in (0, 9, 10, 20, 35)] == [1, 1, 0.5, 0.25, 0.125]
    assert TrainConfig(schedule="constant").rate_factor(7, 10, 3) == 1.0


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"trian": {}}, r"There is no table \[trian\]"),
        ({"train": {"epoch": 3}}, r"There is no setting train.epoch. Did you mean train.epochs\?"),
        ({"train": {"epochs": "many"}}, "train.epochs is 'many'; it must be of type int"),
        ({"train": {"schedule": "cosine"}}, "train.schedule is 'cosine'. It can be: one-cycle, steps, constant"),
        ({"train": {"epochs": 0}}, "train.epochs is 0; it must be at least 1"),
        ({"train": {"lr": float("nan")}}, "train.lr is nan; it must be above 0"),
        ({"train": {"warmup": 1.0}}, "train.warmup is 1.0"),
        ({"model": {"widht": 3}}, "no setting 'widht'"),
    ],
)
def test_settings_that_cannot_be(tables: dict[str, dict[str, object]], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run_config(tables)


def test_the_published_profile_brings_its_training() -> None:
    config = run_config({"model": {"profile": "published"}, "train": {"epochs": 2}})
    assert (config.train.lr, config.train.batch_size, config.train.schedule) == (4e-4, 80, "steps")
    assert config.train.epochs == 2
    assert isinstance(config, RunConfig)
