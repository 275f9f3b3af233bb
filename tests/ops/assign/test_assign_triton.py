"""The Triton kernels without a GPU: run in the interpreter, and compiled ahead of time for three generations of tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton")
HERE = Path(__file__).parent
PRODUCT = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
COMPILED = [
    ("scan_codes", 8, 80),
    ("scan_codes", 256, 80),
    ("scan_codes", 1024, 80),
    ("collect_candidates", 256, 80),
    ("scan_codes", 64, 90),
    ("scan_codes", 256, 90),
    ("collect_candidates", 128, 90),
    ("scan_codes", 128, 100),
    ("collect_candidates", 512, 100),
]


def run(script: str, *arguments: str, cache: Path) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_interpreter_finds_the_float64_argmin(tmp_path: Path) -> None:
    lines = run("triton_cases.py", cache=tmp_path).splitlines()
    assert lines[-1] == "done"
    rechecked = {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in lines[:-1]}
    assert rechecked["near_ties"] > 0  # the lists were used
    assert rechecked["more candidates than a list holds"] == 2  # and the full comparison


def test_compiles_for_tensor_cores_without_spills(tmp_path: Path) -> None:
    for line in run("aot_compile.py", str(tmp_path), json.dumps(COMPILED), cache=tmp_path).splitlines():
        figures = json.loads(line)
        assert figures["products"] == [PRODUCT[figures["capability"]]], figures
        assert figures["STACK"] == figures["LOCAL"] == 0, figures  # spilled registers live there
        assert figures["shared"] <= figures["limit"], figures
