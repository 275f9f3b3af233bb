"""Codec families on files made by hand: what their libraries never save, but the wild does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint import Checkpoint, open_checkpoint
from toc_cli.io.families import detect, emit, encodec, image_vq, kmeans, mimi, projected, wav2vec2, xcodec
from toc_cli.io.families.base import Codebook
from toc_cli.io.families.layers import weight_norm

KEPT = torch.tensor([[[0, 2, 3, 5, 6]]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def folder(path: Path, state: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Checkpoint:
    path.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return open_checkpoint(path)


def torch_file(path: Path, content: dict[str, Any]) -> Checkpoint:
    torch.save(content, path)
    return open_checkpoint(path)


def fill(book: Codebook, value: float) -> torch.Tensor:
    """A constant on level 0 alone, as a residual quantiser has it."""
    values = torch.zeros(book.levels, book.heads, book.dim, dtype=torch.float64)
    values[0] = value
    return values


def seanet(dim: int = 8, bias: bool = True, prefix: str = "") -> dict[str, torch.Tensor]:
    """A codec in the spelling of the original EnCodec: two levels between two weight-normed convolutions."""
    state = {
        "encoder.model.3.conv.conv.weight_g": torch.rand(dim, 1, 1) + 0.5,
        "encoder.model.3.conv.conv.weight_v": torch.randn(dim, 6, 7),
        "encoder.model.3.conv.conv.bias": torch.randn(dim),
        "decoder.model.0.conv.conv.weight_g": torch.rand(6, 1, 1) + 0.5,
        "decoder.model.0.conv.conv.weight_v": torch.randn(6, dim, 7),
    }
    if bias:
        state["decoder.model.0.conv.conv.bias"] = torch.randn(6)
    for level in range(2):
        stem = f"quantizer.vq.layers.{level}._codebook."
        state |= {f"{stem}embed": torch.randn(16, dim), f"{stem}cluster_size": torch.rand(16) + 0.5}
        state[f"{stem}embed_avg"] = state[f"{stem}embed"] * state[f"{stem}cluster_size"][:, None]
    return {prefix + key: tensor for key, tensor in state.items()}


# Mimi


def mimi_state(dim: int, hidden: int, *, projected: bool) -> dict[str, torch.Tensor]:
    state = {}
    for group in ("semantic", "acoustic"):
        root = f"quantizer.{group}_residual_vector_quantizer."
        state[f"{root}layers.0.codebook.embed_sum"] = torch.randn(16, dim)
        state[f"{root}layers.0.codebook.cluster_usage"] = torch.rand(16) * torch.arange(16).clamp(max=1)
        if projected:
            state[f"{root}input_proj.weight"] = torch.randn(dim, hidden, 1)
            state[f"{root}output_proj.weight"] = torch.randn(hidden, dim, 1)
    return state


def test_mimi_divides_by_usage_down_to_its_floor(tmp_path: Path) -> None:
    state = mimi_state(8, 12, projected=True)
    ckpt = folder(tmp_path / "mimi", state, {"model_type": "mimi", "hidden_size": 12})
    for book in mimi.find(ckpt):
        key = book.keys[0][0]
        usage = state[key.replace("embed_sum", "cluster_usage")]
        expected = state[key] / torch.maximum(usage, torch.tensor(1e-5))[:, None]
        assert usage[0] == 0
        assert torch.equal(book.parts(ckpt).tables[0][0], expected)


def test_mimi_refuses_the_width_at_which_its_library_leaves_the_projections_out(tmp_path: Path) -> None:
    config = {"model_type": "mimi", "hidden_size": 5}
    ckpt = folder(tmp_path / "mimi", mimi_state(8, 5, projected=True), config)
    first, second = mimi.find(ckpt)
    assert first.together == second.together != ""
    with pytest.raises(UsageError, match="hidden_size"):
        emit.edits(ckpt, first, "sliced", kept=KEPT, fill=fill(first, 0))
    assert emit.edits(ckpt, first, "sliced", kept=KEPT[..., 1:], fill=fill(first, 0)).config
    assert emit.edits(ckpt, first, "masked", kept=KEPT, fill=fill(first, 0)).tensors


def test_mimi_without_projections_gains_selections(tmp_path: Path) -> None:
    config = {"model_type": "mimi", "hidden_size": 8}
    ckpt = folder(tmp_path / "mimi", mimi_state(8, 8, projected=False), config)
    book = mimi.find(ckpt)[0]
    added = emit.edits(ckpt, book, "sliced", kept=KEPT, fill=fill(book, 0)).tensors
    x = torch.randn(4, 8)
    root = book.keys[0][0].partition("layers.")[0]
    inward, outward = (added[f"{root}{name}_proj.weight"][..., 0] for name in ("input", "output"))
    assert torch.equal(x @ inward.T, x[:, KEPT[0, 0]])
    assert torch.equal(x @ inward.T @ outward.T, x.where(torch.isin(torch.arange(8), KEPT), torch.zeros(())))


# The original spelling of EnCodec, and those who share it


@pytest.mark.parametrize(("pad", "zero"), [("reflect", False), ("constant", True)])
def test_audiocraft_keeps_its_width_in_yaml(tmp_path: Path, pad: str, zero: bool) -> None:
    text = f"rvq:\n  n_q: 2\n  dimension: 8\nseanet:\n  channels: 1\n  dimension: 8\n  pad_mode: {pad}\nlm:\n  dimension: 8\n"
    content = {"best_state": seanet(), "xp.cfg": text, "version": "1.0"}
    ckpt = torch_file(tmp_path / "compression_state_dict.bin", content)
    (book,) = detect(ckpt)
    assert (book.family, book.zero_fill) == ("audiocraft", zero)
    edits = emit.edits(ckpt, book, "sliced", kept=KEPT, fill=fill(book, 0))
    assert edits.values[("xp.cfg",)] == text.replace("channels: 1\n  dimension: 8", "channels: 1\n  dimension: 5")
    ckpt.write(tmp_path / "sliced.bin", edits)
    assert torch.load(tmp_path / "sliced.bin", weights_only=True)["xp.cfg"] == edits.values[("xp.cfg",)]


def test_a_decoder_without_bias_takes_no_constant(tmp_path: Path) -> None:
    ckpt = torch_file(tmp_path / "small.th", seanet(bias=False))
    (book,) = detect(ckpt)
    assert book.zero_fill
    with pytest.raises(UsageError, match="--fill zero"):
        emit.edits(ckpt, book, "consumer", kept=KEPT, fill=fill(book, 0.5))


def test_speechtokenizer_has_a_second_reader_of_its_first_level(tmp_path: Path) -> None:
    transform = {"transform.weight": torch.randn(4, 8), "transform.bias": torch.randn(4)}
    path = tmp_path / "SpeechTokenizer.pt"
    (tmp_path / "config.json").write_text(json.dumps({"dimension": 8, "n_q": 2}))
    ckpt = torch_file(path, seanet() | transform)
    (book,) = detect(ckpt)
    assert book.family == "speechtokenizer"
    constant = fill(book, 0.0)
    cut = emit.edits(ckpt, book, "sliced", kept=KEPT, fill=constant)
    assert cut.config == {("dimension",): 5}
    q = torch.randn(3, 8).where(torch.isin(torch.arange(8), KEPT), torch.zeros(()))
    before = q @ transform["transform.weight"].T
    after = q[:, KEPT[0, 0]] @ cut.tensors["transform.weight"].T
    torch.testing.assert_close(before, after)


def test_a_trainer_file_nests_its_generator(tmp_path: Path) -> None:
    ckpt = torch_file(tmp_path / "trainer.pt", {"generator": seanet(), "step": 3})
    (book,) = encodec.find(ckpt)
    assert book.keys[1] == ("generator/quantizer.vq.layers.1._codebook.embed",)
    assert emit.supported(ckpt, book)["sliced"] == ""


def test_weight_normed_columns_are_cut_from_the_weight_not_its_direction(tmp_path: Path) -> None:
    """g must follow |w| of what is left: keeping g leaves an output that is wrong by a tenth."""
    state = seanet()
    ckpt = torch_file(tmp_path / "small.th", state)
    (book,) = detect(ckpt)
    cut = emit.edits(ckpt, book, "sliced", kept=KEPT, fill=fill(book, 0)).tensors
    names = [f"decoder.model.0.conv.conv.weight_{x}" for x in "gv"]
    whole = weight_norm(*(state[name] for name in names))
    torch.testing.assert_close(weight_norm(*(cut[name] for name in names)), whole[:, KEPT[0, 0]])
    assert not torch.allclose(cut[names[0]], state[names[0]], rtol=0.01)
    rows = [f"encoder.model.3.conv.conv.weight_{x}" for x in "gv"]
    for name in rows:
        assert torch.equal(cut[name], state[name][KEPT[0, 0]])


def test_hdf5_paths_read_as_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "codec.h5", "w") as file:
        for key, tensor in seanet().items():
            file[key.replace(".", "/")] = tensor.numpy()
    (book,) = detect(open_checkpoint(tmp_path / "codec.h5"))
    assert book.num_codes == (16, 16)
    assert book.keys[0] == ("quantizer/vq/layers/0/_codebook/embed",)


def test_a_quantiser_alone_offers_only_masked(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in seanet().items() if key.startswith("quantizer")}
    ckpt = torch_file(tmp_path / "quantizer.pt", state)
    (book,) = detect(ckpt)
    offered = emit.supported(ckpt, book)
    assert offered["masked"] == ""
    assert "not in this file" in offered["sliced"]
    assert "not in this file" in offered["consumer"]


# Levels with their own projections


def dac_state(dims: list[int], outer: int = 12) -> dict[str, torch.Tensor]:
    state = {}
    for level, dim in enumerate(dims):
        stem = f"quantizer.quantizers.{level}."
        state |= {
            f"{stem}codebook.weight": torch.randn(16, dim),
            f"{stem}in_proj.weight": torch.randn(dim, outer, 1),
            f"{stem}in_proj.bias": torch.randn(dim),
            f"{stem}out_proj.weight": torch.randn(outer, dim, 1),
            f"{stem}out_proj.bias": torch.randn(outer),
        }
    return state


def test_dac_levels_of_one_width_are_one_codebook(tmp_path: Path) -> None:
    ckpt = folder(tmp_path / "dac", dac_state([8, 8]), {"model_type": "dac", "codebook_dim": 8})
    (book,) = projected.find(ckpt)
    assert (book.levels, book.outer_width, book.metric, book.zero_fill) == (2, 12, "cosine", True)
    kept = torch.cat([KEPT, KEPT + 1])
    cut = emit.edits(ckpt, book, "sliced", kept=kept, fill=fill(book, 0))
    assert cut.config == {("codebook_dim",): 5}
    stem = "quantizer.quantizers.1."
    assert torch.equal(cut.tensors[f"{stem}in_proj.bias"], ckpt.get(f"{stem}in_proj.bias")[kept[1, 0]])


def test_dac_levels_of_unlike_widths_stand_alone(tmp_path: Path) -> None:
    """A DAC that was sliced level by level keeps its widths as a list."""
    content = {"state_dict": dac_state([5, 4]), "metadata": {"kwargs": {"codebook_dim": [5, 4]}}}
    first, second = projected.find(ckpt := torch_file(tmp_path / "weights.pth", content))
    assert (first.dim, second.dim) == (5, 4)
    assert first.warnings
    assert "one codebook_dim" in emit.supported(ckpt, first)["sliced"]


def test_tables_with_projections_are_not_xcodec(tmp_path: Path) -> None:
    state = {}
    for key, tensor in dac_state([8, 8]).items():
        name = key.replace("codebook.weight", "codebook.embed").replace("in_proj", "project_in")
        state[name.replace("out_proj", "project_out")] = tensor.squeeze(-1)
    ckpt = folder(tmp_path / "higgs", state, {"model_type": "higgs_audio_v2_tokenizer", "codebook_dim": 8})
    assert [book.family for book in detect(ckpt)] == ["higgs audio v2"]
    assert xcodec.find(ckpt) == []


# wav2vec 2.0


@pytest.mark.parametrize(
    ("reader", "config", "groups"),
    [(True, {}, 2), (False, {"num_codevector_groups": 4}, 4), (False, {"num_codevector_groups": 3}, 1), (False, {}, 1)],
)
def test_groups_come_from_the_reader_then_from_the_config(
    tmp_path: Path, reader: bool, config: dict[str, Any], groups: int
) -> None:
    state = {"quantizer.codevectors": torch.randn(1, 80, 12), "quantizer.weight_proj.weight": torch.randn(80, 16)}
    if reader:
        state["project_q.weight"] = torch.randn(20, 24)
    ckpt = folder(tmp_path / "w", state, config)
    (book,) = wav2vec2.find(ckpt)
    assert (book.heads, book.num_codes, book.metric) == (groups, (80 // groups,), "logits")
    table = book.parts(ckpt).tables[0]
    assert torch.equal(table[-1, 0], state["quantizer.codevectors"][0, 80 - 80 // groups])
    assert any("codes never change" in warning for warning in book.warnings)


# Tables between two convolutions


def vq_state(dim: int = 8, prefix: str = "") -> dict[str, torch.Tensor]:
    state = {
        "quantize.embedding.weight": torch.randn(16, dim),
        "quant_conv.weight": torch.randn(dim, 6, 1, 1),
        "quant_conv.bias": torch.randn(dim),
        "post_quant_conv.weight": torch.randn(6, dim, 1, 1),
        "post_quant_conv.bias": torch.randn(6),
    }
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("config", "family", "metric", "unit", "path"),
    [
        ({"model_type": "chameleon_vqgan"}, "chameleon vq", "euclidean", False, ("embed_dim",)),
        ({"model_type": "janus_vqgan"}, "janus vq", "euclidean", True, ("embed_dim",)),
        ({"model_type": "glm_image_vqmodel"}, "glm-image vq", "cosine", True, ("embed_dim",)),
        ({"_class_name": "VQModel"}, "diffusers vqmodel", "euclidean", False, ("vq_embed_dim",)),
        ({"model_type": "chameleon", "vq_config": {}}, "chameleon vq", "euclidean", False, ("vq_config", "embed_dim")),
    ],
)
def test_the_config_tells_the_tokenizer(
    tmp_path: Path, config: dict[str, Any], family: str, metric: str, unit: bool, path: tuple[str, ...]
) -> None:
    prefix = "model.vqmodel." if "vq_config" in config else ""
    ckpt = folder(tmp_path / "vq", vq_state(prefix=prefix), config)
    (book,) = detect(ckpt)
    assert (book.family, book.metric, book.unit_vectors, book.zero_fill) == (family, metric, unit, unit)
    assert book.outer_width == 6
    cut = emit.edits(ckpt, book, "sliced", kept=KEPT, fill=fill(book, 0))
    assert cut.config == {path: 5}
    assert all(key.startswith(prefix) for key in cut.tensors)
    assert len(cut.tensors) == 4


def test_without_a_config_the_table_is_another_familys(tmp_path: Path) -> None:
    ckpt = folder(tmp_path / "vq", vq_state())
    assert image_vq.find(ckpt) == []


# k-means


def test_exported_centres(tmp_path: Path) -> None:
    centres = np.random.default_rng(0).normal(size=(16, 8))
    np.savez(tmp_path / "kmeans.npz", cluster_centers_=centres, n_iter_=3)
    ckpt = open_checkpoint(tmp_path / "kmeans.npz")
    (book,) = kmeans.find(ckpt)
    assert (book.num_codes, book.dim, book.dtype) == ((16,), 8, "float64")
    target = tmp_path / "sliced.npz"
    ckpt.write(target, emit.edits(ckpt, book, "sliced", kept=KEPT, fill=fill(book, 0)))
    assert np.array_equal(np.load(target)["cluster_centers_"], centres[:, KEPT[0, 0].numpy()])
