"""A checkpoint that something writes to during a run: exit 3, it is named, and nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cli import make_checkpoint, make_features, toc
from toc_cli.errors import InputError
from toc_cli.io.checkpoint import Checkpoint, open_checkpoint


def touched(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def replaced(path: Path) -> None:
    """By a file of the same size and time."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


CHANGES: dict[str, Callable[[Path], None]] = {"touched": touched, "replaced": replaced, "gone": Path.unlink}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_features(tmp_path / "feats.h5")
    return make_checkpoint(tmp_path / "model.safetensors")


def after(monkeypatch: pytest.MonkeyPatch, place: str, change: Callable[[], None]) -> None:
    """Let the input change right after a function of the run returns for the first time."""
    module, _, name = place.rpartition(".")
    real = getattr(__import__(module, fromlist=["x"]), name)
    left = [change]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        try:
            return real(*arguments, **named)
        finally:
            if left:
                left.pop()()

    monkeypatch.setattr(place, wrapped)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("optimize", "model.safetensors", "--features", "feats.h5"), "toc_cli.pipeline.planning.count_usage"),
        (
            ("optimize", "model.safetensors", "--features", "feats.h5", "--emit", "masked"),
            "toc_cli.pipeline.emission.edits_for",
        ),
        (("quantize", "feats.h5", "--codebook", "model.safetensors"), "toc_cli.pipeline.quantize.choose_codebook"),
    ],
)
def test_a_checkpoint_that_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch, change: str, command: tuple[str, ...], place: str
) -> None:
    after(monkeypatch, place, lambda: CHANGES[change](model))
    done = toc(*command, cwd=model.parent)
    assert done.code == 3, done.err
    assert "model.safetensors changed while it was read" in done.err
    assert {path.name for path in model.parent.iterdir()} <= {"model.safetensors", "feats.h5"}


def test_every_file_of_a_model_is_watched(tmp_path: Path) -> None:
    save_file({"quantize.embedding.weight": torch.randn(8, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")

    def opened() -> Checkpoint:
        checkpoint = open_checkpoint(tmp_path)
        checkpoint.refuse_changes()
        return checkpoint

    (tmp_path / "notes.txt").write_text("what lies beside it is no input")
    for path in opened().files:
        checkpoint = opened()
        touched(path)
        with pytest.raises(InputError, match=rf"{path.name} changed while it was read"):
            checkpoint.refuse_changes()
    assert len(opened().files) == 2
