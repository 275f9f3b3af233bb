"""The exit codes of the contract, one by one, through the installed console script, with stdout and stderr apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli import make_checkpoint, make_features

SCRIPT = Path(sys.executable).with_name("toc")
OPTIMIZE = ("optimize", "model.safetensors", "--features", "feats.h5")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SCRIPT.exists():
        pytest.skip("the package is not installed: there is no console script beside the interpreter")
    folder = tmp_path_factory.mktemp("script")
    make_checkpoint(folder / "model.safetensors")
    make_features(folder / "feats.h5")
    assert run(folder, *OPTIMIZE, "-q").returncode == 0
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ("report", "model.toc.json", "--check", "token_agreement>=0")),
        (1, ("report", "model.toc.json", "--check", "token_agreement>1")),
        (2, (*OPTIMIZE, "--keep", "1.5")),
        (2, ("report", "model.toc.json", "--check", "token_agreemnt>=0")),
        (3, ("inspect", "feats.missing")),
        (3, ("report", "feats.h5")),
        (4, (*OPTIMIZE, "-o", "no/such/folder/x.toc.safetensors")),
    ],
)
def test_exit_code(here: Path, code: int, arguments: tuple[str, ...]) -> None:
    done = run(here, *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 0:
        assert done.stdout
        assert not done.stderr
    else:
        assert 1 <= len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert bool(done.stdout) == (code in (0, 1))
    assert "\x1b" not in done.stdout + done.stderr
