"""The exit codes of the contract, one by one, through the installed console script, with stdout and stderr apart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cli import SCRIPT, make_checkpoint, make_features

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


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | environment
    return subprocess.run(
        [SCRIPT, *arguments], cwd=folder, env=own, capture_output=True, text=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ("report", "model.toc.json", "--check", "token_agreement>0")),
        (1, ("report", "model.toc.json", "--check", "token_agreement>=1")),
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


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "model.safetensors"),
        ("inspect", "model.safetensors", "--json"),
        ("report", "model.toc.json", "--format", "html"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_reader_that_goes_away_ends_it_silently(here: Path, arguments: tuple[str, ...]) -> None:
    """As in `toc inspect … | head -0`: 141, and no word."""
    process = subprocess.Popen([SCRIPT, *arguments], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ("inspect", {"PYTHONIOENCODING": "cp1252"}),
        ("inspect", {"LC_ALL": "C"}),
        ("report", {"PYTHONIOENCODING": "ascii"}),
    ],
)
def test_a_stdout_that_cannot_say_it_gets_ascii(here: Path, command: str, environment: dict[str, str]) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    words = [SCRIPT, command, "model.safetensors" if command == "inspect" else "model.toc.json"]
    done = subprocess.run(words, cwd=here, env=clean | environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(environment.get("PYTHONIOENCODING", "ascii"))
    assert "\\u" not in text
    assert command == "report" or "+ codebook" in text
