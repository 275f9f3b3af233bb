"""--max-memory bounds the whole command: 450 MiB, three times the codebook, and the budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import make_checkpoint, toc
from toc_cli.ops.pool import Pool
from toc_cli.pipeline import counting

MIB = 1 << 20
CHILD = """
import re, sys
from toc_cli.commands import run
code = run()
print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)  # ru_maxrss keeps the parent's
sys.exit(code)
"""
SHAPES = {
    "wide rows": (8192, 1024, 64, 1),
    "wider rows": (2048, 2048, 64, 1),
    "widest rows": (512, 4096, 64, 1),
    "many rows": (16384, 512, 64, 1),
    "large levels": (256, 256, 16384, 3),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_budget_bounds_the_whole_command(tmp_path: Path, shape: str) -> None:
    rows, width, codes, levels = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(1, codes, width, generator=generator) / (level + 1) for level in range(levels)]
    if levels == 1:
        make_checkpoint(tmp_path / "model.safetensors", tables[0][0])
    else:
        names = (f"vq.layers.{level}._codebook.embed" for level in range(levels))
        save_file(dict(zip(names, tables, strict=True)), tmp_path / "model.safetensors")
    np.save(tmp_path / "feats.npy", torch.randn(rows, width, generator=generator).numpy())
    command = [
        "optimize",
        "model.safetensors",
        "--features",
        "feats.npy",
        "--max-memory",
        "16MiB",
        "--metric",
        "euclidean",
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *command], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("peak")[-1])
    assert peak <= 450 * MIB + 3 * 4 * width * codes * levels + 16 * MIB, f"{peak / MIB:.0f} MiB"


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--criterion", "discriminant"), "MiB"),
        (("--criterion", "pca"), "a rotation of 2048 dimensions"),
    ],
)
def test_a_plan_too_large_for_the_budget_names_the_size_that_would_do(
    tmp_path: Path, flags: tuple[str, ...], what: str
) -> None:
    make_checkpoint(tmp_path / "model.safetensors", torch.randn(8, 2048))
    np.save(tmp_path / "feats.npy", np.random.default_rng(0).standard_normal((40, 2048), dtype=np.float32))
    done = toc(
        "optimize", "model.safetensors", "--features", "feats.npy", "--max-memory", "16MiB", *flags, cwd=tmp_path
    )
    assert done.code == 2
    assert what in done.err
    assert "Give it at least --max-memory" in done.err
    assert list(tmp_path.glob("*.toc.*")) == []


@pytest.mark.parametrize(("budget", "most"), [("1GiB", 8), ("8MiB", 4)])
def test_blocks_side_by_side_stay_within_the_budget(
    budget: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight threads as many work as a quarter of the budget holds blocks: 128 rows of 2 x 256 numbers."""
    together: list[int] = []

    class Eight(Pool):
        def __init__(self) -> None:
            self.threads = 8

        def map(self, part, items):  # type: ignore[no-untyped-def]
            together.append(len(items))
            return super().map(part, items)

    monkeypatch.setattr(counting, "Pool", Eight)
    make_checkpoint(tmp_path / "model.safetensors", torch.randn(8, 256))
    np.save(tmp_path / "feats.npy", np.random.default_rng(0).standard_normal((60_000, 256), dtype=np.float32))
    words = ["--metric", "euclidean", "--criterion", "discriminant", "--max-memory", budget]
    done = toc("optimize", "model.safetensors", "--features", "feats.npy", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert max(together) == most
