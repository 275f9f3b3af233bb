"""A disk that fills up while a command writes: exit code 4, one sentence, and nothing half-written, whatever is written.

RLIMIT_FSIZE makes every write beyond it fail, as a full disk does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import make_checkpoint, make_features

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from toc_cli.commands import main
main()
"""
CAPTURE = """
import resource, signal, sys
import torch, toc_cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
module = torch.nn.Linear(24, 24)
try:
    with toc_cli.capture(module, "captured.h5"):
        for _ in range(50):
            module(torch.randn(100, 24))
except toc_cli.errors.OutputError as error:
    print(error, file=sys.stderr)
    sys.exit(4)
"""


def folder(here: Path) -> None:
    (here / "hf").mkdir()
    make_checkpoint(here / "hf" / "model.safetensors")
    (here / "hf" / "config.json").write_text("{}")


def hdf5(here: Path) -> None:
    with h5py.File(here / "model.h5", "w") as file:
        file["codebook"] = np.random.default_rng(0).standard_normal((64, 24), dtype=np.float32)
        file["rest"] = np.zeros(5000)


def torch_file(here: Path) -> None:
    torch.save({"kmeans": {"cluster_centers_": torch.randn(64, 24)}, "rest": torch.zeros(5000)}, here / "model.pt")


def plain(here: Path) -> None:
    save_file({"codebook": torch.randn(64, 24)}, here / "model.safetensors")


EMIT = ("--features", "feats.h5", "--emit", "masked", "--assume")


@pytest.mark.parametrize(
    ("make", "limit", "command"),
    [
        (plain, 4096, ("optimize", "model.safetensors", *EMIT)),
        (plain, 7500, ("optimize", "model.safetensors", *EMIT)),
        (folder, 9000, ("optimize", "hf", *EMIT)),
        (hdf5, 100, ("optimize", "model.h5", "--codebook", "codebook", *EMIT)),
        (hdf5, 15000, ("optimize", "model.h5", "--codebook", "codebook", *EMIT)),
        (torch_file, 15000, ("optimize", "model.pt", *EMIT)),
        (plain, 100, ("quantize", "feats.h5", "--codebook", "model.safetensors", "--vectors")),
        (plain, 30000, ("quantize", "feats.h5", "--codebook", "model.safetensors", "--vectors")),
    ],
    ids=["copy", "record", "folder, then record", "h5", "h5, later", "pt", "tokens", "vectors"],
)
def test_nothing_is_left(tmp_path: Path, make: Callable[[Path], None], limit: int, command: tuple[str, ...]) -> None:
    make(tmp_path)
    make_features(tmp_path / "feats.h5", rows=3000)
    before = sorted(tmp_path.rglob("*"))
    done = run(LIMITED, str(limit), *command, here=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "could not be written: File too large." in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_the_demo_leaves_whole_files_alone(tmp_path: Path) -> None:
    done = run(LIMITED, "100000", "demo", here=tmp_path)
    assert done.returncode == 4, done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["toc-demo"]


def test_a_capture_ends_with_its_sentence(tmp_path: Path) -> None:
    done = run(CAPTURE, here=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "captured.h5 could not be written: File too large." in done.stderr
    assert not list(tmp_path.iterdir())


def run(code: str, *arguments: str, here: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=here, capture_output=True, text=True, check=False, timeout=120
    )
