"""Checkpoints with one or two tensors altered or left out (`drop-*` of TOC_CRASHERS): a sentence, whatever the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli import toc
from conftest import shared_folder
from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect

FOLDER = shared_folder("TOC_CRASHERS", "crashers")
CASES = sorted(FOLDER.glob("drop-*")) if FOLDER else []


def widths(checkpoint: Path) -> set[int]:
    try:
        return {book.outer_width or book.heads * book.dim for book in detect(open_checkpoint(checkpoint))}
    except InputError:
        return {16}


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.name if case else "none")
def test_it_ends_in_a_sentence(case: Path | None, tmp_path: Path) -> None:
    if case is None:
        pytest.skip("the crashers are not here: set TOC_CRASHERS to their folder")
    checkpoint = case if (case / "config.json").exists() else next(case.glob("model.*"))
    rows = {f"w{width}": np.random.default_rng(0).standard_normal((40, width)) for width in widths(checkpoint)}
    np.savez(tmp_path / "f.npz", **rows)
    artefact = tmp_path / "out.toc.safetensors"
    for done in (
        toc("inspect", checkpoint, "-q"),
        toc(
            "optimize",
            checkpoint,
            "--features",
            tmp_path / "f.npz",
            "-o",
            artefact,
            "--emit",
            "masked",
            "--assume",
            "-q",
        ),
    ):
        assert done.code in (0, 2, 3), done.err
        lines = [line for line in done.err.splitlines() if not line.startswith("warning:")]
        assert len(lines) <= 2, done.err
        assert "Internal error" not in done.err
