"""faiss indexes: the quantisers found without faiss encode as faiss does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import library_models as models
from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit

faiss = pytest.importorskip("faiss", reason="faiss is not installed: pip install 'toc-cli[test-libs]'")


@pytest.fixture
def rows() -> np.ndarray:
    faiss.omp_set_num_threads(1)
    return np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)


def save(index: object, path: Path) -> Path:
    faiss.write_index(index, str(path))
    return path


def test_product_quantiser_encodes_alike(tmp_path: Path, rows: np.ndarray) -> None:
    index = faiss.IndexPQ(16, 4, 4)
    index.train(rows)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "pq.faiss")))
    assert (book.heads, book.num_codes, book.dim) == (4, (16,), 4)
    tokens = models.read_quantiser(ckpt, book).tokens(rows)
    codes = faiss.unpack_bitstrings(index.sa_encode(rows), 4, 4)
    assert (tokens[:, 0].numpy() == codes).mean() > 0.999


def test_a_sliced_product_quantiser_searches_alike(tmp_path: Path, rows: np.ndarray) -> None:
    """Own dimensions per sub-space: the pruned centroids make an index over the kept columns with the masked codes."""
    index = faiss.IndexPQ(16, 4, 4)
    index.train(rows)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "pq.faiss")))
    kept = models.choose(book, 3)
    expected = models.read_quantiser(ckpt, book).pruned(kept).tokens(rows)
    tables = book.parts(ckpt).tables[0]
    small = faiss.IndexPQ(12, 4, 4)
    small.train(rows[:, :12])
    centroids = np.stack([tables[head][:, kept[0, head]] for head in range(4)]).astype(np.float32)
    faiss.copy_array_to_vector(centroids.ravel(), small.pq.centroids)
    columns = torch.cat([head * 4 + kept[0, head] for head in range(4)]).numpy()
    codes = faiss.unpack_bitstrings(small.sa_encode(np.ascontiguousarray(rows[:, columns])), 4, 4)
    assert (expected[:, 0].numpy() == codes).mean() > 0.999


def test_rotation_before_the_index_is_applied(tmp_path: Path, rows: np.ndarray) -> None:
    opq = faiss.OPQMatrix(16, 4)
    opq.niter = 3
    index = faiss.IndexPreTransform(opq, faiss.IndexPQ(16, 4, 4))
    index.train(rows)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "opq.faiss")))
    assert book.outer_width == 16
    tokens = models.read_quantiser(ckpt, book).tokens(rows)
    codes = faiss.unpack_bitstrings(index.sa_encode(rows), 4, 4)
    assert (tokens[:, 0].numpy() == codes).mean() > 0.999


def test_residual_quantiser_is_greedy_and_says_so(tmp_path: Path, rows: np.ndarray) -> None:
    index = faiss.IndexResidualQuantizer(16, 3, 4)
    index.rq.max_beam_size = 1
    index.train(rows)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "rq.faiss")))
    assert book.residual
    assert book.num_codes == (16, 16, 16)
    assert "beam search" in book.warnings[0]
    tokens = models.read_quantiser(ckpt, book).tokens(rows)
    codes = faiss.unpack_bitstrings(index.rq.compute_codes(rows), 3, 4)
    assert (tokens[:, :, 0].numpy() == codes).mean() > 0.99


def test_inverted_file_holds_two_quantisers(tmp_path: Path, rows: np.ndarray) -> None:
    coarse = faiss.IndexFlatL2(16)
    index = faiss.IndexIVFPQ(coarse, 16, 8, 4, 4)
    index.train(rows)
    outer, inner = detect(ckpt := open_checkpoint(save(index, tmp_path / "ivf.faiss")))
    assert (outer.num_codes, outer.dim, outer.heads) == ((8,), 16, 1)
    assert (inner.num_codes, inner.dim, inner.heads) == ((16,), 4, 4)
    assert any("coarse" in warning for warning in inner.warnings)
    lists = models.read_quantiser(ckpt, outer).tokens(rows)[:, 0, 0].numpy()
    assert (lists == coarse.search(rows, 1)[1][:, 0]).mean() > 0.999
    left = rows - ckpt.get("coarse.xb").numpy()[lists]
    tokens = models.read_quantiser(ckpt, inner).tokens(left)
    codes = faiss.unpack_bitstrings(index.pq.compute_codes(np.ascontiguousarray(left)), 4, 4)
    assert (tokens[:, 0].numpy() == codes).mean() > 0.999


@pytest.mark.parametrize("kind", ["PQ4x4fs", "IVF8,PQ4x4fs", "PCA12,PQ4x4", "PQ4x4,RFlat", "IDMap,PQ4x4", "IVF8,PQ4+4"])
def test_product_quantisers_inside_other_indexes(tmp_path: Path, rows: np.ndarray, kind: str) -> None:
    index = faiss.index_factory(16, kind)
    index.train(rows)
    ckpt = open_checkpoint(save(index, tmp_path / "x.faiss"))
    inner = faiss.downcast_index(getattr(index, "base_index", getattr(index, "index", index)))
    assert np.array_equal(ckpt.get("pq.centroids").numpy().ravel(), faiss.vector_to_array(inner.pq.centroids))
    if "PCA" in kind:
        (book,) = detect(ckpt)
        tokens = models.read_quantiser(ckpt, book).tokens(rows)
        codes = faiss.unpack_bitstrings(index.sa_encode(rows), 4, 4)
        assert (tokens[:, 0].numpy() == codes).mean() > 0.999


def test_the_coarse_level_of_uncompressed_lists(tmp_path: Path, rows: np.ndarray) -> None:
    index = faiss.index_factory(16, "IVF8,Flat")
    index.train(rows)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "x.faiss")))
    lists = models.read_quantiser(ckpt, book).tokens(rows)[:, 0, 0].numpy()
    assert (lists == index.quantizer.search(rows, 1)[1][:, 0]).mean() > 0.999


@pytest.mark.parametrize("kind", ["Flat", "IDMap,Flat", "PCA12,Flat"])
@pytest.mark.parametrize(("metric", "said"), [(faiss.METRIC_L2, "euclidean"), (faiss.METRIC_INNER_PRODUCT, "dot")])
def test_a_flat_index_is_a_table_of_codes(tmp_path: Path, rows: np.ndarray, kind: str, metric: int, said: str) -> None:
    index = faiss.index_factory(16, kind, metric)
    index.train(rows)
    if kind.startswith("IDMap"):
        index.add_with_ids(rows[:32] * 2, np.arange(32))
    else:
        index.add(rows[:32] * 2)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "flat.index")))
    assert (book.family, book.num_codes, book.metric) == ("faiss flat index", (32,), said)
    assert book.dim == (12 if kind.startswith("PCA") else 16)
    tokens = models.read_quantiser(ckpt, book).tokens(rows)[:, 0, 0].numpy()
    assert (tokens == index.search(rows, 1)[1][:, 0]).mean() > 0.999
    with pytest.raises(UsageError, match="build the smaller one in faiss"):
        emit.edits(ckpt, book, "masked", kept=models.choose(book, 2), fill=torch.zeros(1, 1, book.dim))


def test_flat_indexes_that_are_no_codebook(tmp_path: Path, rows: np.ndarray) -> None:
    index = faiss.IndexFlat(16, faiss.METRIC_L1)
    index.add(rows)
    with pytest.raises(InputError, match="flat index of faiss's metric 2"):
        detect(open_checkpoint(save(index, tmp_path / "l1.index")))
    with pytest.raises(InputError, match=r"xb has shape \(0, 16\)"):
        detect(open_checkpoint(save(faiss.IndexFlatL2(16), tmp_path / "empty.index")))


@pytest.mark.parametrize(
    ("kind", "said"), [("SQ8", "scalar quantiser"), ("HNSW4", "of kind IHNf"), ("LSQ2x4", "of kind IxLS")]
)
def test_other_indexes_say_what_they_are(tmp_path: Path, rows: np.ndarray, kind: str, said: str) -> None:
    index = faiss.index_factory(16, kind)
    index.train(rows)
    with pytest.raises(InputError, match=said):
        detect(open_checkpoint(save(index, tmp_path / "x.faiss")))


def test_inner_product_is_named_as_a_matter_of_search(tmp_path: Path, rows: np.ndarray) -> None:
    index = faiss.IndexPQ(16, 4, 4, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    (book,) = detect(ckpt := open_checkpoint(save(index, tmp_path / "ip.faiss")))
    assert book.metric == "euclidean"
    assert "inner product" in book.warnings[0]
    with pytest.raises(UsageError, match="build the smaller one in faiss"):
        emit.edits(ckpt, book, "masked", kept=models.choose(book, 2), fill=torch.zeros(1, 4, 4))
