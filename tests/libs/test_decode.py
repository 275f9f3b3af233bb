"""`toc decode` gives what the library's own dequantiser gives for the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import library_models as models
from cli import toc
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.pipeline.source import sources

Dequantise = Callable[[Any, torch.Tensor], torch.Tensor]
ROWS = 64


def _codec(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(N, L, 1) through an audio quantiser that reads (L, 1, N)."""
    return module.quantizer.decode(tokens.permute(1, 2, 0))[0].T


def _dac(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    return module.quantizer.from_codes(tokens.permute(2, 1, 0))[0][0].T


def _mimi(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The group of so many levels: one is semantic."""
    name = "semantic" if tokens.shape[1] == 1 else "acoustic"
    return getattr(module.quantizer, f"{name}_residual_vector_quantizer").decode(tokens.permute(2, 1, 0))[0].T


def _image(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    vectors = module.quantize.embedding(tokens[:, 0, 0])
    return module.post_quant_conv(vectors.T[None, :, :, None])[0, :, :, 0].T


def _janus(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Its rows are divided by their length before they are passed on."""
    entries = module.quantize.get_codebook_entry(tokens[None, :, 0, 0])  # (1, D, 8, 8)
    return module.post_quant_conv(entries)[0].flatten(1).T


def _wav2vec2(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The chosen codevectors of both groups, side by side (the table is flat over groups)."""
    groups, codes = tokens.shape[2], module.config.num_codevectors_per_group
    flat = module.quantizer.codevectors[0]
    return torch.cat([flat[tokens[:, 0, group] + group * codes] for group in range(groups)], 1)


FAMILIES: dict[str, tuple[Callable[[], torch.nn.Module], Dequantise]] = {
    "encodec": (models.encodec, _codec),
    "dac": (models.dac, _dac),
    "mimi": (models.mimi, _mimi),
    "xcodec": (models.xcodec, _codec),
    "chameleon": (models.chameleon, _image),
    "janus": (models.janus, _janus),
    "wav2vec2": (models.wav2vec2, _wav2vec2),
    "diffusers vqmodel": (models.vqmodel, _image),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_the_library(tmp_path: Path, family: str) -> None:
    pytest.importorskip("diffusers" if "diffusers" in family else "transformers")
    build, dequantise = FAMILIES[family]
    module = build()
    models.save(module, tmp_path / "model")
    ckpt = open_checkpoint(tmp_path / "model")
    full = sources(ckpt, detect(ckpt))[0].full
    generator = torch.Generator().manual_seed(1)
    shape = (ROWS, len(full.levels), full.heads)
    tokens = torch.randint(0, full.levels[0].codes.shape[1], shape, generator=generator)
    np.save(tmp_path / "t.npy", tokens.reshape([n for n in shape if n > 1]).numpy())
    done = toc("decode", "t.npy", "--codebook", "model", cwd=tmp_path)
    assert done.code == 0, done.err
    with h5py.File(tmp_path / "t.vectors.h5") as file, torch.inference_mode():
        expected = dequantise(module.double(), tokens).numpy()
        found = file["tokens"][...]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("projection", [{}, {"codebook_dim": 12}], ids=["plain", "projected"])
def test_vectors_are_those_of_a_residual_vq(tmp_path: Path, projection: dict[str, int]) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    module = vqp.ResidualVQ(dim=24, codebook_size=32, num_quantizers=3, **projection).eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    tokens = torch.randint(0, 32, (ROWS, 3))
    np.save(tmp_path / "t.npy", tokens.numpy())
    done = toc("decode", "t.npy", "--codebook", "m.pt", cwd=tmp_path)
    assert done.code == 0, done.err
    with h5py.File(tmp_path / "t.vectors.h5") as file, torch.inference_mode():
        expected = module.get_output_from_indices(tokens[None])[0]
        np.testing.assert_allclose(file["tokens"][...], expected.numpy(), rtol=1e-6, atol=1e-6)
