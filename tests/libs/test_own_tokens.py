"""Layouts built from libraries: the tokens of the library's own forward are recorded, and prove how its checkpoint is read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cli import toc
from toc_cli.io.capture import capture

vqp = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed (test-libs)")


def held_against(folder: Path, checkpoint: str, *flags: str) -> list[dict[str, Any]]:
    """The codebooks as `toc inspect` reads them for these features, the one of fewest levels first; what `toc quantize` writes are
    the recorded tokens."""
    done = toc("inspect", checkpoint, "--features", "x.h5", "--json", *flags, cwd=folder)
    assert done.code == 0, done.err
    found = sorted(json.loads(done.out)["codebooks"], key=lambda book: book["levels"])
    with h5py.File(folder / "x.h5") as file:
        recorded = file["features.tokens"][()]
        rows = recorded.reshape(-1, *recorded.shape[file["features"].ndim - 1 :])
    columns = rows.reshape(len(rows), -1)
    start = 0
    for book in found:
        out = folder / f"t{book['id']}.h5"
        done = toc(
            "quantize", "x.h5", "--codebook", checkpoint, "--id", book["id"], "-o", out, "-q", *flags, cwd=folder
        )
        assert done.code == 0, done.err
        with h5py.File(out) as file:
            tokens = file["features"][()].reshape(len(rows), -1)
        own = columns[:, start : start + tokens.shape[1]]
        given = own >= 0
        assert given.any()
        assert (tokens[given] == own[given]).mean() >= 0.999
        start += book["levels"] * book["heads"]
    return found


MODULES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16), (4, 50, 8)),
    "cosine": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True), (4, 50, 8)),
    "projected": (lambda: vqp.VectorQuantize(dim=8, codebook_dim=4, codebook_size=16), (4, 50, 8)),
    "cosine, projected": (
        lambda: vqp.VectorQuantize(dim=8, codebook_dim=4, codebook_size=16, use_cosine_sim=True), (4, 50, 8),
    ),
    "heads": (
        lambda: vqp.VectorQuantize(dim=8, heads=2, codebook_dim=4, separate_codebook_per_head=True, codebook_size=16),
        (4, 50, 8),
    ),
    "projected heads of one table": (lambda: vqp.VectorQuantize(dim=6, heads=2, codebook_dim=4, codebook_size=16), (4, 50, 6)),
    "image": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16, accept_image_fmap=True), (4, 8, 6, 5)),
    "channels first": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16, channel_last=False), (4, 8, 50)),
    "learnable": (
        lambda: vqp.VectorQuantize(dim=8, codebook_size=16, learnable_codebook=True, ema_update=False), (4, 50, 8),
    ),
    "residual": (lambda: vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16), (4, 50, 8)),
    "residual, projected": (lambda: vqp.ResidualVQ(dim=8, codebook_dim=4, num_quantizers=3, codebook_size=16), (4, 50, 8)),
    "residual, one table": (
        lambda: vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16, shared_codebook=True), (4, 50, 8),
    ),
    "grouped": (lambda: vqp.GroupedResidualVQ(dim=8, groups=2, num_quantizers=3, codebook_size=16), (4, 50, 8)),
    "simvq": (lambda: vqp.SimVQ(dim=8, codebook_size=16), (4, 50, 8)),
    "residual simvq": (lambda: vqp.ResidualSimVQ(dim=8, num_quantizers=3, codebook_size=16), (4, 50, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_vector_quantize_pytorch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module = build().eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    with capture(module, tmp_path / "x.h5", checkpoint=tmp_path / "m.pt"), torch.no_grad():
        module(torch.randn(shape))
    assert {book["evidence"] for book in held_against(tmp_path, "m.pt")} == {"proven"}


def test_heads_that_share_one_table_are_named(tmp_path: Path) -> None:
    """Without projections nothing in the file tells that the table serves two heads."""
    torch.manual_seed(0)
    module = vqp.VectorQuantize(dim=8, heads=2, codebook_dim=4, codebook_size=16).eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    with capture(module, tmp_path / "x.h5"), torch.no_grad():
        module(torch.randn(4, 50, 8))
    done = toc("inspect", "m.pt", "--features", "x.h5", cwd=tmp_path)
    assert done.code == 3
    named = re.search(r"\badd (--.*)", " ".join(done.err.split()))
    assert named, done.err
    (book,) = held_against(tmp_path, "m.pt", *shlex.split(named[1]))
    assert (book["heads"], book["evidence"]) == (2, "proven")


def test_encodec_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (test-libs)")
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[4, 2], num_lstm_layers=1,
        target_bandwidths=[1.5, 3.0], sampling_rate=400, num_residual_layers=1,
    )  # fmt: skip
    model = transformers.EncodecModel(config).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "m")
    with capture(model.quantizer, tmp_path / "x.h5", model=model), torch.no_grad():
        model.encode(torch.randn(4, 1, 800), bandwidth=3.0)
    held_against(tmp_path, "m")


def test_mimi_of_transformers_is_two_codebooks_side_by_side(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (test-libs)")
    torch.manual_seed(0)
    config = transformers.MimiConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=8, vector_quantization_hidden_dimension=8,
        num_quantizers=4, upsampling_ratios=[4, 2], num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, head_dim=8, sampling_rate=400, frame_rate=25.0, upsample_groups=16,
    )  # fmt: skip
    model = transformers.MimiModel(config).eval()
    for part in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        for layer in part.layers:
            layer.codebook.embed_sum.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "m")
    with capture(model.quantizer, tmp_path / "x.h5", model=model), torch.no_grad():
        model.encode(torch.randn(4, 1, 1600), num_quantizers=4)
    found = held_against(tmp_path, "m")
    assert [(book["levels"], book["evidence"]) for book in found] == [(1, "proven"), (3, "proven")]


def test_dac_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (test-libs)")
    torch.manual_seed(0)
    config = transformers.DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 2], decoder_hidden_size=16, n_codebooks=3, codebook_size=32,
        codebook_dim=4, hidden_size=16, sampling_rate=400,
    )  # fmt: skip
    model = transformers.DacModel(config).eval()
    model.save_pretrained(tmp_path / "m")
    with capture(model.quantizer, tmp_path / "x.h5", model=model), torch.no_grad():
        model.encode(torch.randn(4, 1, 800))
    assert [book["evidence"] for book in held_against(tmp_path, "m")] == ["proven"]


@pytest.mark.parametrize("side", ["quantiser", "encoder"])
def test_vqmodel_of_diffusers_on_either_side_of_its_square_projection(side: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (test-libs)")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        sample_size=8,
    ).eval()
    model.quantize.embedding.weight.data.normal_()
    model.save_pretrained(tmp_path / "m")
    hooked = {"quantiser": {"module": model.quantize}, "encoder": {"module": model.encoder, "output": True}}[side]
    with capture(path=tmp_path / "x.h5", tokens=model.quantize, model=model, **hooked), torch.no_grad():
        model(torch.randn(4, 3, 8, 8))
    (book,) = held_against(tmp_path, "m")
    assert book["evidence"] == "proven"


# Without hooks: predictions of k-means, codes of an index


def beside(folder: Path, x: np.ndarray, tokens: np.ndarray) -> None:
    with h5py.File(folder / "x.h5", "w") as file:
        file["features"], file["features.tokens"] = x.astype(np.float32), tokens


@pytest.mark.parametrize("kind", ["KMeans", "MiniBatchKMeans"])
def test_scikit_learn(kind: str, tmp_path: Path) -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed (test-libs)")
    x = np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32)
    fitted = getattr(cluster, kind)(12, n_init=1, random_state=0).fit(x)
    np.savez(tmp_path / "m.npz", cluster_centers_=fitted.cluster_centers_)
    beside(tmp_path, x, fitted.predict(x))
    assert [book["evidence"] for book in held_against(tmp_path, "m.npz")] == ["proven"]


def test_product_quantiser_of_faiss(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed (test-libs)")
    x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    index = faiss.IndexPQ(8, 4, 4)
    index.train(x)
    faiss.write_index(index, str(tmp_path / "m.index"))
    packed = index.pq.compute_codes(x)
    beside(tmp_path, x, np.stack([packed & 15, packed >> 4], 2).reshape(len(x), 4).astype(np.int64))
    (book,) = held_against(tmp_path, "m.index")
    assert (book["heads"], book["evidence"]) == (4, "proven")
