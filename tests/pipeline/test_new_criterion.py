"""A criterion added from this file by the documented place alone, a row of `CRITERIA`, works in help, record and report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cli import make_checkpoint, make_features

ADDS = """
import sys
from toc_cli.ops.criterion import CRITERIA, Criterion
CRITERIA["range"] = Criterion("codes", "test_new_criterion:RANGE", "the widest dimensions")
from toc_cli.commands import main
main()
"""


def __getattr__(name: str) -> object:
    """`RANGE`, made when the row is asked for: the front door loads no mathematics."""
    if name != "RANGE":
        raise AttributeError(name)
    from toc_cli.ops.criteria.base import Maths
    from toc_cli.ops.criteria.codes import each, terms
    from toc_cli.ops.scores import Scores

    def one(known):
        codes = known.codes.double().numpy()
        return Scores(codes.max(0) - codes.min(0), *terms(known))

    def halves(group, seed):
        from dataclasses import replace

        return [each(one)([replace(known, codes=known.codes[at::2]) for known in group]) for at in range(2)]

    return Maths(each(one), halves)


def test_a_row_is_all_it_takes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model.safetensors")
    make_features(tmp_path / "feats.h5")
    env = {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])), "COLUMNS": "200", "PATH": ""}

    def toc(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ADDS, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "range: the widest dimensions" in " ".join(toc("optimize", "--help").replace("│", " ").split())
    options = ("--features", "feats.h5", "--criterion", "range", "--keep", "6", "--sweep", "0.25,0.5", "--json")
    record = json.loads(toc("optimize", "model.safetensors", *options))
    book = record["codebooks"][0]
    assert record["options"]["criterion"] == "range"
    widest = sorted(range(24), key=lambda d: -book["score"][0][0][d])[:6]
    assert book["kept"][0][0] == sorted(widest)
    assert (book["stability"]["resamples"], book["stability"]["over"]) == (2, "codes")
    assert "range" in book["sweep"]["criteria"]
    assert "range" in toc("report", "model.toc.json", "--exit-zero")
