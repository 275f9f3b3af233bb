"""Models of real libraries that hold no codebook: each gets its sentence, none a false find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import absent, detect

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'"
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONVS = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


def hubert() -> torch.nn.Module:
    return transformers.HubertModel(transformers.HubertConfig(**SMALL, **CONVS))


def wav2vec2_ctc() -> torch.nn.Module:
    return transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SMALL, **CONVS, vocab_size=32))


def beit() -> torch.nn.Module:
    config = transformers.BeitConfig(**SMALL, image_size=32, patch_size=16, vocab_size=64, out_indices=[1])
    return transformers.BeitForMaskedImageModeling(config)


def musicgen_lm() -> torch.nn.Module:
    config = transformers.MusicgenDecoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, vocab_size=32, num_codebooks=2
    )
    return transformers.MusicgenForCausalLM(config)


def flava() -> torch.nn.Module:
    config = transformers.FlavaImageCodebookConfig(hidden_size=8, vocab_size=64, num_blocks_per_group=1)
    return transformers.FlavaImageCodebook(config)


def vq_diffusion() -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'toc-cli[test-libs]'")
    return diffusers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, num_vector_embeds=65, sample_size=8,
        cross_attention_dim=16, norm_type="ada_norm", num_embeds_ada_norm=10,
    )  # fmt: skip


def vidtok() -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'toc-cli[test-libs]'")
    return diffusers.AutoencoderVidTok(ch=32, num_res_blocks=1, z_channels=6, double_z=False, regularizer="fsq")


def scalar_codec(name: str) -> torch.nn.Module:
    """X-Codec2 or NeuCodec: 8 levels of FSQ between two projections."""
    semantic = {**SMALL, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = getattr(transformers, f"{name}Config")(
        **{**SMALL, "hidden_size": 32}, num_key_value_heads=2, head_dim=16, encoder_hidden_size=4, quantization_dim=32,
        semantic_model_config=transformers.Wav2Vec2BertConfig(**semantic),
    )  # fmt: skip
    return getattr(transformers, f"{name}Model")(config)


CASES = {
    "x-codec2": (lambda: scalar_codec("Xcodec2"), absent.GRID),
    "neucodec": (lambda: scalar_codec("NeuCodec"), absent.GRID),
    "hubert": (hubert, absent.ENCODER),
    "fine-tuned wav2vec2": (wav2vec2_ctc, absent.TOKENS),
    "beit": (beit, absent.TOKENS),
    "musicgen's language model": (musicgen_lm, absent.TOKENS),
    "flava's image codebook": (flava, absent.HEAD),
    "vq-diffusion": (vq_diffusion, absent.TOKENS),
    "vidtok": (vidtok, absent.GRID),
}


@pytest.mark.parametrize("name", CASES)
def test_the_sentence(name: str, tmp_path: Path) -> None:
    build: Callable[[], torch.nn.Module]
    build, sentence = CASES[name]
    build().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError) as caught:
        detect(open_checkpoint(tmp_path / "model"))
    assert sentence in str(caught.value)
