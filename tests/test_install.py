"""README's install lines resolve on every Python that the project claims, from PyPI alone; so do the oldest versions it allows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
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


def build(kind: str, target: Path) -> Path:
    """What the project's own backend builds, in the environment of this test, under one SOURCE_DATE_EPOCH."""
    program = f"import sys; sys.path.insert(0, '.ci'); import backend; print(backend.build_{kind}(sys.argv[1]))"
    source = target / "source"
    skipped = shutil.ignore_patterns(".git", ".venv", "*.so", "*.egg-info", "build", "dist", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)
    done = subprocess.run(
        [sys.executable, "-c", program, str(target)], cwd=source, env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def _builds() -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools


@pytest.mark.usefixtures("_builds")
def test_the_sdist_is_whole_and_the_same_twice(tmp_path: Path) -> None:
    first, second = (build("sdist", tmp_path / name) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "toc_cli", "examples"):
        own = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert own <= names
    assert {
        "CHANGELOG.md",
        "README.md",
        ".ci/constraints.txt",
        ".ci/backend.py",
        "toc_cli/ops/assign/_kernel.h",
    } <= names


@pytest.mark.usefixtures("_builds")
def test_one_wheel_serves_every_python(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "toc_cli/py.typed" in names
    assert "toc_cli/report/template.html" in names
    assert not [name for name in names if name.endswith((".c", ".h")) or name.startswith("tests/")]
    if any(name.endswith(".abi3.so") for name in names):
        assert "-cp310-abi3-" in wheel.name


def test_no_callback_is_annotated_with_a_list_of_something() -> None:
    """On Python 3.10 `list[str]` passes for a class, and typer fails over it before any command runs."""
    import inspect
    import typing

    from toc_cli.commands import places

    for _, function in inspect.getmembers(places, inspect.isfunction):
        hints = typing.get_type_hints(function)
        assert not any(typing.get_origin(hint) in (list, dict, tuple) for hint in hints.values())
