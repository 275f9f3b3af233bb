"""Codecs inside larger models: found under their prefix, cut with the right part of the config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import library_models as models
from toc_cli.errors import UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'toc-cli[test-libs]'"
)


def csm() -> torch.nn.Module:
    """Sesame's speech model around a Mimi."""
    small = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 33,
    }  # fmt: skip
    config = transformers.CsmConfig(
        **small,
        num_codebooks=4,
        text_vocab_size=40,
        codebook_pad_token_id=32,
        codebook_eos_token_id=0,
        depth_decoder_config={**small, "num_codebooks": 4, "backbone_hidden_size": 16},
        codec_config=models.mimi_config().to_dict(),
    )
    return transformers.CsmForConditionalGeneration(config)


def chameleon() -> torch.nn.Module:
    """The whole Chameleon around its VQ."""
    config = transformers.ChameleonConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=80, vq_config=models.chameleon().config.to_dict(),
        vocabulary_map={"<image>": 79, **{f"IMGIMG{chr(65 + n)}Z": n + 4 for n in range(26)}},
    )  # fmt: skip
    return transformers.ChameleonForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("build", "size", "part", "values"),
    [
        (csm, 11, "codec_config", ("codebook_dim", "vector_quantization_hidden_dimension")),
        (chameleon, 10, "vq_config", ("embed_dim",)),
    ],
    ids=["mimi in csm", "vq in chameleon"],
)
def test_a_nested_codec_is_cut_in_place(tmp_path: Path, build, size: int, part: str, values: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    prepared = models.prepare(models.save(build(), tmp_path / "full"), size)
    masked = prepared.runs(prepared.write("masked", tmp_path / "masked"))
    sliced = prepared.runs(prepared.write("sliced", tmp_path / "sliced"))
    for pruned, rows, one, other in zip(prepared.pruned, prepared.rows, masked, sliced, strict=True):
        assert models.flips(pruned, rows, pruned.tokens(rows), one.tokens) == 0
        assert models.flips(pruned, rows, one.tokens, other.tokens) == 0
        assert (other.outputs - one.outputs).norm() / one.outputs.norm() < 1e-5
    before, after = models.config_of(prepared.folder), models.config_of(tmp_path / "sliced")
    assert {name: after[part][name] for name in values} == dict.fromkeys(values, size)
    for name in values:
        before[part][name] = size
    assert after == before


def test_a_library_that_renames_its_modules_still_runs_them(tmp_path: Path) -> None:
    """Emu3 saves `vqmodel.` and loads it as `model.vqmodel.`."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 90, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.Emu3Config(
        vq_config=models.emu3().config.to_dict(), text_config=text, vocabulary_map={"<image>": 89}
    )
    prepared = models.prepare(models.save(transformers.Emu3ForConditionalGeneration(config), tmp_path / "full"), 5)
    (masked,) = prepared.runs(prepared.write("masked", tmp_path / "masked"))
    assert (
        models.flips(prepared.pruned[0], prepared.rows[0], prepared.pruned[0].tokens(prepared.rows[0]), masked.tokens)
        == 0
    )


def test_whole_janus_shares_its_width_with_the_language_model(tmp_path: Path) -> None:
    """`generation_embeddings` and the aligner are sized by the same config value, so only the other forms are exact."""
    torch.manual_seed(0)
    model = models.janus()
    model.save_pretrained(tmp_path / "vq")
    ckpt = open_checkpoint(tmp_path / "vq")
    assert emit.supported(ckpt, detect(ckpt)[0])["sliced"] == ""
    whole = torch.nn.ModuleDict({"vqmodel": model, "generation_embeddings": torch.nn.Embedding(32, 8)})
    state = {f"model.{key}": tensor.contiguous() for key, tensor in whole.state_dict().items()}
    models.save_folder(tmp_path / "whole", state, {"model_type": "janus", "vq_config": model.config.to_dict()})
    prepared = models.prepare(tmp_path / "whole", 5)
    assert prepared.books[0].keys == (("model.vqmodel.quantize.embedding.weight",),)
    with pytest.raises(UsageError, match="generation_embeddings"):
        prepared.write("sliced", tmp_path / "sliced")
    prepared.write("consumer", tmp_path / "consumer")
