"""A family, a container and a report format, each added from this file by the place that CONTRIBUTING names, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from cli import make_features

TESTS = Path(__file__).parent
ADDS = """
import test_additions
import toc_cli.io.containers as containers
import toc_cli.io.families as families
from toc_cli.io.containers import Container
from toc_cli.report.formats import FORMATS

families.FAMILIES = (test_additions, *families.FAMILIES)
containers.CONTAINERS = (
    Container(
        "Lines", lambda head: head.start.startswith(test_additions.MARK), (".lines",),
        checkpoint="test_additions:open_lines", features="test_additions:lines_sources",
    ),
    *containers.CONTAINERS,
)
FORMATS["csv"] = "test_additions:render"
from toc_cli.commands import main
main()
"""
MARK = b"LINES1\n"


def write_lines(path: Path, key: str, table: np.ndarray) -> None:
    """The container: its mark, a name, then a line of numbers per row."""
    path.write_bytes(MARK + f"{key}\n".encode() + "\n".join(" ".join(map(str, row)) for row in table).encode())


def lines_arrays(path: Path) -> dict[str, np.ndarray]:
    _, key, *rows = path.read_text().splitlines()
    return {key: np.array([[float(word) for word in row.split()] for row in rows], np.float32)}


def lines_sources(path: Path) -> dict[str, object]:
    """Its features, by name."""
    from toc_cli.io.features.source import ArraySource

    return {key: ArraySource(array, path) for key, array in lines_arrays(path).items()}


def open_lines(path: Path) -> object:
    """Its checkpoint."""
    import torch

    from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo

    class Lines(Checkpoint):
        container = "lines"

        def __init__(self) -> None:
            super().__init__(path)
            self.tables = lines_arrays(path)
            self.infos = {key: TensorInfo((), key, table.shape, "float32") for key, table in self.tables.items()}
            self.files = (path,)
            self.read_only = "Lines are read, not written."

        def get(self, key: str) -> torch.Tensor:
            return torch.from_numpy(self.tables[self.require(key).key])

        def write(self, target: Path, edits: Edits) -> list[Path]:
            self.require_writable()
            return []

    return Lines()


def find(ckpt: object) -> list[object]:
    """The family: a table under this house's own name."""
    from toc_cli.io.families.base import Codebook, Parts, Site

    key = "inhouse_vq.table"
    if key not in ckpt.infos:
        return []
    codes, dim = ckpt.infos[key].shape
    return [
        Codebook(
            family="in-house", keys=((key,),), num_codes=(codes,), dim=dim, heads=1, metric="euclidean",
            dtype=ckpt.infos[key].reads, parts=lambda opened: Parts((opened.get(key)[None],)),
            sites=(Site(key, axis=1, role="codes"),), refusals={"sliced": "nothing is known of its neighbours"},
        )
    ]  # fmt: skip


def render(report: object) -> str:
    """The format: a line per codebook."""
    return "".join(f"{one.codebook['key']},{one.codebook['kept_dim']}\n" for run in report.runs for one in run.subjects)


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    env = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent))), "COLUMNS": "200", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", ADDS, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_container_a_family_and_a_format(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    write_lines(tmp_path / "model.lines", "inhouse_vq.table", drawn.normal(size=(32, 6)).round(3))
    write_lines(tmp_path / "feats.lines", "x", drawn.normal(size=(400, 6)).round(3))
    found = json.loads(run(tmp_path, "inspect", "model.lines", "--json"))
    (book,) = found["codebooks"]
    assert (found["container"], book["family"], book["num_codes"], book["dim"]) == ("lines", "in-house", [32], 6)
    assert book["emit"]["sliced"] == "nothing is known of its neighbours"
    assert book["emit"]["masked"] == "Lines are read, not written"

    run(tmp_path, "optimize", "model.lines", "--features", "feats.lines", "--keep", "3")
    record = json.loads((tmp_path / "model.toc.json").read_text())
    assert record["codebooks"][0]["family"] == "in-house"
    assert [stream["rows"] for stream in record["features"]] == [400]
    assert "in-house" in run(tmp_path, "report", "model.toc.json")
    assert run(tmp_path, "report", "model.toc.json", "--format", "csv") == "inhouse_vq.table,3\n"
    assert "csv; to stdout" in " ".join(run(tmp_path, "report", "--help").replace("│", " ").split())
    (tmp_path / "odd.bin").write_bytes(b"\x01\x02\x03nothing that is known")
    for line in (
        ("inspect", "odd.bin"),
        ("optimize", "model.lines", "--features", "odd.bin", "-o", "x.toc.safetensors"),
    ):
        assert ".lines" in run(tmp_path, *line, code=3), "what toc reads is said from the table"


def test_a_family_of_a_known_container(tmp_path: Path) -> None:
    table = np.random.default_rng(1).normal(size=(32, 24)).astype(np.float32)
    save_file({"inhouse_vq.table": table}, tmp_path / "m.safetensors")
    make_features(tmp_path / "feats.h5")
    run(tmp_path, "optimize", "m.safetensors", "--features", "feats.h5", "--keep", "6", "--emit", "masked")
    masked = load_file(tmp_path / "m.masked.safetensors")["inhouse_vq.table"]
    kept = json.loads((tmp_path / "m.toc.json").read_text())["codebooks"][0]["kept"][0][0]
    assert np.array_equal(masked[:, kept], table[:, kept])
    assert (masked != table).any(0).sum() == 18
