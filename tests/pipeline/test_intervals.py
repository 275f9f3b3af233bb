"""Intervals hold the truth where rows of one clip resemble each other: a small form of `toc bench intervals`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from toc_cli.bench.intervals import FIGURES, Replication, measured
from toc_cli.ops.bootstrap import interval, resample_together
from toc_cli.pipeline.record import independent_blocks
from toc_cli.pipeline.sample import Measured


@pytest.fixture(scope="module")
def replication(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replication]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the runs are tiny
    yield Replication(tmp_path_factory.mktemp("intervals"), rows=4096, true_rows=50_000)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("modalities", [1, 2])
def test_clips_of_128_rows(replication: Replication, modalities: int) -> None:
    """32 clips, sampled by half of their rows."""
    row = replication.coverage(unit=128, modalities=modalities, replicates=16)
    assert row["units"] == 32
    assert np.mean([row[f"{name}_covered"] for name in FIGURES]) >= 0.85


def test_paired_samples_are_drawn_alike_and_others_by_themselves() -> None:
    weights = resample_together([("a", 5), ("b", 3), ("a", 5)], seed=3, resamples=50)
    assert weights.shape == (50, 13)
    assert np.array_equal(weights[:, :5], weights[:, 8:])
    assert (weights[:, :5].sum(1) == 5).all()
    assert (weights[:, 5:8].sum(1) == 3).all()
    assert independent_blocks(Measured(strata=(("a", 5), ("b", 3), ("a", 5)))) == 7


def test_few_blocks_widen_an_interval_and_one_has_none() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    widths = [np.diff(interval(values, blocks=blocks) or (0, 0))[0] for blocks in (3, 10, 128)]
    plain = np.diff(interval(values) or (0, 0))[0]
    assert widths[0] > widths[1] > widths[2] > plain
    assert widths[2] < 1.05 * plain
    assert interval(values, blocks=1) is None


@pytest.mark.parametrize(("clips", "few"), [(19, True), (20, False)])
def test_fewer_than_twenty_clips_are_few(tmp_path: Path, clips: int, few: bool) -> None:
    save_file({"quantize.embedding.weight": torch.randn(4, 3)}, tmp_path / "codes.safetensors")
    rows = np.random.default_rng(0).normal(size=(clips, 5, 3)).astype(np.float32)
    sample = measured(tmp_path / "codes.safetensors", {"x": rows}, None, 0)["sample"]
    assert (sample["units"], sample["few_units"]) == (clips, few)
