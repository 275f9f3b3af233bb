"""Files whose names look like one thing and are another: lists of quantisers, families without their usual mark, half precision."""

from __future__ import annotations

import pytest
import torch

from memory_checkpoint import MemoryCheckpoint
from toc_cli.io.families import detect, emit


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def quantiser(prefix: str, dim: int, project: int = 0) -> dict[str, torch.Tensor]:
    """A VectorQuantize of 16 codes."""
    state = {f"{prefix}_codebook.embed": torch.randn(1, 16, dim), f"{prefix}_codebook.cluster_size": torch.ones(1, 16)}
    if project:
        state |= {f"{prefix}project_in.weight": torch.randn(dim, project), f"{prefix}project_in.bias": torch.zeros(dim)}
        state |= {
            f"{prefix}project_out.weight": torch.randn(project, dim), f"{prefix}project_out.bias": torch.zeros(project)
        }  # fmt: skip
    return state


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"layers.0.weight": torch.ones(6, 3), **quantiser("layers.2.", 6)}, [(1, None)]),
        ({**quantiser("net.layers.0.", 6), **quantiser("net.layers.2.", 6)}, [(1, None)] * 2),
        ({**quantiser("layers.0.", 6), **quantiser("layers.1.", 4)}, [(1, None)] * 2),
        ({**quantiser("layers.0.", 6, 9), **quantiser("layers.1.", 6, 9)}, [(1, 9)] * 2),
        ({**quantiser("layers.0.", 6), **quantiser("layers.1.", 6)}, [(2, None)]),
        ({**quantiser("rvqs.0.layers.0.", 6), **quantiser("rvqs.2.layers.0.", 6)}, [(1, None)] * 2),
    ],
    ids=["one in a list", "a gap", "unlike widths", "own projections", "a residual stack", "a gap of groups"],
)
def test_a_list_of_layers_is_a_stack_only_if_it_is_one(
    state: dict[str, torch.Tensor], expected: list[tuple[int, int | None]]
) -> None:
    ckpt = MemoryCheckpoint(state)
    books = detect(ckpt, assume=True)
    assert [(book.levels, book.outer_width) for book in books] == expected
    for book in books:
        assert torch.equal(book.parts(ckpt).tables[0], ckpt.get(book.label if book.levels == 1 else book.keys[0][0]))


def test_llamagen_without_its_usage_counter() -> None:
    """`codebook_used` is optional in its configuration; the names of its encoder are not."""
    ckpt = MemoryCheckpoint(
        {
            "model/encoder.conv_blocks.0.res.0.conv1.weight": torch.randn(8, 8, 3, 3),
            "model/quantize.embedding.weight": torch.randn(16, 6),
        }
    )
    (book,) = detect(ckpt, assume=True)
    assert (book.family, book.metric, book.unit_vectors) == ("LlamaGen VQ", "cosine", True)


def test_codes_of_half_precision_files_are_computed_in_full() -> None:
    """A library that loads the file in float32 divides and multiplies in float32."""
    sums, usage = torch.randn(16, 6).bfloat16(), (torch.rand(16) * 5 + 1).bfloat16()
    stem = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook."
    mimi = MemoryCheckpoint({f"{stem}embed_sum": sums, f"{stem}cluster_usage": usage})
    assert torch.equal(detect(mimi)[0].parts(mimi).tables[0][0], sums.float() / usage.float()[:, None])
    frozen, transform = torch.randn(16, 5).half(), torch.randn(6, 5).half()
    simvq = MemoryCheckpoint({"frozen_codebook": frozen, "code_transform.weight": transform})
    torch.testing.assert_close(detect(simvq)[0].parts(simvq).tables[0][0], frozen.float() @ transform.float().T)


def test_unispeech_sat_sizes_two_more_layers_by_its_codevectors() -> None:
    ckpt = MemoryCheckpoint(
        {
            "quantizer.codevectors": torch.randn(1, 32, 6),
            "quantizer.weight_proj.weight": torch.randn(32, 9),
            "project_q.weight": torch.randn(7, 12),
            "project_q.bias": torch.randn(7),
            "speaker_proj.weight": torch.randn(12, 9),
        }
    )
    reasons = emit.supported(ckpt, detect(ckpt, assume=True)[0])
    assert "speaker_proj" in reasons["sliced"]
    assert not reasons["masked"] + reasons["consumer"]


def test_moments_are_told_by_their_names_whatever_the_optimizer_is_called() -> None:
    ckpt = MemoryCheckpoint(
        {
            "model/quantize.embedding.weight": torch.randn(16, 6),
            "model/quant_conv.weight": torch.randn(6, 5, 1, 1),
            "model/post_quant_conv.weight": torch.randn(5, 6, 1, 1),
            "opt_vae/state/0/exp_avg": torch.randn(16, 6),
            "opt_vae/state/0/exp_avg_sq": torch.rand(16, 6),
        }
    )
    (book,) = detect(ckpt, assume=True)
    cut = emit.edits(ckpt, book, "sliced", kept=torch.tensor([[[1, 4]]]), fill=torch.zeros(1, 1, 6)).tensors
    moment = ckpt.get("opt_vae/state/0/exp_avg_sq")
    assert torch.equal(cut["opt_vae/state/0/exp_avg_sq"], moment[:, [1, 4]])


@pytest.mark.parametrize(("dtype", "said"), [(torch.bfloat16, "half precision"), (torch.float32, "")])
def test_rotated_weights_do_not_fit_into_half_precision(dtype: torch.dtype, said: str) -> None:
    ckpt = MemoryCheckpoint({key: tensor.to(dtype) for key, tensor in quantiser("", 6, 9).items()})
    (book,) = detect(ckpt, assume=True)
    reason = emit.supported(ckpt, book, rotated=True)["sliced"]
    assert said in reason
    assert bool(said) == bool(reason)


def test_the_original_mimi_is_a_quotient_too() -> None:
    """kyutai's own files, which Moshi ships: `rvq_first` is the semantic group, `rvq_rest` the acoustic one."""
    state = {}
    for group, levels in (("first", 1), ("rest", 3)):
        root = f"quantizer.rvq_{group}."
        state |= {f"{root}input_proj.weight": torch.randn(6, 9, 1), f"{root}output_proj.weight": torch.randn(9, 6, 1)}
        for level in range(levels):
            stem = f"{root}vq.layers.{level}._codebook."
            state |= {f"{stem}embedding_sum": torch.randn(16, 6), f"{stem}cluster_usage": torch.rand(16) * 5}
            state[f"{stem}_initialized"] = torch.ones(1)
    ckpt = MemoryCheckpoint(state)
    first, rest = detect(ckpt, assume=True)
    assert (first.levels, rest.levels, rest.residual, rest.outer_width) == (1, 3, True, 9)
    stem = "quantizer.rvq_rest.vq.layers.2._codebook."
    expected = state[f"{stem}embedding_sum"] / state[f"{stem}cluster_usage"].clamp(min=1e-5)[:, None]
    assert torch.equal(rest.parts(ckpt).tables[2][0], expected)
    kept = torch.tensor([[[0, 2, 5]]])
    cut = emit.edits(ckpt, rest, "sliced", kept=kept, fill=torch.zeros(3, 1, 6)).tensors
    assert cut[f"{stem}embedding_sum"].shape == (16, 3)
    assert torch.equal(
        cut["quantizer.rvq_rest.input_proj.weight"], state["quantizer.rvq_rest.input_proj.weight"][kept[0, 0]]
    )
    assert "quantizer.rvq_first.input_proj.weight" not in cut
