"""README and the program say the same: commands, options, exit codes; each command has help with an example that runs as written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main

from cli import make_checkpoint, make_features, toc
from toc_cli.commands import app
from toc_cli.ops.criterion import CRITERIA

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUP = typer.main.get_group(app)
COMMANDS = sorted(GROUP.commands)
COMMON = {"--help", "--json", "--quiet", "--force", "--output", "--version"}


def options(command: str) -> set[str]:
    return {word for parameter in GROUP.commands[command].params for word in parameter.opts if word.startswith("--")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_readme(command: str) -> None:
    assert f"`toc {command}" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_own_example(command: str) -> None:
    done = toc(command, "--help")
    assert done.code == 0
    assert f"Example: toc {command}" in " ".join(done.out.split())


def test_readme_names_every_option_of_optimize() -> None:
    missing = {
        option for option in options("optimize") - COMMON if f"`{option}" not in README and f"{option} " not in README
    }
    assert not missing, f"README does not name {sorted(missing)}"


def test_readme_and_help_name_every_criterion() -> None:
    assert f"`--criterion {'|'.join(CRITERIA)}|auto`" in README
    listed = " ".join(toc("optimize", "--help").out.replace("│", " ").split())
    assert not [name for name in CRITERIA if f"{name}:" not in listed]


def test_readme_names_no_option_that_is_not_there() -> None:
    own = {word for parameter in GROUP.params for word in parameter.opts if word.startswith("--")}
    known = set.union(*map(options, COMMANDS)) | COMMON | own
    foreign = {"--nproc-per-node", "--install-completion"}  # of torchrun and of typer
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named <= known | foreign, f"README names {sorted(named - known - foreign)}"


def test_the_options_of_optimize_are_frozen() -> None:
    """The contract's flags: a change here is a change for users, and needs a CHANGELOG line."""
    assert options("optimize") == {
        "--features", "--keep", "--budget", "--bytes", "--codes", "--vocab", "--levels", "--refresh", "--lean",
        "--criterion", "--weights", "--normalize", "--ratio", "--emit", "--fill", "--max-distortion",
        "--min-agreement", "--sweep", "--codebook", "--layout", "--metric", "--stack", "--assume",
        "--rows", "--table", "--scale", "--modality", "--channel-axis", "--space",
        "--limit", "--eval-rows",
        "--max-memory", "--device", "--seed", "--output", "--dry-run", "--data", "--no-samples", "--report",
            "--verify", "--force", "--json", "--quiet",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["inspect", "optimize", "quantize", "decode", "remap", "demo"])
def test_examples_run_as_written(command: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model.safetensors")
    make_features(tmp_path / "feats.h5")
    if command == "remap":
        assert toc("optimize", "model.safetensors", "--features", "feats.h5", "--codes", "0.5", cwd=tmp_path).code == 0
        assert toc("quantize", "feats.h5", "--codebook", "model.safetensors", cwd=tmp_path).code == 0
    if command in ("quantize", "decode"):
        assert toc("optimize", "model.safetensors", "--features", "feats.h5", cwd=tmp_path).code == 0
    if command == "decode":
        assert toc("quantize", "feats.h5", "--codebook", "model.toc.safetensors", cwd=tmp_path).code == 0
    epilog = GROUP.commands[command].epilog or ""
    program, *arguments = shlex.split(epilog.removeprefix("Example: "))
    assert program == "toc"
    done = toc(*arguments, cwd=tmp_path)
    assert done.code == 0, done.err


def test_readme_opens_with_the_two_commands_of_a_newcomer() -> None:
    blocks = re.findall(r"```(?:bash|sh|console|shell)\n(.*?)```", README, re.DOTALL)
    assert blocks[0].strip().endswith("toc demo")
    assert blocks[1].strip().endswith("pytest -n 2")


def test_the_top_level_holds_what_the_project_fixed() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    import subprocess

    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    allowed = {"toc_cli", "tests", "examples", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert {name for name in listed.stdout.split() if not name.startswith(".")} <= allowed
