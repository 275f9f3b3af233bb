"""A machine that fails under a command, walked as a table: one sentence, its exit code, no input touched, nothing half-written.

`faults.FAULTS` says what fails and how; COMMANDS what runs. After a run that was killed the same command must come to the bytes that it
comes to where nothing happens.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli import make_checkpoint, make_features
from fcid.tiny import tiny_data
from forked import Forks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits, signals and forks of POSIX")

TRAIN = (
    "--set",
    "model.width=8",
    "--set",
    "model.heads=2",
    "--set",
    "model.codebook.size=6",
    "--epochs",
    "1",
    "--batch-size",
    "6",
)


def model(here: Path) -> None:
    make_checkpoint(here / "model.safetensors")
    make_features(here / "feats.h5", rows=600)


def trained(here: Path) -> None:
    tiny_data(here / "data.h5", clips=12)


def resumed(here: Path) -> tuple[str, ...]:
    return ("--resume",) if (here / "run" / "config.toml").exists() else ()


@dataclass(frozen=True)
class Command:
    """A command line in a folder that `make` and the commands `before` have prepared."""

    line: tuple[str, ...]
    make: Callable[[Path], None] = model
    before: tuple[tuple[str, ...], ...] = ()
    again: Callable[[Path], tuple[str, ...]] = lambda here: ("--force",)
    """What the line needs after a run that was killed."""


OPTIMIZE = ("optimize", "model.safetensors", "--features", "feats.h5", "--emit", "masked", "--codes", "40", "--quiet")
ARTEFACT = ("--codebook", "model.toc.safetensors")
QUANTIZE = ("quantize", "feats.h5", *ARTEFACT, "--vectors")
OLD = ("quantize", "feats.h5", "--codebook", "model.safetensors", "-o", "old.h5")
COMMANDS = {
    "inspect": Command(("inspect", "model.safetensors", "--features", "feats.h5"), again=lambda here: ()),
    "optimize": Command(OPTIMIZE),
    "optimize again": Command((*OPTIMIZE, "--keep", "6", "--force"), before=(OPTIMIZE,), again=lambda here: ()),
    "quantize": Command(QUANTIZE, before=(OPTIMIZE,)),
    "decode": Command(("decode", "feats.tokens.h5", *ARTEFACT), before=(OPTIMIZE, QUANTIZE)),
    "remap": Command(("remap", "old.h5", *ARTEFACT), before=(OPTIMIZE, OLD)),
    "report": Command(("report", "model.toc.json", "--format", "html:r.html,junit:r.xml"), before=(OPTIMIZE,)),
    "train-fcid": Command(("train-fcid", "data.h5", "-o", "run", *TRAIN), make=trained, again=resumed),
}
PLACES: dict[str, dict[str, tuple[int, ...]]] = {
    "full disk": {"*": (0,), "optimize": (0, 700, 6000), "quantize": (0, 6000), "train-fcid": (6000,)},
    "killed": {"*": (3,), "optimize": (2, 3, 4, 5, 6, 7), "optimize again": (3, 4, 5, 6, 7, 8), "quantize": (2, 4)},
    "bad sector": {"*": (2,), "optimize": (1, 3, 9)},
    "read-only": {"*": (0,)},
    "nowhere": {"*": (0,)},
    "no streams": {"*": (0,)},
}
"""At which numbers each fault strikes: of every command, or of the one that is named."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks(60)
    yield server
    server.close()


@pytest.fixture(scope="module", params=COMMANDS)
def ready(
    request: pytest.FixtureRequest, forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, str]]:
    """(name, folder before the command, what the command makes of it where nothing fails)."""
    command = COMMANDS[request.param]
    here = tmp_path_factory.mktemp("ready") / "here"
    here.mkdir()
    command.make(here)
    for line in command.before:
        done = forks.run(list(line), here)
        assert done.code == 0, done.err
    whole = here.with_name("whole")
    shutil.copytree(here, whole)
    done = forks.run(list(command.line), whole)
    assert done.code == 0, done.err
    return request.param, here, state(whole)


def state(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, what tells the time left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name.endswith(".toc.json"):
            data = json.dumps({**json.loads(data), "timing": 0, "created": 0}).encode()
        if path.suffix in (".html", ".xml", ".jsonl") or path.parent.name.startswith("run"):
            data = b"made"
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.parametrize("fault", PLACES)
def test_it_ends_in_a_sentence_and_costs_nothing(
    fault: str, ready: tuple[str, Path, dict[str, str]], forks: Forks, tmp_path: Path
) -> None:
    name, before, whole = ready
    stood, line = state(before), list(COMMANDS[name].line)
    inputs = {path: data for path, data in stood.items() if whole.get(path, data) == data}
    for number in PLACES[fault].get(name, PLACES[fault]["*"]):
        here = tmp_path / f"at{number}"
        shutil.copytree(before, here)
        done = forks.run(list(line), here, (fault, number))
        where = f"{fault} {number}: exit {done.code}\n{done.err}"
        assert "Internal error" not in done.err, where
        assert "Traceback" not in done.err, where
        after = state(here)
        assert inputs.items() <= after.items(), where
        if fault == "killed":
            assert done.code in (0, -9), where
            again = forks.run([*line, *COMMANDS[name].again(here)], here)
            assert again.code == 0, f"{where}\nand then exit {again.code}\n{again.err}"
            assert state(here) == whole, where
        elif done.code in (0, 141):
            assert after in (whole, stood), where
        else:
            assert done.code in (3, 4), where
            said = [line for line in done.err.strip().splitlines() if not line.startswith(("warning: ", "epoch "))]
            assert 1 <= len(said) <= 3, where
            new = {
                path for path in after.items() - stood.items() if not path[0].startswith("run/")
            }  # a run can be resumed
            assert not new or ("Standard output" in done.err and after == whole), where
