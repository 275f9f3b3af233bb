"""A minute of `tests/torture.py` over a seed that changes every day; `python tests/torture.py --replay` shows a finding again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import torture
from torture_more import usable

SECONDS = 60


@pytest.mark.parametrize("reader", torture.READERS)
def test_the_valid_file_of_every_reader_is_read(reader: str, tmp_path: Path) -> None:
    if not usable(reader):
        pytest.skip("what writes its file is not installed")
    seed, read = torture.READERS[reader]
    read(seed(tmp_path))


def test_mutations_repeat_and_reach_every_kind() -> None:
    data = json.dumps({"a": [1, 2, {"b": None}], "c": "x" * 40}).encode()
    made = [torture.mutated(data, random.Random(f"1 record {n}")) for n in range(300)]
    assert made == [torture.mutated(data, random.Random(f"1 record {n}")) for n in range(300)]
    parsed = 0
    for text in made:
        try:
            json.loads(text)
            parsed += 1
        except ValueError:
            pass
    assert 100 < parsed < 290  # structure as well as bytes


def test_a_crash_and_an_exception_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faulthandler
    import os
    import signal

    def read(path: Path) -> None:
        number = int(path.read_bytes()[0])
        if number < 64:
            raise KeyError("raw")
        if number > 250:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setitem(torture.READERS, "npy", (torture.npy_file, read))
    monkeypatch.setattr(torture, "mutated", lambda data, chance: bytes([chance.randrange(256)]) + data)
    found = [f for _, _, batch in torture.torture(["npy"], 3, count=400) for f in batch]
    assert {f.what.split(":")[-1].strip() for f in found} >= {"'raw'", "SIGSEGV"}


def test_a_child_that_hears_no_signal_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    def read(path: Path) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        signal.pause()

    monkeypatch.setattr(torture, "SECONDS", 0.2)
    monkeypatch.setitem(torture.READERS, "npy", (torture.npy_file, read))
    found = [f for _, _, batch in torture.torture(["npy"], 3, count=1) for f in batch]
    assert [f.what for f in found] == ["the process died: hung where no signal reaches it"]


def test_a_minute_of_mutations_finds_nothing() -> None:
    """In a process of its own: a fork of this one would hold the locks of its threads."""
    readers = [reader for reader in torture.READERS if usable(reader)]
    chosen = [word for reader in readers for word in ("--reader", reader)]
    command = [sys.executable, str(Path(torture.__file__)), "--seconds", str(SECONDS), *chosen]
    run = subprocess.run(command, capture_output=True, text=True, timeout=10 * SECONDS)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 findings" in run.stdout
