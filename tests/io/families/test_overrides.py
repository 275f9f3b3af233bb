"""What the user says against the file: rows of unit length, the stored table or the mean of its features."""

from __future__ import annotations

import pytest
import torch

from memory_checkpoint import MemoryCheckpoint
from toc_cli.errors import UsageError
from toc_cli.io.families import detect
from toc_cli.pipeline.source import sources


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(tensors: dict[str, torch.Tensor], x: torch.Tensor, **said: str) -> torch.Tensor:
    ckpt = MemoryCheckpoint(tensors)
    (source,) = sources(ckpt, detect(ckpt, **said))
    return source.full.tokens(x)[:, 0, 0]


def test_unit_rows_meet_the_stored_codes() -> None:
    table, x = draw(0, 12, 4), draw(1, 50, 4) * 9
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    expected = torch.cdist(unit, table.double()).argmin(1)
    assert torch.equal(tokens({"quantize.embedding.weight": table}, x, rows="unit"), expected)
    assert not torch.equal(tokens({"quantize.embedding.weight": table}, x), expected)


def test_as_is_undoes_what_a_family_normalises() -> None:
    ckpt = MemoryCheckpoint({"quantize.embedding.weight": draw(0, 12, 4)})
    (book,) = detect(ckpt, metric="cosine", rows="unit")
    assert (book.unit_vectors, book.unit_in, book.zero_fill) == (True, False, True)
    (book,) = detect(ckpt, metric="cosine", rows="as-is")
    assert (book.unit_vectors, book.unit_in) == (False, False)


def test_features_of_unit_length_refuse_a_sliced_copy() -> None:
    ckpt = MemoryCheckpoint({"quantize.embedding.weight": draw(0, 12, 4)})
    (book,) = detect(ckpt, rows="unit")
    assert "cannot be cut" in book.refusals["sliced"]


def test_the_mean_of_a_table_of_sums_divides_by_the_counts_beside_it() -> None:
    sums, counts, x = draw(0, 12, 4), torch.rand(12) + 0.5, draw(1, 50, 4)
    tensors = {"codebook.embed_sum": sums, "codebook.cluster_usage": counts}
    found = tokens(tensors, x, codebook="codebook.embed_sum", table="mean")
    assert torch.equal(found, torch.cdist(x, sums / counts[:, None]).argmin(1))


def test_masked_copies_of_such_a_table_are_sums_too() -> None:
    ckpt = MemoryCheckpoint({"codebook.embed_sum": draw(0, 12, 4), "codebook.cluster_usage": torch.rand(12)})
    (book,) = detect(ckpt, codebook="codebook.embed_sum", table="mean")
    assert [(site.role, site.counts) for site in book.sites] == [("sums", "codebook.cluster_usage")]


def test_the_mean_of_the_running_sums_beside_a_table() -> None:
    x, sums, counts = draw(1, 50, 4), draw(2, 12, 4), torch.rand(12) + 0.5
    stem = "quantize._codebook"
    tensors = {
        f"{stem}.embed": draw(0, 1, 12, 4),
        f"{stem}.embed_avg": sums[None],
        f"{stem}.cluster_size": counts[None],
        f"{stem}.initted": torch.tensor([1.0]),
    }
    found = tokens(tensors, x, table="mean")
    assert torch.equal(found, torch.cdist(x, sums / counts[:, None]).argmin(1))


def test_a_mean_without_counts_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="No counts"):
        detect(MemoryCheckpoint({"quantize.embedding.weight": draw(0, 12, 4)}), table="mean")
