"""Layouts of published tokenizers with the tokens of their own formula beside the features: none is read wrong, and the sentences
of those that are refused name the flags that read them right."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from cli import toc

CASES = Path(os.environ.get("TOC_CASES", Path(__file__).resolve().parents[2] / "shared" / "cases")) / "layouts"
MANIFEST = CASES / "manifest.json"
LAYOUTS = [case for case in json.loads(MANIFEST.read_text())["cases"] if case["tokens"]] if MANIFEST.exists() else []
pytestmark = pytest.mark.skipif(not LAYOUTS, reason="the case collection (TOC_CASES) is not here")
UNREAD = {"strided_levels"}
"""Refused with a sentence: levels of unequal token rates."""


def read(case: dict[str, str], folder: Path) -> tuple[int, str, bool]:
    """Exit code and message of `toc quantize`, with the flags that its sentence names; whether every token is right."""
    tokens = np.load(CASES / case["tokens"])
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = np.load(CASES / case["features"])
        file["x.tokens"] = tokens
    command = ["quantize", "x.h5", "--codebook", CASES / case["checkpoint"], "-o", "t.h5", "--force", "-q"]
    done = toc(*command, cwd=folder)
    if done.code == 3 and (named := re.search(r"\badd (--.*)", done.err)):
        flags = [flag.replace("--codebook", "--key") for flag in shlex.split(named[1])]
        done = toc(*command, *flags, cwd=folder)
    if done.code:
        return done.code, done.err, False
    with h5py.File(folder / "t.h5") as file:
        found = file["x"][()]
    given = tokens >= 0
    return 0, done.err, found.shape == tokens.shape and bool((found[given] == tokens[given]).mean() >= 0.999)


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case["name"])
def test_no_layout_is_read_wrong(case: dict[str, str], tmp_path: Path) -> None:
    code, message, right = read(case, tmp_path)
    assert right or (code == 3 and case["name"] in UNREAD and len(message.splitlines()) <= 2), message


@pytest.mark.parametrize(
    "case", [case for case in LAYOUTS if case["name"] not in UNREAD], ids=lambda case: case["name"]
)
def test_tokens_of_another_model_are_never_taken(case: dict[str, str], tmp_path: Path) -> None:
    tokens = np.load(CASES / case["tokens"])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.load(CASES / case["features"])
        file["x.tokens"] = np.random.default_rng(0).permutation(tokens)
    done = toc("quantize", "x.h5", "--codebook", CASES / case["checkpoint"], "-o", "t.h5", "-q", cwd=tmp_path)
    assert done.code == 3, done.err
    assert not (tmp_path / "t.h5").exists()
    assert "other readings gives them" in " ".join(done.err.split())
