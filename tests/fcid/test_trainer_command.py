"""`toc train-fcid` as a user types it: settings, processes, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fcid.tiny import tiny_config, tiny_data
from toc_cli.commands import app
from toc_cli.errors import InputError, UsageError
from toc_cli.fcid.run_folder import RunFolder, load_model
from toc_cli.fcid.settings import assignment, merge, to_toml

SMALL = ["--set", "model.width=8", "--set", "model.heads=2", "--set", "model.codebook.size=6", "--batch-size", "6"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "tiny.h5")


def toc(*arguments: object) -> str:
    """stdout of the command, run here."""
    result = CliRunner().invoke(app, ["train-fcid", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_flags_go_before_the_file_and_the_file_before_the_profile(data: Path, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(to_toml(tiny_config(lr=0.002, epochs=9).table()))
    out = toc(data, "-o", tmp_path / "run", "--config", tmp_path / "small.toml", "--epochs", 1, "--json", "-q")
    result = json.loads(out)
    assert result["steps"] == 5
    assert result["validation"]["loss"] > 0
    settings = RunFolder(tmp_path / "run").settings()
    assert settings["train"]["lr"] == 0.002
    assert settings["train"]["epochs"] == 1
    assert settings["model"]["width"] == 8


def test_yaml_is_read_where_its_library_is(data: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tiny_config(epochs=1).table()))
    assert "step 5 of 5" in toc(data, "-o", tmp_path / "run", "--config", tmp_path / "small.yaml")


@pytest.mark.parametrize("count", [1, 2])
def test_plain_with_one_codebook_and_two(count: int, data: Path, tmp_path: Path) -> None:
    toc(data, "-o", tmp_path / "run", *SMALL, "--epochs", 1, "--profile", "plain", "--codebooks", count, "-q")
    settings = RunFolder(tmp_path / "run").settings()["model"]
    assert (settings["profile"], settings["readout"]) == ("plain", ("coarse", "both")[count - 1])
    model, _ = load_model(tmp_path / "run")
    assert len(model.codebook) == count


@pytest.mark.parametrize(
    "said", [["--alignment", "uniform"], ["--set", "model.alignment=uniform"], ["--config", "uniform.toml"]]
)
def test_uniform_alignment_has_one_codebook_wherever_it_is_said(said: list[str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "uniform.toml").write_text('[model]\nalignment = "uniform"\n')
    said = [str(tmp_path / word) if word.endswith(".toml") else word for word in said]
    with pytest.raises(UsageError, match="Uniform alignment has one codebook"):
        toc(data, "-o", tmp_path / "run", *SMALL, *said, "--codebooks", 2)
    assert not (tmp_path / "run").exists()


def test_published_and_uniform(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "tiny.h5", words=4)
    flags = ["--profile", "published", "--alignment", "uniform", "--epochs", 1, "--json"]
    assert json.loads(toc(data, "-o", tmp_path / "run", *SMALL, *flags))["steps"] == 5


def test_init_starts_from_the_weights_of_a_run(data: Path, tmp_path: Path) -> None:
    toc(data, "-o", tmp_path / "first", *SMALL, "--epochs", 2, "-q")
    toc(
        data,
        "-o",
        tmp_path / "second",
        "--init",
        tmp_path / "first",
        "--epochs",
        1,
        "--lr",
        1e-9,
        "--batch-size",
        6,
        "-q",
    )
    first, second = (load_model(tmp_path / name)[0].state_dict() for name in ("first", "second"))
    trained = [name for name in first if name.startswith("encoder") and name.endswith("weight")]
    assert trained
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in trained)
    books = [name for name in first if name.endswith(".embedding")]
    assert books
    for name in books:  # five steps of decay 0.99 away, not drawn anew from the first batch
        moved = (second[name] - first[name]).norm() / first[name].norm()
        assert moved < 0.2, name
    toc(data, "-o", tmp_path / "fresh", *SMALL, "--epochs", 1, "--lr", 1e-9, "-q")
    fresh = load_model(tmp_path / "fresh")[0].state_dict()
    assert not all(torch.allclose(first[name], fresh[name], atol=1e-5) for name in trained)
    with pytest.raises(UsageError, match="Leave out --init"):
        toc(data, "-o", tmp_path / "second", "--init", tmp_path / "first", "--resume")


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (["--profile", "publisht"], UsageError, "no profile 'publisht'"),
        (["--set", "model.widht=8"], UsageError, "no setting 'widht'"),
        (["--set", "width"], UsageError, "'width' is no setting. Write it as table.name=value"),
        (["--batch-size", "1"], UsageError, "one clip has no negatives"),
        (["--batch-size", "31"], InputError, "30 clips, fewer than one batch of 31"),
        (["--set", "model.coarse=['smell']"], InputError, "has no modality 'smell'; it has audio, text, video"),
        (["--set", "train.train_split='no'"], InputError, "no split 'no'. It has: train, val"),
        (["--config", "nowhere.toml"], InputError, "settings nowhere.toml can't be read: No such file"),
        (["--device", "tpu"], UsageError, "There is no device 'tpu'"),
        (["--resume"], InputError, "holds no run"),
    ],
)
def test_what_cannot_be(
    data: Path, tmp_path: Path, arguments: list[str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        toc(data, "-o", tmp_path / "run", *SMALL, *arguments)
    assert not (tmp_path / "run").exists()


def test_settings_as_text() -> None:
    assert assignment("model.codebook.size=128") == {"model": {"codebook": {"size": 128}}}
    assert assignment("train.schedule=steps") == {"train": {"schedule": "steps"}}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}


def test_torchrun_trains_one_model(data: Path, tmp_path: Path) -> None:
    flags = ["--epochs", "2", "--precision", "float64", *SMALL[:-1]]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "toc_cli"]
    command = [sys.executable, *ranks, "train-fcid", data, "-o", tmp_path / "two", *flags, "3", "--json", "-q"]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one = json.loads(toc(data, "-o", tmp_path / "one", *flags, 6, "--json", "-q"))
    two = json.loads(done.stdout)
    assert two["steps"] == one["steps"] == 10
    assert two["validation"] == pytest.approx(one["validation"], rel=1e-6, abs=1e-9)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_saves_and_leaves_with_130(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--epochs", "2000", "--set", "train.log_every=1", *SMALL]
    command = [sys.executable, "-m", "toc_cli", "train-fcid", data, "-o", run, *flags]
    process = subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Continue with --resume" in errors
    state = RunFolder(run).read_state()
    assert state is not None
    assert 0 < state["step"] < 10_000
