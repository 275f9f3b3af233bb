"""README's install lines resolve on every Python that the project claims, from PyPI alone; so do the oldest versions it allows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLAIMED = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
INDEX = "https://pypi.org/simple"


def install_lines() -> list[list[str]]:
    """The words of each `pip install …` in README's fenced blocks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in re.findall(r"^pip install ([^&\n]+)", text, re.MULTILINE)]


def extras(words: list[str]) -> str:
    return next(match[1] for word in words if (match := re.fullmatch(r"\.\[([\w,-]+)\]", word)))


@pytest.fixture(scope="session")
def resolver() -> str:
    found = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("uv is not installed: pip install -e '.[dev]'")
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"pypi.org cannot be reached: {error}")
    return found


def resolve(resolver: str, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The versions that a Linux machine with this Python and no settings of its own would install; metadata only."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    command = [
        resolver, "pip", "compile", "pyproject.toml", "--no-config", "--default-index", INDEX, "--only-binary", ":all:",
        "--python-platform", "x86_64-manylinux_2_28", "--python-version", python, "--no-python-downloads", "--no-header",
        "--no-annotate", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)


def test_the_pythons_claimed_are_those_required() -> None:
    assert PROJECT["requires-python"] == f">={CLAIMED[0]}"
    assert len(install_lines()) == 2


@pytest.mark.parametrize("python", CLAIMED)
@pytest.mark.parametrize("line", install_lines(), ids=extras)
def test_readme_installs(resolver: str, line: list[str], python: str) -> None:
    constraints = line[line.index("-c") + 1]
    done = resolve(resolver, python, "-c", constraints, *(f"--extra={extra}" for extra in extras(line).split(",")))
    assert done.returncode == 0, done.stderr
    pinned = (ROOT / constraints).read_text(encoding="utf-8")
    torch = re.search(r"^torch==(\S+)", pinned, re.MULTILINE)
    assert torch is not None
    assert f"torch=={torch[1]}" in done.stdout.splitlines()


@pytest.mark.parametrize("extra", ["report", "test", "test-libs", "yaml", "tensorboard"])
def test_the_oldest_versions_go_together(resolver: str, extra: str) -> None:
    done = resolve(resolver, CLAIMED[0], "--resolution", "lowest-direct", "--extra", extra)
    assert done.returncode == 0, done.stderr


def test_the_tried_versions_hold_nothing_that_torch_pins() -> None:
    names = re.findall(r"^([\w-]+)==", (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert not [name for name in names if name.startswith(("triton", "nvidia", "cuda"))]
