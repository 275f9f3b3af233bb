"""Processes that are announced but do not come, or are killed: a sentence that names them, exit 4, in bounded time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import SCRIPT, make_checkpoint, make_features
from toc_cli.errors import TocError
from toc_cli.io.peers import JOIN, Peers, announced

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="there is no console script beside the interpreter")

KILLED = """
import os, signal
from toc_cli.io.peers import Peers
Peers(1, 2).join("gloo")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a meeting place that nobody uses, set here as well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    return place


ALL = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        (ALL | {"RANK": ""}, "RANK is not set"),
        (ALL | {"MASTER_ADDR": " "}, "MASTER_ADDR is not set"),
        (ALL | {"RANK": "2"}, "RANK=2, WORLD_SIZE=2, MASTER_PORT=29500 announce no process"),
        (ALL | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        (ALL | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (ALL | {"MASTER_PORT": "0"}, "MASTER_PORT=0"),
    ],
)
def test_what_announces_no_process_that_can_be(environment: dict[str, str], said: str) -> None:
    with pytest.raises(TocError, match=said) as caught:
        announced(environment)
    assert caught.value.exit_code == 4


def test_one_process_alone_needs_no_variables() -> None:
    assert announced({}) == announced({"WORLD_SIZE": "1"}) == (0, 1)
    assert announced(ALL) == (0, 2)


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize(
    ("rank", "said"), [(0, "Rank 1 of 2 did not come to 127.0.0.1:"), (1, "Rank 0 of 2 did not come")]
)
def test_one_that_does_not_come_is_named(rank: int, said: str) -> None:
    with pytest.raises(TocError, match=said):
        Peers(rank, 2).join("gloo", patience=0.5)
    assert JOIN <= 20


def test_one_that_is_killed_is_named(meeting: dict[str, str], tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model.safetensors")
    make_features(tmp_path / "feats.h5")
    environment = os.environ | meeting
    began = time.monotonic()
    peer = subprocess.Popen([sys.executable, "-c", KILLED], env=environment)
    done = subprocess.run(
        [SCRIPT, "optimize", "model.safetensors", "--features", "feats.h5"], cwd=tmp_path, check=False,
        env=environment | {"RANK": "0", "WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert peer.wait(timeout=60) == -9
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert done.stderr.startswith("error: Rank 1 of 2 ended before the others; nothing was left half-written.\n")
    assert len(done.stderr.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feats.h5", "model.safetensors"]
    assert time.monotonic() - began < 90  # a few seconds, and what a busy machine adds


ENDING = """
import os
from toc_cli.io import peers
peers.BEAT = 0  # it is always inside the store
peers.Peers(int(os.environ["RANK"]), 2).join("gloo")
"""


def test_a_process_that_ends_while_it_gives_a_sign_of_life_ends_well() -> None:
    """Where the interpreter met that thread in C++ it aborted: 7 of 32 such processes."""
    for _ in range(4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        both = [
            subprocess.Popen(
                [sys.executable, "-c", ENDING], env={**common, "RANK": str(rank)}, stderr=subprocess.DEVNULL
            )
            for rank in (0, 1)
        ]
        assert [process.wait(timeout=120) for process in both] == [0, 0]
