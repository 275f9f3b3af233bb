"""What stands beside a table and is not used by its reading takes the certainty of that reading away."""

from __future__ import annotations

import pytest
import torch

from memory_checkpoint import MemoryCheckpoint
from published_layouts import PUBLISHED, Published
from toc_cli.io.families import detect


@pytest.mark.parametrize("layout", PUBLISHED, ids=lambda layout: layout.name)
def test_nothing_of_a_published_layout_is_a_stranger(layout: Published) -> None:
    ckpt = MemoryCheckpoint(layout.tensors(), layout.config, **layout.values)
    ckpt.container = layout.container
    assert not any("not used" in note for book in detect(ckpt, **layout.options) for note in book.warnings)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("running_mean", (8,)),
        ("running_std", (1, 8)),
        ("norm.weight", (8,)),
        ("proj.weight", (8, 8)),
        ("scale", (1, 1, 8)),
    ],
)
def test_a_vector_or_matrix_of_its_dimensions_is_told(name: str, shape: tuple[int, ...]) -> None:
    table = {
        "quantizer.codebook": torch.randn(20, 8),
        "quantizer.code_sum": torch.randn(20, 8),
        "quantizer.code_count": torch.ones(20),
    }
    (plain,) = detect(MemoryCheckpoint(table))
    assert plain.evidence == "by structure"
    (book,) = detect(MemoryCheckpoint({**table, f"quantizer.{name}": torch.randn(shape)}))
    assert book.evidence == "assumed"
    assert any(f"quantizer.{name} beside the table is not used" in note for note in book.warnings)


def test_a_table_is_not_told_of_what_stands_elsewhere() -> None:
    tensors = {
        "vq.codebook": torch.randn(20, 8),
        "encoder.norm.weight": torch.randn(8),
        "vq.count": torch.ones(20),
        "vq.initted": torch.ones(1),
    }
    (book,) = detect(MemoryCheckpoint(tensors))
    assert not any("not used" in note for note in book.warnings)
