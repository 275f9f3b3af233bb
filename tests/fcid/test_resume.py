"""A run that is stopped anywhere goes on bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcid.tiny import processes, tiny_config, tiny_data, tiny_trainer, train_and_die
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.run_folder import RunFolder

if sys.platform == "win32":
    pytest.skip("kills are sent by signals, to forked processes", allow_module_level=True)

STEPS = 15  # 3 epochs of 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "tiny.h5", ragged=True)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    in_child(data, run, False, {})
    return run


def in_child(data: Path, run: Path, resume: bool, kills: dict[int, int], minutes: float = 0.0) -> int | None:
    """The run in a process of its own, with a save every `minutes`; its exit code."""
    config = tiny_config(checkpoint_minutes=minutes)
    child = processes().Process(target=train_and_die, args=(data, run, config, resume, kills))
    child.start()
    child.join(120)
    return child.exitcode


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights, optimisers, codebooks and figures, bit for bit."""
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert_equal(RunFolder(a).read_state(), RunFolder(b).read_state())
    assert figures(a) == figures(b)


def assert_equal(a: object, b: object, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where  # type: ignore[arg-type]
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where  # type: ignore[attr-defined]
        for key in a.keys() - {"log_bytes"}:  # lines hold times
            assert_equal(a[key], b[key], f"{where}/{key}")  # type: ignore[index]
    else:
        assert a == b, where


def figures(run: Path) -> list[dict[str, object]]:
    """The log without its times."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_kill_at_twenty_random_steps(data: Path, whole: Path, tmp_path: Path) -> None:
    """Twenty kills, by SIGKILL, SIGTERM or Ctrl-C, over several runs; each run ends as if nothing had happened."""
    dice = random.Random(11)
    for number, count in enumerate((1, 3, 7, 9)):
        run = tmp_path / f"run{number}"
        resume = False
        for step in sorted(dice.sample(range(1, STEPS), count)):
            kind = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            code = in_child(data, run, resume, {step: kind})
            assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 1}[kind]
            resume = True
        assert in_child(data, run, resume, {}) == 0
        assert_same_run(run, whole)


def test_a_run_killed_before_its_first_save_starts_again(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert in_child(data, run, False, {3: signal.SIGKILL}, minutes=60.0) == -9
    assert not (run / "resume.ckpt").exists()
    (run / ".resume.ckpt.1a2b3c4d.tmp").write_bytes(b"half")
    assert in_child(data, run, True, {}) == 0
    assert not list(run.glob(".*"))
    assert figures(run) == figures(whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_finished_run_stays_as_it_is(data: Path, whole: Path) -> None:
    before = (whole / "model.safetensors").read_bytes()
    summary = tiny_trainer(data, whole).fit(resume=True)
    assert summary.steps == STEPS
    assert summary.validation["loss"] > 0
    assert (whole / "model.safetensors").read_bytes() == before


def test_another_config_says_which_fields_differ(data: Path, whole: Path) -> None:
    other = tiny_config(lr=0.5, batch_size=5, log_every=3)
    other = replace(other, model=replace(other.model, dropout=0.25))
    with pytest.raises(UsageError) as error:
        tiny_trainer(data, whole, other).fit(resume=True)
    assert error.value.what.endswith(
        "has other settings: global_batch: 6 then, 5 now; model.dropout: 0.1 then, 0.25 now; "
        "train.lr: 0.002 then, 0.5 now."
    )


def test_other_data_is_noticed(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.clips: 30 then, 36 now"):
        tiny_trainer(tiny_data(tmp_path / "more.h5", clips=36), whole).fit(resume=True)


def test_a_folder_with_a_run_is_not_overwritten(data: Path, whole: Path) -> None:
    with pytest.raises(UsageError, match=r"already holds a run. Continue it with --resume"):
        tiny_trainer(data, whole).fit()


def test_resume_without_a_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        tiny_trainer(data, tmp_path / "none").fit(resume=True)


def test_a_damaged_state_is_a_sentence(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "resume.ckpt").write_bytes((run / "resume.ckpt").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"resume.ckpt' can't be read"):
        tiny_trainer(data, run).fit(resume=True)
