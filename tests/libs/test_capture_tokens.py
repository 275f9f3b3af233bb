"""Captures record the tokens that a library's own quantiser chose, laid out like the features that it met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.capture import capture
from toc_cli.io.stamps import Stamps

vqp = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed (test-libs)")


def recorded(path: Path) -> tuple[np.ndarray, np.ndarray, Stamps]:
    with h5py.File(path) as file:
        return file["features"][()], file["features.tokens"][()], Stamps.read(file["features"].attrs, "features")


MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16), (3, 10, 8)),
    "projected": (lambda: vqp.VectorQuantize(dim=8, codebook_dim=4, codebook_size=16), (3, 10, 8)),
    "heads": (
        lambda: vqp.VectorQuantize(dim=8, heads=2, separate_codebook_per_head=True, codebook_size=16),
        (3, 10, 8),
    ),
    "image": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16, accept_image_fmap=True), (2, 8, 3, 5)),
    "channels first": (lambda: vqp.VectorQuantize(dim=8, codebook_size=16, channel_last=False), (3, 8, 10)),
    "residual": (lambda: vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16), (3, 10, 8)),
    "grouped": (lambda: vqp.GroupedResidualVQ(dim=8, groups=2, num_quantizers=3, codebook_size=16), (3, 10, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_vector_quantize_pytorch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module = build().eval()
    x = torch.randn(shape)
    with capture(module, tmp_path / "x.h5"):
        module(x)
        module(x + 1)
    features, tokens, stamps = recorded(tmp_path / "x.h5")
    axis = 1 if name in ("image", "channels first") else len(shape) - 1
    lead = tuple(n for at, n in enumerate(shape) if at != axis)
    trailing = {"heads": (2,), "residual": (3,), "grouped": (3, 2)}.get(name, ())
    assert tokens.shape == (2 * lead[0], *lead[1:], *trailing)
    assert np.array_equal(features[: shape[0]], x.numpy())
    assert stamps.channel_axis == axis
    assert stamps.side == ("encoder" if name in ("projected", "heads") else "codebook")
    assert stamps.model.endswith(type(module).__name__)
    assert stamps.library.startswith("vector_quantize_pytorch 1.")
    indices = module(x)[1]
    expected = indices.movedim(0, -1) if name == "grouped" else indices
    assert np.array_equal(tokens[: lead[0]], expected.numpy())


def test_rows_of_varying_length_keep_their_tokens(tmp_path: Path) -> None:
    module = vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16).eval()
    with capture(module, tmp_path / "x.h5", channel_axis=-1):
        for length in (5, 9):
            module(torch.randn(2, length, 8))
    features, tokens, stamps = recorded(tmp_path / "x.h5")
    assert (features.shape, tokens.shape, stamps.channel_axis) == ((28, 8), (28, 3), 1)
    assert np.array_equal(module(torch.from_numpy(features)[None])[1][0].numpy(), tokens)


def test_tokens_can_be_left_out_and_asked_for(tmp_path: Path) -> None:
    module = vqp.VectorQuantize(dim=8, codebook_size=16).eval()
    with capture(module, tmp_path / "bare.h5", tokens=False):
        module(torch.randn(4, 8))
    with h5py.File(tmp_path / "bare.h5") as file:
        assert list(file) == ["features"]
    same = torch.nn.Identity()

    def run() -> None:
        with capture(same, tmp_path / "none.h5", tokens=True):
            same(torch.randn(4, 8))

    with pytest.raises(InputError, match="lie not like the features"):
        run()
    assert not (tmp_path / "none.h5").exists()


def test_what_an_encoder_returns_has_no_tokens_of_its_own(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="Name the quantiser"),
        capture(torch.nn.Identity(), tmp_path / "x.h5", output=True, tokens=True),
    ):
        pass


def test_an_encoders_output_with_the_tokens_of_the_quantiser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, quantizer = torch.nn.Linear(5, 8), vqp.VectorQuantize(dim=8, codebook_size=16).eval()
    with capture(encoder, tmp_path / "x.h5", output=True, tokens=quantizer):
        quantizer(encoder(torch.randn(2, 6, 5)))
    features, tokens, stamps = recorded(tmp_path / "x.h5")
    assert np.array_equal(quantizer(torch.from_numpy(features))[1].numpy(), tokens)
    assert stamps.side == "encoder"

    def once_too_often() -> None:
        with capture(encoder, tmp_path / "y.h5", output=True, tokens=quantizer):
            quantizer(encoder(torch.randn(2, 6, 5)))
            encoder(torch.randn(2, 6, 5))

    with pytest.raises(InputError, match="got 4 batch entries and tokens for 2"):
        once_too_often()


# transformers, diffusers, encodec


def encodec_model() -> Any:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[4, 2], num_lstm_layers=1,
        target_bandwidths=[1.5, 3.0, 30.0], sampling_rate=400, num_residual_layers=1,
    )  # fmt: skip
    return EncodecModel(config).eval()


def test_encodec_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (test-libs)")
    torch.manual_seed(0)
    model = encodec_model()
    with capture(model.quantizer, tmp_path / "x.h5", model=model), torch.no_grad():
        codes = model.encode(torch.randn(2, 1, 160), bandwidth=1.5).audio_codes
    features, tokens, stamps = recorded(tmp_path / "x.h5")
    levels = len(model.quantizer.layers)
    assert features.shape[:2] == (2, 16)
    assert tokens.shape == (2, features.shape[2], levels)
    used = codes.shape[2]
    assert 0 < used < levels
    assert np.array_equal(tokens[:, :, :used], codes[0].transpose(1, 2).numpy())
    assert (tokens[:, :, used:] == -1).all()
    assert (stamps.channel_axis, stamps.module) == (1, "quantizer")
    assert stamps.model.endswith("EncodecModel")
    with capture(model.encoder, tmp_path / "out.h5", output=True, tokens=model.quantizer), torch.no_grad():
        model.encode(torch.randn(2, 1, 160), bandwidth=1.5)
    assert recorded(tmp_path / "out.h5")[1].shape == tokens.shape


def test_mimi_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (test-libs)")
    from transformers import MimiConfig, MimiModel

    torch.manual_seed(0)
    config = MimiConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=8, vector_quantization_hidden_dimension=8,
        num_quantizers=4, upsampling_ratios=[4, 2], num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, head_dim=8, sampling_rate=400, frame_rate=25.0, upsample_groups=16,
    )  # fmt: skip
    model = MimiModel(config).eval()
    with capture(model.quantizer, tmp_path / "x.h5", model=model), torch.no_grad():
        codes = model.encode(torch.randn(2, 1, 320), num_quantizers=3).audio_codes
    features, tokens, stamps = recorded(tmp_path / "x.h5")
    assert (features.shape[:2], stamps.side) == ((2, 16), "encoder")
    assert np.array_equal(tokens[:, :, :3], codes.transpose(1, 2).numpy())
    assert (tokens[:, :, 3:] == -1).all()
    with capture(model.encoder, tmp_path / "out.h5", output=True), torch.no_grad():
        model.encode(torch.randn(2, 1, 320))


def test_dac_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (test-libs)")
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 2], decoder_hidden_size=16, n_codebooks=3, codebook_size=32,
        codebook_dim=4, hidden_size=16, sampling_rate=400,
    )  # fmt: skip
    model = DacModel(config).eval()
    with capture(model.quantizer, tmp_path / "x.h5", model=model), torch.no_grad():
        codes = model.encode(torch.randn(2, 1, 160)).audio_codes
    _, tokens, stamps = recorded(tmp_path / "x.h5")
    assert np.array_equal(tokens, codes.transpose(1, 2).numpy())
    assert (stamps.side, stamps.channel_axis) == ("encoder", 1)


def test_vqmodel_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (test-libs)")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=6,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        sample_size=8,
    ).eval()
    with capture(model.quantize, tmp_path / "x.h5", model=model), torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    features, tokens, stamps = recorded(tmp_path / "x.h5")
    assert (features.shape, tokens.shape) == ((2, 4, 8, 8), (2, 8, 8))
    assert (stamps.side, stamps.channel_axis, stamps.module) == ("codebook", 1, "quantize")
    table = model.quantize.embedding.weight.detach()
    rows = torch.from_numpy(features).movedim(1, -1).reshape(-1, 4)
    assert np.array_equal(torch.cdist(rows, table).argmin(1).numpy(), tokens.reshape(-1))
    with capture(model.encoder, tmp_path / "out.h5", output=True, tokens=model.quantize), torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    assert recorded(tmp_path / "out.h5")[2].side == "encoder"
