"""What bad input gets: its exit code, one sentence, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import Done, make_checkpoint, make_features, toc


@pytest.fixture
def here(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model.safetensors")
    make_features(tmp_path / "feats.h5")
    return tmp_path


def optimize(here: Path, *more: object) -> Done:
    return toc("optimize", "model.safetensors", "--features", "feats.h5", *more, cwd=here)


def refused(done: Done, code: int, *words: str) -> None:
    """One or two lines on stderr with these words, nothing on stdout, no traceback."""
    assert done.code == code, done.err
    lines = [line for line in done.err.strip().splitlines() if not line.startswith("warning:")]
    assert 1 <= len(lines) <= 2, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err
    assert done.out == ""


def nothing_left(here: Path) -> None:
    assert sorted(path.name for path in here.iterdir()) == ["feats.h5", "model.safetensors"]


@pytest.mark.parametrize("keep", ["0", "-1", "1.5", "abc", "25", "200%", "", " ", "budget", "nan", "auto"])
def test_keep_that_cannot_be_meant(here: Path, keep: str) -> None:
    refused(optimize(here, f"--keep={keep}"), 2, "--keep")
    nothing_left(here)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--criterion", "best"), ("--weights", "1"), ("--weights", "a,b"), ("--normalize", "l1"), ("--ratio", "0:0"),
        ("--emit", "pickle"), ("--fill", "median"), ("--metric", "manhattan"), ("--max-memory", "lots"), ("--eval-rows", "-1"),
        ("--eval-rows", "0"), ("--sweep", "0:2:5"), ("--sweep", "x"), ("--device", "tpu"), ("--output", "out.bin"), ("--nonsense", "1"),
        ("--min-agreement", "2"), ("--max-distortion", "nan"), ("--max-distortion", "inf"), ("--seed", "-1"), ("--sweep", "0.5,x"),
        ("--features", ""),
    ],
)  # fmt: skip
def test_flag_that_cannot_be_meant(here: Path, flag: str, value: str) -> None:
    refused(optimize(here, flag, value), 2)
    nothing_left(here)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(here: Path, value: float) -> None:
    rows = np.zeros((300, 24), np.float32)
    rows[217, 3] = value
    make_features(here / "feats.h5", clean=np.ones((10, 24), np.float32), audio=rows)
    refused(optimize(here), 3, "audio", "217")
    nothing_left(here)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((10, 23), np.float32), ("24", "23")),
        (np.zeros((0, 24), np.float32), ("empty",)),
        (np.zeros((10, 24), np.int32), ("integer",)),
        (np.zeros((10, 24), np.complex64), ("complex",)),
    ],
    ids=["wrong width", "empty", "integer", "complex"],
)
def test_features_that_cannot_be_features(here: Path, rows: np.ndarray, words: tuple[str, ...]) -> None:
    make_features(here / "feats.h5", x=rows)
    refused(optimize(here), 3, *words)
    nothing_left(here)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.ones(1, 24), ("two codes",)),
        (torch.zeros(64, 24), ("never initialised",)),
        (torch.full((64, 24), float("nan")), ("NaN",)),
        (torch.ones(64, 24, dtype=torch.int64), ("quantize.embedding.weight", "int64")),
    ],
    ids=["one code", "all zero", "NaN", "integers"],
)
def test_codebooks_that_cannot_be_scored(here: Path, codes: torch.Tensor, words: tuple[str, ...]) -> None:
    make_checkpoint(here / "model.safetensors", codes)
    refused(optimize(here), 3, *words)
    nothing_left(here)


def test_constant_dimensions_work_and_are_warned_of(here: Path) -> None:
    codes = torch.randn(64, 24)
    codes[:, 5] = 2.0
    make_checkpoint(here / "model.safetensors", codes)
    done = optimize(here)
    assert done.code == 0
    assert "1 of 24 dimensions tell no codes apart, constant over all of them (5)." in done.err


def test_dead_codes_work_and_are_warned_of(here: Path) -> None:
    codes = torch.randn(64, 24)
    codes[40:] = 0
    make_checkpoint(here / "model.safetensors", codes)
    done = optimize(here)
    assert done.code == 0
    assert "all zero as never used codes are: 24 of 64." in done.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("missing.safetensors", "--features", "feats.h5"), 3),
        (("a" * 300, "--features", "feats.h5"), 3),
        (("model.safetensors", "--features", "a" * 300 + "=b"), 3),
        (("model.safetensors", "--features", "missing.h5"), 3),
        (("model.safetensors",), 2),
        (("model.safetensors", "--features", "feats.h5", "--modality", "sound"), 2),
        (("model.safetensors", "--features", "feats.h5", "--codebook", "no.such.key"), 3),
        (("model.safetensors", "--features", "feats.h5", "-o", "no/such/folder/x.toc.safetensors"), 4),
        (("model.safetensors", "--features", "feats.h5", "--criterion", "xcov"), 3),
    ],
)
def test_files_that_are_not_there(here: Path, arguments: tuple[str, ...], code: int) -> None:
    refused(toc("optimize", *arguments, cwd=here), code)
    nothing_left(here)


def test_a_folder_without_weights(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    refused(toc("optimize", tmp_path_factory.mktemp("empty"), "--features", "feats.h5", cwd=here), 3)


def test_output_that_exists_is_kept_without_force(here: Path) -> None:
    (here / "model.toc.safetensors").write_text("mine")
    refused(optimize(here), 2, "model.toc.safetensors", "--force")
    assert (here / "model.toc.safetensors").read_text() == "mine"
    assert optimize(here, "--force").code == 0
    assert (here / "model.toc.safetensors").read_bytes() != b"mine"


def test_no_output_replaces_an_input(here: Path) -> None:
    (here / "feats.h5").rename(here / "model.toc.json")
    before = (here / "model.toc.json").read_bytes()
    done = toc("optimize", "model.safetensors", "--features", "model.toc.json", "--force", cwd=here)
    refused(done, 2, "model.toc.json is an input")
    make_features(here / "more.h5")
    quantise = ("quantize", "model.toc.json", "more.h5", "--codebook", "model.safetensors", "--force", "-o")
    for name in ("model.toc.json", "more.h5", "model.safetensors"):
        refused(toc(*quantise, name, cwd=here), 2, f"{name} is an input")
    assert (here / "model.toc.json").read_bytes() == before


def test_a_device_is_never_replaced(here: Path) -> None:
    (here / "model.toc.json").symlink_to(os.devnull)
    refused(optimize(here, "--force"), 2, "no regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_is_not_writable(here: Path) -> None:
    here.chmod(0o500)
    try:
        refused(optimize(here), 4, "not writable")
    finally:
        here.chmod(0o700)


def wait_until_reading(pid: int, name: str) -> None:
    """Until the process holds the file open."""
    for _ in range(600):
        time.sleep(0.1)
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(link).endswith(name):
                    return
    raise AssertionError(f"{name} was never opened")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at the open files of a process in /proc")
def test_ctrl_c_leaves_nothing(here: Path) -> None:
    make_features(here / "feats.h5", rows=400_000)
    command = [
        sys.executable,
        "-m",
        "toc_cli",
        "optimize",
        "model.safetensors",
        "--features",
        "feats.h5",
        "--eval-rows",
        "all",
    ]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until_reading(process.pid, "feats.h5")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    nothing_left(here)


def test_names_from_files_are_shown_inert(here: Path) -> None:
    evil = "x\x1b[31m[red]<script>"
    make_features(here / "feats.h5", **{evil: np.full((9, 24), np.nan, np.float32)})
    done = optimize(here)
    assert done.code == 3
    assert "\x1b" not in done.err
    assert "[red]<script>" in done.err


def test_a_hostile_codebook_name_is_shown_inert(here: Path) -> None:
    from safetensors.torch import save_file

    save_file({"quantize\x1b[31m[bold]<b>.embedding.weight": torch.randn(64, 24)}, here / "model.safetensors")
    for done in (toc("inspect", "model.safetensors", cwd=here), optimize(here)):
        assert "\x1b" not in done.out + done.err
        assert "Traceback" not in done.err
