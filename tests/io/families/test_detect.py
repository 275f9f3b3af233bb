"""What is found where: layouts read in their sources, overrides, decoys, and what is said of files without a codebook."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from memory_checkpoint import MemoryCheckpoint
from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import Undecided, detect, emit
from toc_cli.io.families.base import Codebook


def checkpoint(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any] | None = None, **values: Any
) -> MemoryCheckpoint:
    torch.manual_seed(0)
    return MemoryCheckpoint({key: torch.rand(shape) for key, shape in shapes.items()}, config, **values)


def roles(codebook: Codebook, role: str) -> list[tuple[str, int]]:
    return [(site.key, site.axis) for site in codebook.sites if site.role == role]


def offered(ckpt: MemoryCheckpoint, codebook: Codebook) -> set[str]:
    return {mode for mode, reason in emit.supported(ckpt, codebook).items() if not reason}


def test_emavq_keeps_its_running_sums() -> None:
    ckpt = checkpoint(
        {
            "state_dict/quantize.embedding.weight": (16, 6),
            "state_dict/quantize.embedding.cluster_size": (16,),
            "state_dict/quantize.embedding.embed_avg": (16, 6),
            "state_dict/quant_conv.weight": (6, 5, 1, 1),
            "state_dict/quant_conv.bias": (6,),
            "state_dict/post_quant_conv.weight": (5, 6, 1, 1),
            "state_dict/post_quant_conv.bias": (5,),
        },
        **{"hyper_parameters/embed_dim": 6},
    )
    (codebook,) = detect(ckpt)
    assert (codebook.num_codes, codebook.dim, codebook.outer_width, codebook.zero_fill) == ((16,), 6, 5, False)
    assert codebook.ema_twins == ("state_dict/quantize.embedding.embed_avg",)
    assert offered(ckpt, codebook) == {"codebook", "masked", "sliced", "consumer"}
    kept, fill = torch.tensor([[[1, 4]]]), torch.full((1, 1, 6), 0.5).double()
    masked = emit.edits(ckpt, codebook, "masked", kept=kept, fill=fill).tensors[codebook.ema_twins[0]]
    torch.testing.assert_close(masked[:, 0], ckpt.get("state_dict/quantize.embedding.cluster_size") * 0.5)
    sliced = emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill)
    assert sliced.values == {("hyper_parameters", "embed_dim"): 2}


def test_gumbelvq_looks_up_what_its_logits_choose() -> None:
    ckpt = checkpoint(
        {
            "state_dict/quantize.proj.weight": (16, 5, 1, 1),
            "state_dict/quantize.proj.bias": (16,),
            "state_dict/quantize.embed.weight": (16, 6),
            "state_dict/post_quant_conv.weight": (5, 6, 1, 1),
            "state_dict/post_quant_conv.bias": (5,),
        }
    )
    (codebook,) = detect(ckpt)
    parts = codebook.parts(ckpt)
    assert (codebook.metric, codebook.num_codes, codebook.dim, codebook.outer_width) == ("logits", (16,), 6, 5)
    assert parts.logits is not None
    assert parts.logits.weight.shape == (16, 5)
    assert offered(ckpt, codebook) == {"codebook", "masked", "consumer"}
    with pytest.raises(UsageError, match="come from logits"):
        detect(ckpt, metric="cosine")


def test_a_padding_row_is_no_code() -> None:
    shapes = {}
    for level in range(2):
        stem = f"quantizer.codebooks.{level}."
        shapes |= {stem + "weight": (17, 6), stem + "cluster_size_ema": (16,), stem + "embed_ema": (16, 6)}
    shapes |= {
        "quant_conv.weight": (6, 5, 1, 1),
        "quant_conv.bias": (6,),
        "post_quant_conv.weight": (5, 6, 1, 1),
        "post_quant_conv.bias": (5,),
    }
    ckpt = checkpoint(shapes)
    (codebook,) = detect(ckpt)
    assert (codebook.num_codes, codebook.levels, codebook.residual) == ((16, 16), 2, True)
    assert [table.shape for table in codebook.parts(ckpt).tables] == [(1, 16, 6)] * 2
    kept, fill = torch.tensor([[[1, 4]]]), torch.zeros(2, 1, 6).double()
    fill[0] = 0.5
    masked = emit.edits(ckpt, codebook, "masked", kept=kept, fill=fill).tensors["quantizer.codebooks.0.weight"]
    assert torch.equal(masked[16], ckpt.get("quantizer.codebooks.0.weight")[16])
    assert (masked[:16, [0, 2, 3, 5]] == 0.5).all()
    sliced = emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill).tensors
    assert torch.equal(sliced["quantizer.codebooks.1.weight"], ckpt.get("quantizer.codebooks.1.weight")[:, [1, 4]])
    assert sliced["quantizer.codebooks.0.embed_ema"].shape == (16, 2)


def test_kakao_codes_that_regroup_the_channels_are_not_sliced() -> None:
    ckpt = checkpoint(
        {
            "quantizer.codebooks.0.weight": (17, 6),
            "quant_conv.weight": (3, 5, 1, 1),
            "post_quant_conv.weight": (5, 3, 1, 1),
        }
    )
    (codebook,) = detect(ckpt)
    assert codebook.num_codes == (16,)
    assert offered(ckpt, codebook) == {"codebook", "masked"}


def test_recommenders_are_cut_between_their_mlps() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        f"state_dict/rq.vq_layers.{level}.embedding.weight": (16, 6) for level in range(3)
    }
    shapes |= {"state_dict/encoder.mlp_layers.1.weight": (12, 20), "state_dict/encoder.mlp_layers.1.bias": (12,)}
    shapes |= {"state_dict/encoder.mlp_layers.2.weight": (12,), "state_dict/encoder.mlp_layers.2.bias": (12,)}
    shapes |= {"state_dict/encoder.mlp_layers.10.weight": (6, 12), "state_dict/encoder.mlp_layers.10.bias": (6,)}
    shapes |= {"state_dict/decoder.mlp_layers.1.weight": (12, 6), "state_dict/decoder.mlp_layers.1.bias": (12,)}
    shapes |= {"state_dict/decoder.mlp_layers.4.weight": (20, 12), "state_dict/decoder.mlp_layers.4.bias": (20,)}
    ckpt = checkpoint(shapes)
    (codebook,) = detect(ckpt)
    assert (codebook.levels, codebook.residual, codebook.outer_width) == (3, True, 12)
    assert roles(codebook, "producer") == [("state_dict/encoder.mlp_layers.10.weight", 0)]
    assert roles(codebook, "consumer") == [("state_dict/decoder.mlp_layers.1.weight", 1)]
    assert "sliced" in offered(ckpt, codebook)


def test_the_levels_of_jukebox_are_codebooks_of_their_own() -> None:
    shapes: dict[str, tuple[int, ...]] = {f"model/bottleneck.level_blocks.{level}.k": (16, 6) for level in range(3)}
    shapes |= {f"model/decoders.{level}.level_blocks.{level}.model.0.weight": (8, 6, 3) for level in range(3)}
    shapes |= {f"model/decoders.{level}.level_blocks.{level}.model.0.bias": (8,) for level in range(3)}
    ckpt = checkpoint(shapes)
    books = detect(ckpt)
    assert [book.label for book in books] == [f"model/bottleneck.level_blocks.{level}.k" for level in range(3)]
    assert all(book.levels == 1 and book.zero_fill and not book.residual for book in books)
    assert offered(ckpt, books[0]) == {"codebook", "masked", "consumer"}


def test_vq_wav2vec_stores_codes_first() -> None:
    ckpt = checkpoint(
        {"model/vector_quantizer.embedding": (16, 2, 6), "model/vector_quantizer.projection.0.weight": (12, 6, 1)}
    )
    (codebook,) = detect(ckpt)
    assert (codebook.num_codes, codebook.heads, codebook.dim) == ((16,), 2, 6)
    table = codebook.parts(ckpt).tables[0]
    assert torch.equal(table[1, 3], ckpt.get("model/vector_quantizer.embedding")[3, 1])
    assert "GroupNorm" in emit.supported(ckpt, codebook)["sliced"]


@pytest.mark.parametrize(
    ("rows", "logits", "project", "settings", "groups", "codes"),
    [
        (32, 32, 12, {"cfg/model/latent_groups": 2, "cfg/model/latent_dim": 12}, 2, 16),
        (32, 32, 12, {}, 2, 16),
        (16, 32, 12, {"args/latent_groups": 2}, 2, 16),  # combine_groups: one table for both
        (32, 32, None, {"args/latent_groups": 2}, 2, 16),
    ],
    ids=["settings", "width of project_q", "combined", "args"],
)
def test_groups_of_wav2vec2(
    rows: int, logits: int, project: int | None, settings: dict[str, Any], groups: int, codes: int
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"model/quantizer.vars": (1, rows, 6)}
    shapes |= {"model/quantizer.weight_proj.weight": (logits, 9), "model/quantizer.weight_proj.bias": (logits,)}
    if project:
        shapes |= {"model/project_q.weight": (7, project), "model/project_q.bias": (7,)}
    ckpt = checkpoint(shapes, **settings)
    (codebook,) = detect(ckpt)
    assert (codebook.heads, codebook.num_codes, codebook.metric) == (groups, (codes,), "logits")
    assert codebook.parts(ckpt).tables[0].shape == (groups, codes, 6)
    assert codebook.own_dims_per_head == (rows == logits)
    assert ("sliced" in offered(ckpt, codebook)) == ("cfg/model/latent_dim" in settings)
    if "cfg/model/latent_dim" in settings:
        kept = torch.tensor([[[0, 1, 3], [2, 4, 5]]])
        sliced = emit.edits(ckpt, codebook, "sliced", kept=kept, fill=torch.zeros(1, 2, 6).double())
        assert sliced.values == {("cfg", "model", "latent_dim"): 6}
        whole = ckpt.get("model/quantizer.vars")
        assert torch.equal(
            sliced.tensors["model/quantizer.vars"], torch.cat([whole[:, :16, kept[0, 0]], whole[:, 16:, kept[0, 1]]], 1)
        )
        columns = torch.cat([kept[0, 0], 6 + kept[0, 1]])
        assert torch.equal(sliced.tensors["model/project_q.weight"], ckpt.get("model/project_q.weight")[:, columns])


def test_cmg_of_several_layers_is_residual() -> None:
    ckpt = checkpoint(
        {
            "Encoder_parameters/Cross_quantizer.embedding": (2, 16, 6),
            "Encoder_parameters/Cross_quantizer.ema_weight": (2, 16, 6),
            "Encoder_parameters/Cross_quantizer.ema_count": (2, 16),
            "Decoder_parameters/video_semantic_decoder.linear.weight": (6, 6),
            "Decoder_parameters/video_semantic_decoder.linear.bias": (6,),
            "Decoder_parameters/video_semantic_decoder.event_classifier.weight": (28, 6),
        }
    )
    (codebook,) = detect(ckpt)
    assert (codebook.levels, codebook.residual, codebook.num_codes, codebook.zero_fill) == (2, True, (16, 16), False)
    assert roles(codebook, "consumer") == [("Decoder_parameters/video_semantic_decoder.linear.weight", 1)]
    fill = torch.zeros(2, 1, 6).double()
    fill[0] = 0.5
    masked = emit.edits(ckpt, codebook, "masked", kept=torch.tensor([[[1, 4]]]), fill=fill).tensors
    table, sums = (masked[f"Encoder_parameters/Cross_quantizer.{name}"] for name in ("embedding", "ema_weight"))
    assert (table[0][:, 0] == 0.5).all()
    assert not table[1][:, 0].any()
    torch.testing.assert_close(sums[0][:, 0], 0.5 * ckpt.get("Encoder_parameters/Cross_quantizer.ema_count")[0])


def test_a_run_of_our_own_trainer() -> None:
    from toc_cli.fcid.config import ModalitySpec, profile_config, with_options
    from toc_cli.fcid.model import build_model

    specs = {name: ModalitySpec(name, 10, 6) for name in ("video", "audio", "text")}
    for alignment, levels in (("fine-coarse", ["coarse", "fine"]), ("uniform", ["fine"])):
        config = with_options(profile_config("corrected", alignment), {"width": 8})  # type: ignore[arg-type]
        ckpt = MemoryCheckpoint(build_model(config, specs).state_dict())
        books = detect(ckpt)
        assert sorted(book.label for book in books) == [f"codebook.{level}.embedding" for level in levels]
        for book in books:
            assert book.ema_twins == (book.label.replace("embedding", "ema_weight"),)
            assert offered(ckpt, book) == {"codebook", "masked", "consumer"}
            assert not book.zero_fill
            readers = roles(book, "consumer")
            assert readers
            assert all(
                ".shared.weight" in key and (book.label.split(".")[1] in key or alignment == "uniform")
                for key, _ in readers
            )


def test_decoys_are_not_codebooks() -> None:
    """Moments, usage counters, logits, token tables, discriminators: shaped like codebooks, none of them."""
    ckpt = checkpoint(
        {
            "optimizer/state/0/exp_avg": (16, 6),
            "state_dict/quantize.embedding.weight": (16, 6),
            "state_dict/quantize.ema_vocab_hit_SV": (10, 16),
            "state_dict/quantizer.weight_proj.weight": (16, 6),
            "state_dict/codebooks_head.weight": (16, 6),
            "state_dict/embed_tokens.weight": (16, 6),
            "state_dict/latent_image_embedding.emb.weight": (16, 6),
            "state_dict/loss.discriminator.main.0.weight": (8, 3),
        }
    )
    assert [book.label for book in detect(ckpt)] == ["state_dict/quantize.embedding.weight"]


@pytest.mark.parametrize(
    "name",
    ["vq.codebook", "vector_quantizer.embedding.weight", "model.codebook", "bottleneck.quantizer.codebook.weight"],
)
def test_names_that_hold_nothing_but_codebooks(name: str) -> None:
    ckpt = checkpoint({"encoder.weight": (8, 6), name: (16, 6), "decoder.weight": (6, 8)})
    (codebook,) = detect(ckpt)
    assert (codebook.label, codebook.num_codes, codebook.dim, codebook.metric) == (name, (16,), 6, "euclidean")
    assert codebook.evidence == "assumed"
    assert any("assumed" in note for note in codebook.warnings)
    assert offered(ckpt, codebook) == {"codebook"}
    assert offered(ckpt, *detect(ckpt, assume=True)) == {"codebook", "masked"}
    assert any("--metric" in note for note in codebook.warnings)


@pytest.mark.parametrize(
    ("table", "counts", "heads", "codes"),
    [
        ((6, 16), (16,), 1, 16),
        ((17, 6), (16,), 1, 16),
        ((16, 2, 6), (16,), 2, 16),
        ((2, 16, 6), (2, 16), 2, 16),
        ((16, 16), (16,), 1, 16),
    ],
    ids=["transposed", "padding row", "codes first", "heads first", "square"],
)
def test_a_buffer_per_code_tells_the_code_axis(
    table: tuple[int, ...], counts: tuple[int, ...], heads: int, codes: int
) -> None:
    ckpt = checkpoint({"my.table": table, "my.cluster_size": counts})
    if table == (2, 16, 6):
        with pytest.raises(Undecided, match="--stack residual"):
            detect(ckpt, codebook="my.table")
    (codebook,) = detect(ckpt, codebook="my.table", stack="product")
    assert (codebook.heads, codebook.num_codes, codebook.dim) == (heads, (codes,), 16 if table == (16, 16) else 6)
    assert codebook.parts(ckpt).tables[0].shape == (heads, codes, codebook.dim)


def test_a_named_table_of_an_unknown_file() -> None:
    ckpt = checkpoint({"head.quant_table": (16, 6), "other": (4, 4)})
    with pytest.raises(InputError, match=re.escape("Name one with --codebook KEY, perhaps head.quant_table (16, 6)")):
        detect(ckpt)
    (codebook,) = detect(ckpt, codebook="head.quant_table", metric="cosine")
    assert (codebook.num_codes, codebook.dim, codebook.metric, codebook.zero_fill) == ((16,), 6, "cosine", True)
    (turned,) = detect(ckpt, codebook="head.quant_table", layout="DK")
    assert (turned.num_codes, turned.dim) == ((6,), 16)


def test_a_named_codebook_of_several() -> None:
    ckpt = checkpoint({"model/vq_a._codebook.embed": (1, 16, 6), "model/vq_b._codebook.embed": (1, 16, 6)})
    assert len(detect(ckpt)) == 2
    for key in ("model/vq_b._codebook.embed", "vq_b._codebook.embed"):
        (codebook,) = detect(ckpt, codebook=key)
        assert (codebook.label, codebook.family) == ("model/vq_b._codebook.embed", "vector-quantize-pytorch")


def test_the_user_knows_the_metric_better() -> None:
    unit = torch.nn.functional.normalize(torch.randn(1, 16, 6), dim=-1)
    ckpt = MemoryCheckpoint({"_codebook.embed": unit})
    (found,) = detect(ckpt)
    assert (found.metric, found.stored_unit, found.zero_fill) == ("cosine", True, True)
    (said,) = detect(ckpt, metric="euclidean")
    assert (said.metric, said.stored_unit, said.unit_vectors) == ("euclidean", False, False)
    assert not [note for note in said.warnings if "--metric" in note]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "hamming"}, "--metric hamming is not known"),
        ({"metric": "logits"}, "--metric logits is not known"),
        ({"layout": "KD"}, "Name it with --codebook KEY"),
        ({"codebook": "a", "layout": "XY"}, "not a layout"),
        ({"codebook": "a", "layout": "KK"}, "not a layout"),
        ({"codebook": "a", "layout": "KD,H=0"}, "not a layout"),
        ({"codebook": "a", "layout": "(KD)"}, "can share an axis"),
        ({"codebook": "a", "layout": "HKD"}, "names 3 axes, a has shape"),
        ({"codebook": "a", "layout": "(HK)D"}, "must say how many H"),
        ({"codebook": "a", "layout": "(HK)D,H=5"}, "must say how many H"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        detect(checkpoint({"a": (16, 6)}), **options)


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"no tensor quantize\.embed\. Close names: quantize\.embedding\.weight"):
        detect(checkpoint({"quantize.embedding.weight": (16, 6)}), codebook="quantize.embed")


def test_a_key_in_two_sections() -> None:
    ckpt = checkpoint({"a/table": (16, 6), "b/table": (16, 6)})
    with pytest.raises(UsageError, match=r"several sections\. Name one of a/table, b/table"):
        detect(ckpt, codebook="table")


def test_a_table_of_integers_is_refused() -> None:
    ckpt = MemoryCheckpoint({"table": torch.ones(4, 4, dtype=torch.int64)})
    with pytest.raises(InputError, match=r"table is \(4, 4\) int64, not a table of code vectors"):
        detect(ckpt, codebook="table")


def test_names_out_of_files_are_shown_escaped() -> None:
    with pytest.raises(InputError) as caught:
        detect(checkpoint({"quant\x1b[31m": (16, 6), "x": (3, 3)}))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        ({}, None, "FSQ keeps its levels in code"),
        (
            {"vq.project_in.weight": (4, 16), "vq.project_out.weight": (16, 4), "decoder.weight": (3, 16)},
            None,
            "fixed grid",
        ),
        ({"fsq.project_in.weight": (4, 16), "fsq.project_out.weight": (16, 4)}, None, "fixed grid"),
        ({"encoder.conv_in.weight": (8, 3, 3, 3)}, {"_class_name": "AutoencoderVidTok"}, "fixed grid"),
        ({"decoder.weight": (3, 16)}, {"model_type": "xcodec2", "quantization_levels": [4, 4]}, "fixed grid"),
        ({"blocks.output.conv.weight": (64, 8, 1, 1), "blocks.input.weight": (8, 3, 7, 7)}, None, "learned head"),
        ({"blocks.output.conv.w": (64, 8, 1, 1), "blocks.input.w": (8, 3, 7, 7)}, None, "learned head"),
        ({"lm_head.weight": (64, 16), "embed_tokens.weight": (64, 16)}, None, "token tables"),
        ({"codebooks_head.weight": (3, 16, 64)}, None, "token tables"),
        ({"latent_image_embedding.emb.weight": (65, 16)}, None, "token tables"),
        ({"decoder.model.decoder.embed_tokens.0.weight": (65, 16)}, None, "token tables"),
        (
            {"encoder.layers.0.weight": (4, 4), "masked_spec_embed": (16,)},
            {"model_type": "hubert"},
            "encoder without its quantiser",
        ),
        ({"bias": (4,)}, None, "none of its 1 tensors is a table of vectors"),
    ],
)
def test_what_is_said_of_a_file_without_codebook(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        detect(checkpoint(shapes, config))
    assert caught.value.exit_code == 3


def test_bare_arrays(tmp_path: Any) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32))
    np.save(tmp_path / "heads.npy", np.zeros((2, 16, 6)))
    np.savez(tmp_path / "levels.npz", level_10=np.zeros((8, 6)), level_2=np.ones((16, 6)), mean=np.zeros(6))
    np.savez(tmp_path / "several.npz", a=np.zeros((8, 6)), b=np.ones((16, 5)))
    (one,) = detect(open_checkpoint(tmp_path / "one.npy"))
    assert (one.num_codes, one.dim, one.heads) == ((16,), 6, 1)
    with pytest.raises(Undecided, match="--stack residual"):
        detect(open_checkpoint(tmp_path / "heads.npy"))
    (heads,) = detect(open_checkpoint(tmp_path / "heads.npy"), stack="product")
    assert (heads.num_codes, heads.dim, heads.heads) == ((16,), 6, 2)
    (levels,) = detect(open_checkpoint(tmp_path / "levels.npz"), stack="residual")
    assert (levels.keys, levels.num_codes, levels.residual) == ((("level_2",), ("level_10",)), (16, 8), True)
    with pytest.raises(InputError, match="--codebook KEY"):
        detect(open_checkpoint(tmp_path / "several.npz"))


def test_a_config_that_contradicts_the_tensors_is_said_and_not_patched() -> None:
    shapes = {
        "quantize.embedding.weight": (128, 32),
        "quant_conv.weight": (32, 5, 1, 1),
        "quant_conv.bias": (32,),
        "post_quant_conv.weight": (5, 32, 1, 1),
        "post_quant_conv.bias": (5,),
    }
    config = {"_class_name": "VQModel", "num_vq_embeddings": 8192, "vq_embed_dim": 3}
    ckpt = checkpoint(shapes, config)
    (book,) = detect(ckpt)
    said = "config.json says 8192 codes of 3 dimensions, the file holds 128 of 32"
    assert said in book.warnings
    assert emit.supported(ckpt, book)["sliced"] == said
    (agreed,) = detect(checkpoint(shapes, {**config, "num_vq_embeddings": 128, "vq_embed_dim": 32}))
    assert not agreed.warnings


def test_names_and_patterns_of_tables() -> None:
    ckpt = checkpoint({f"net/blocks.{n}.codes_{n}": (16, 6) for n in range(3)})
    pattern = "blocks.*.codes_*"
    with pytest.raises(Undecided, match="--stack residual"):
        detect(ckpt, codebook=pattern)
    (levels,) = detect(ckpt, codebook=pattern, stack="residual")
    assert (levels.levels, levels.heads, levels.residual) == (3, 1, True)
    (heads,) = detect(ckpt, codebook=pattern, stack="product")
    assert (heads.levels, heads.heads, heads.parts(ckpt).tables[0].shape) == (1, 3, (3, 16, 6))
    assert len(detect(ckpt, codebook=pattern, stack="independent")) == 3
    two = detect(ckpt, codebook=("blocks.2.codes_2", "blocks.0.codes_0"))
    assert [one.keys[0][0] for one in two] == ["net/blocks.2.codes_2", "net/blocks.0.codes_0"]
    (stacked,) = detect(ckpt, codebook=("blocks.2.codes_2", "blocks.0.codes_0"), stack="residual")
    assert stacked.levels == 2
    with pytest.raises(InputError, match="has no tensor"):
        detect(ckpt, codebook="layers.*.nothing")


def test_a_second_table_under_one_index_is_refused() -> None:
    ckpt = checkpoint({"quantize.embedding.weight": (16, 6), "quantize.semantic_embedding.weight": (16, 9)})
    with pytest.raises(InputError, match="looked up by one index"):
        detect(ckpt)
    (one,) = detect(ckpt, codebook="quantize.embedding.weight")
    assert one.evidence == "assumed"


def test_levels_of_their_own_token_rate_are_refused() -> None:
    shapes = {}
    for n in range(2):
        stem = f"quantizer.quantizers.{n}."
        shapes |= {
            f"{stem}codebook.weight": (16, 4),
            f"{stem}in_proj.weight": (4, 8, 1),
            f"{stem}out_proj.weight": (8, 4, 1),
        }
    with pytest.raises(InputError, match=r"SNAC's \(vq_strides \[2, 1\]"):
        detect(checkpoint(shapes, {"vq_strides": [2, 1]}))
    (book,) = detect(checkpoint(shapes, {"vq_strides": [1, 1]}))
    assert book.levels == 2


def test_tied_groups_of_vq_wav2vec() -> None:
    stem = "model/vector_quantizer."
    ckpt = checkpoint(
        {f"{stem}embedding": (16, 1, 6), f"{stem}projection.1.weight": (12,), f"{stem}projection.1.bias": (12,)}
    )
    (book,) = detect(ckpt)
    assert (book.heads, book.own_dims_per_head, book.parts(ckpt).tables[0].shape) == (2, False, (2, 16, 6))


def test_settings_that_change_the_lookup_are_refused() -> None:
    shapes = {f"model/layers.{n}.embedding.weight": (16, 6) for n in range(2)}
    shapes |= {"model/encoder.mlp.0.weight": (6, 9), "model/decoder.mlp.0.weight": (9, 6)}
    (book,) = detect(checkpoint(shapes))
    assert (book.family, book.levels) == ("RQ-VAE recommender", 2)
    with pytest.raises(InputError, match=r"model_config\.codebook_normalize"):
        detect(checkpoint(shapes, **{"model_config/codebook_normalize": True}))


def test_products_of_recommenders_obey_the_settings_and_come_at_every_level_or_none() -> None:
    shapes = {f"model/layers.{n}.embedding.weight": (16, 6) for n in range(2)}
    shapes |= {"model/encoder.mlp.0.weight": (6, 9), "model/decoder.mlp.0.weight": (9, 6)}
    both = shapes | {f"model/layers.{n}.out_proj.0.weight": (6, 6) for n in range(2)}
    with pytest.raises(InputError, match=r"vae_codebook_normalize"):
        detect(checkpoint(both, **{"model_config/vae_codebook_normalize": True}))
    with pytest.raises(InputError, match=r"layers\.1\.embedding\.weight has no out_proj\.0"):
        detect(checkpoint(shapes | {"model/layers.0.out_proj.0.weight": (6, 6)}))


def test_residual_k_means_is_read_where_its_file_is_its_own() -> None:
    shapes = {f"centroids.{n}": (16, 6) for n in range(3)}
    (book,) = detect(checkpoint(shapes))
    assert (book.family, book.levels, book.residual, book.evidence) == ("OneRec residual k-means", 3, True, "assumed")
    (book,) = detect(checkpoint(shapes), stack="product")
    assert (book.family, book.levels, book.heads) == ("unknown", 1, 3)
    with pytest.raises(Undecided):
        detect(checkpoint(shapes | {"other.weight": (5, 6)}))
    for spelling in ("layers.{}.centroids", "kmeans_layers.{}.centroids", "codebooks.{}"):
        with pytest.raises(Undecided):
            detect(checkpoint({spelling.format(n): (16, 6) for n in range(3)}))


def test_a_residual_at_unit_length_is_refused_and_asked_where_the_file_is_silent() -> None:
    shapes = {f"state_dict/quantization_layer_list.{n}.centroids": (16, 6) for n in range(3)}
    with pytest.raises(InputError, match="brought to unit length before the lookup"):
        detect(checkpoint(shapes, **{"hyper_parameters/normalize_residuals": True}))
    with pytest.raises(Undecided):
        detect(checkpoint(shapes))
    (book,) = detect(checkpoint(shapes), stack="residual")
    assert any("normalize_residuals is false" in note for note in book.warnings)
    (book,) = detect(checkpoint(shapes, **{"hyper_parameters/normalize_residuals": False}))
    assert (book.levels, book.evidence) == (3, "stated")


def test_tokenflow_is_refused_by_its_own_names() -> None:
    shapes = {"model/quantize.embedding_vqkd.weight": (16, 6), "model/quantize.embedding_vqgan.weight": (16, 4)}
    shapes |= {"model/quantize.codebook_used": (128,), "model/quant_conv.weight": (4, 9, 1, 1)}
    ckpt = checkpoint(shapes | {"model/post_quant_conv.weight": (9, 4, 1, 1)})
    with pytest.raises(
        InputError, match=r"embedding_vqkd\.weight and .*embedding_vqgan\.weight are looked up by one index"
    ):
        detect(ckpt)
    (book,) = detect(ckpt, codebook="quantize.embedding_vqgan.weight")
    assert (book.num_codes, book.dim) == ((16,), 4)


def test_counts_tell_the_axis_of_sonnets_codes() -> None:
    stem = "model/vector_quantizer."
    with pytest.raises(InputError, match="which axis holds the codes"):
        detect(checkpoint({f"{stem}embeddings": (8, 8), f"{stem}ema_dw": (8, 8), f"{stem}ema_cluster_size": (8,)}))
    shapes = {f"{stem}embeddings": (16, 6), f"{stem}ema_dw.hidden": (16, 6), f"{stem}ema_cluster_size.hidden": (16,)}
    (book,) = detect(checkpoint(shapes))  # a port of Haiku to torch, codes first
    assert (book.num_codes, book.dim, book.ema_twins) == ((16,), 6, (f"{stem}ema_dw.hidden",))


def test_larp_without_its_settings_is_assumed_to_look_up_by_cosine() -> None:
    stem = "sd/bottleneck."
    shapes = {f"{stem}regularizer.embedding.weight": (16, 6), f"{stem}in_linear.weight": (6, 9)}
    shapes |= {f"{stem}out_linear.weight": (9, 6), "sd/prior_model.input_proj.weight": (5, 6)}
    (book,) = detect(checkpoint(shapes))
    assert (book.family, book.metric, book.evidence, book.outer_width) == ("LARP", "cosine", "assumed", 9)
    assert "prior_model" in book.refusals["sliced"]
    settings = "model/args/bottleneck/args/regularizer/args"
    (book,) = detect(checkpoint(shapes, **{f"{settings}/l2_normalized": True, f"{settings}/stochastic": False}))
    assert (book.metric, book.evidence, book.warnings) == ("cosine", "stated", ())
    (book,) = detect(checkpoint({**shapes, f"{stem}regularizer.stochastic_temperature_inv": ()}))
    assert (book.metric, book.evidence) == ("cosine", "by structure")


def test_what_the_third_quantiser_of_facodec_reads_is_said() -> None:
    shapes = {}
    for n in range(3):
        stem = f"quantizer.{n}.layers.0."
        shapes |= {
            f"{stem}_codebook.weight": (16, 4),
            f"{stem}in_proj.weight": (4, 8),
            f"{stem}out_proj.weight": (8, 4),
        }
    books = detect(checkpoint(shapes))
    assert [book.evidence for book in books] == ["by structure", "by structure", "assumed"]
    assert any("left of the features" in note for note in books[2].warnings)
