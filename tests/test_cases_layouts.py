"""Layouts and files of the case collection without any tokens to prove them: read right, or refused or asked in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cli import toc
from conftest import shared_folder
from published_layouts import Tensors, factorized, heads, norm_ema, plain, product_table, residual
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import Undecided, detect, emit

FOLDER = shared_folder("TOC_CASES", "cases")
MANIFEST = FOLDER / "layouts" / "manifest.json" if FOLDER else None
LAYOUTS: list[dict[str, Any]] = json.loads(MANIFEST.read_text())["cases"] if MANIFEST and MANIFEST.exists() else []
UNTOLD = ("cannot tell",)
"""What a case says where the file alone does not show how it is looked up: read as assumed, with a warning of that word."""
FORMULAS: dict[str, Callable[[Tensors, np.ndarray], np.ndarray]] = {
    "simvq_repo": product_table("state_dict/quantize.embedding.weight", "state_dict/quantize.embedding_proj"),
    "beats_norm_ema": norm_ema("model/quantize.embedding.weight"),
    "momask_levels": residual(*(f"vq_model/quantizer.layers.{n}.codebook" for n in range(3))),
    "recommender_levels": residual(*(f"model/layers.{n}.embedding.weight" for n in range(3))),
    "unitok_heads": heads([f"trainer/unitok/quantizer.codebooks.{n}.codebook.weight" for n in range(8)]),
    "bigcodec": factorized(["generator/quantizer.layers.0."], "_codebook.weight", "in_proj", "out_proj"),
    "vqgan_lc": product_table("tok_embeddings.weight", "codebook_projection", "quant_conv"),
    "zalando_ema": plain("_vq_vae._embedding.weight"),
    "mishalaskin": plain("model/vector_quantization.embedding.weight"),
    "cluster_centers": plain("kmeans/cluster_centers"),
    "stft_decoder": plain("state_dict/feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"),
}
SPACE = {"vqgan_lc": ("--space", "encoder")}
"""Features as wide before the projection as past it."""
ROWS = 300

pytestmark = pytest.mark.skipif(not LAYOUTS, reason="the case collection is not here: set TOC_CASES to its folder")


@pytest.fixture(params=LAYOUTS or [None], ids=lambda case: case["name"] if case else "none")
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def path(case: dict[str, Any], what: str) -> Path:
    assert FOLDER is not None
    return FOLDER / "layouts" / case[what]


def written(folder: Path) -> np.ndarray:
    """The tokens (N, …) of the only dataset that `toc quantize` wrote."""
    with h5py.File(folder / "t.h5") as file:
        (name,) = file
        found: np.ndarray = file[name][()]
        return found


def test_it_is_read_right_or_asked(case: dict[str, Any], tmp_path: Path) -> None:
    done = toc(
        "quantize", path(case, "features"), "--codebook", path(case, "checkpoint"), "-o", "t.h5", "-q", cwd=tmp_path
    )
    if done.code == 3:
        lines = [line for line in done.err.splitlines() if not line.startswith("warning:")]
        assert 1 <= len(lines) <= 2, done.err
        assert case["tokens"] is None or "--" in done.err, "a refusal says what helps"
        return
    assert done.code == 0, done.err
    assert case["tokens"] is not None, "there is no codebook to prune"
    wanted, found = np.load(path(case, "tokens")), written(tmp_path)
    right = found.shape == wanted.shape and (found == wanted).mean() >= 0.999
    (book,) = detect(open_checkpoint(path(case, "checkpoint")))
    assert right or (any(word in case["says"] for word in UNTOLD) and book.evidence == "assumed"), case["says"]


def test_the_masked_file_gives_the_pruned_tokens(case: dict[str, Any], tmp_path: Path) -> None:
    if case["name"] not in FORMULAS:
        pytest.skip("no formula of this layout stands in the tests")
    ckpt = open_checkpoint(path(case, "checkpoint"))
    (book,) = detect(ckpt)
    assert not emit.supported(ckpt, book)["masked"]
    np.save(tmp_path / "x.npy", np.load(path(case, "features"))[:ROWS])
    space = SPACE.get(case["name"], ())
    options = (*space, "--keep", "0.5", "--emit", "masked", "-o", "m.toc.safetensors", "-q")
    done = toc("optimize", path(case, "checkpoint"), "--features", "x.npy", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    done = toc("quantize", "x.npy", "--codebook", "m.toc.safetensors", *space, "-o", "t.h5", "-q", cwd=tmp_path)
    assert done.code == 0, done.err
    (masked,) = tmp_path.glob("m.masked*")
    opened = open_checkpoint(masked)
    tensors = {key: opened.get(key) for key in opened.infos}
    formula = FORMULAS[case["name"]](tensors, np.load(tmp_path / "x.npy").astype(np.float64))
    np.testing.assert_array_equal(written(tmp_path).reshape(len(formula), -1), formula)


def test_the_reader_of_the_codes_is_named(tmp_path: Path) -> None:
    """WavTokenizer: its own head reads the codes; the decoder beside it is cut so that it loads, and never edited as a consumer."""
    (case,) = [case for case in LAYOUTS if case["name"] == "stft_decoder"]
    ckpt = open_checkpoint(path(case, "checkpoint"))
    (book,) = detect(ckpt)
    assert [site.key for site in book.sites if site.role == "consumer"] == ["state_dict/backbone.embed.weight"]
    kept, fill = torch.arange(8)[None, None], torch.zeros(1, 1, 16).double()
    sliced = emit.edits(ckpt, book, "sliced", kept=kept, fill=fill).tensors
    assert sliced["state_dict/backbone.embed.weight"].shape == (24, 8, 7)
    assert sliced["state_dict/feature_extractor.encodec.decoder.model.0.conv.conv.weight_v"].shape[1] == 8
    consumer = emit.edits(ckpt, book, "consumer", kept=kept, fill=fill).tensors
    assert not consumer["state_dict/backbone.embed.weight"][:, 8:].any()
    assert not any("decoder.model.0" in key for key in consumer)


# Files: what each must give

READ = {
    "dict_means.pt": ((128,), 16, "euclidean"),
    "motion_vq.pth": ((128,), 16, "euclidean"),
    "ema_m.pt": ((128,), 16, "euclidean"),
    "haiku_DK.npz": ((128,), 16, "euclidean"),
    "keras_legacy_DK.h5": ((128,), 16, "euclidean"),
    "keras3_DK.weights.h5": ((128,), 16, "euclidean"),
    "keras_only.h5": ((32,), 64, "euclidean"),
}
ASKED = ("levels_usage.pt", "rq_stacked.pt", "diveq_ResidualDIVEQ.pt", "diveq_ProductDIVEQ.pt")
REFUSED = {
    "s3_v2_fsq.pt": "scalar quantiser",
    "plain_vae.pt": "has no codebook",
}


def file(name: str) -> Path:
    assert FOLDER is not None
    found = FOLDER / "files" / name
    if not found.exists():
        pytest.skip(f"{name} is not in this collection")
    return found


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read(name: str) -> None:
    (book,) = detect(open_checkpoint(file(name)))
    assert (book.num_codes, book.dim, book.metric) == READ[name]


@pytest.mark.parametrize(
    ("name", "sums"), [("motion_vq.pth", "code_sum"), ("ema_m.pt", "ema_m"), ("haiku_DK.npz", "ema_dw/hidden")]
)
def test_running_sums_are_twins(name: str, sums: str) -> None:
    (book,) = detect(open_checkpoint(file(name)))
    assert [key.endswith(sums) for key in book.ema_twins] == [True]


@pytest.mark.parametrize("name", ASKED)
def test_a_file_that_cannot_tell_asks(name: str) -> None:
    ckpt = open_checkpoint(file(name))
    with pytest.raises(Undecided, match="--stack residual"):
        detect(ckpt)
    assert detect(ckpt, stack="residual")[0].residual
    assert len(detect(ckpt, stack="independent")) > 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_a_codebook_says_so(name: str) -> None:
    done = toc("inspect", file(name), "-q")
    assert done.code == 3
    assert REFUSED[name] in " ".join(done.err.split())
    assert "decoder.0.weight" not in done.err, "linear layers of a plain VAE are no candidates"


def test_whole_numbers_look_like_indices() -> None:
    done = toc("inspect", file("codes_int_as_float.npy"), "-q")
    assert done.code == 0
    assert "look like indices" in " ".join(done.err.split())
