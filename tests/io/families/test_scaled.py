"""Tables stored as small numbers with a scale beside them: multiplied out, or asked about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cli import toc
from memory_checkpoint import MemoryCheckpoint
from toc_cli.errors import InputError
from toc_cli.io.families import detect
from toc_cli.io.families.scaled import multiplied

NAME = "quantize.embedding.weight"


def codes(seed: int = 0, count: int = 24, dim: int = 8) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def quantised(table: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scale = table.abs().max() / (448 if dtype.is_floating_point else 127)
    small = (table / scale).to(dtype) if dtype.is_floating_point else (table / scale).round().to(dtype)
    return small, scale


def read(tensors: dict[str, torch.Tensor], **said: str) -> torch.Tensor:
    ckpt = MemoryCheckpoint(tensors)
    (book,) = detect(ckpt, **said)
    return book.parts(ckpt).tables[0][0]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("spelling", ["weight_scale", "scale_weight", "weight_scale_inv", "weight.scale", "scale"])
def test_every_spelling_of_the_scale_is_applied(dtype: torch.dtype, spelling: str) -> None:
    small, scale = quantised(codes(), dtype)
    found = read({NAME: small, f"quantize.embedding.{spelling}": scale.reshape(())})
    assert torch.equal(found, small.float() * scale)


def test_bitsandbytes_rows_are_divided_by_127() -> None:
    most = codes().abs().amax(1)
    small = (codes() / most[:, None] * 127).round().to(torch.int8)
    found = read({NAME: small, "quantize.embedding.SCB": most})
    torch.testing.assert_close(found, codes(), atol=float(most.max()) / 250, rtol=0)


def test_a_zero_point_is_taken_off_first() -> None:
    small = torch.arange(192, dtype=torch.uint8).reshape(24, 8)
    tensors = {NAME: small, "quantize.embedding.weight_scale": torch.tensor(0.5)}
    with pytest.raises(InputError, match="no zero point"):
        read(tensors)
    found = read({**tensors, "quantize.embedding.weight_zero_point": torch.tensor(100, dtype=torch.uint8)})
    assert torch.equal(found, (small.float() - 100) / 2)


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4, 16]), st.sampled_from([2, 5, 16]), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_block_scales_are_those_of_the_double_loop(rows: int, columns: int, high: int, wide: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    stored = torch.randn(rows, columns, generator=drawn)
    scale = torch.randn(-(-rows // high), -(-columns // wide), generator=drawn)
    found = multiplied(stored, scale, (high, wide))
    for row in range(rows):
        for column in range(columns):
            assert found[row, column] == stored[row, column] * scale[row // high, column // wide]


def test_a_block_that_could_have_two_lengths_is_refused_unless_the_config_says() -> None:
    small = torch.ones(300, 8).to(torch.float8_e4m3fn)
    tensors = {NAME: small, "quantize.embedding.weight_scale_inv": torch.tensor([[1.0], [2.0], [3.0]])}
    with pytest.raises(InputError, match=r"float8_e4m3fn .* does not fit"):
        read(tensors)
    ckpt = MemoryCheckpoint(tensors, {"quantization_config": {"weight_block_size": [128, 128]}})
    (book,) = detect(ckpt)
    assert book.parts(ckpt).tables[0][0][:, 0].tolist() == [1.0] * 128 + [2.0] * 128 + [3.0] * 44


def test_one_scale_for_rows_or_columns_of_a_square_table_is_refused() -> None:
    small = torch.ones(8, 8).to(torch.float8_e4m3fn)
    with pytest.raises(InputError, match="rows or columns"):
        read({NAME: small, "quantize.embedding.weight_scale": torch.ones(8)})


def test_two_scales_are_asked_about_and_one_is_named() -> None:
    small, scale = quantised(codes(), torch.float8_e4m3fn)
    tensors = {
        NAME: small,
        "quantize.embedding.weight_scale": scale.reshape(()),
        "quantize.embedding.scale_weight": scale.reshape(()) * 2,
    }
    with pytest.raises(InputError, match="both stand beside"):
        read(tensors)
    assert torch.equal(read(tensors, scale="scale_weight"), small.float() * scale * 2)
    assert torch.equal(read(tensors, scale="none").float(), small.float())


def test_a_scale_of_another_name_is_taken_when_it_is_said() -> None:
    small, scale = quantised(codes(), torch.float8_e4m3fn)
    tensors = {NAME: small, "quantize.embedding.amax": scale.reshape(())}
    assert torch.equal(read(tensors, scale="amax"), small.float() * scale)
    with pytest.raises(InputError, match="no tensors"):
        read(tensors, scale="nothing")


def test_a_table_of_full_precision_beside_a_scale_is_asked_about() -> None:
    tensors = {NAME: codes(), "quantize.embedding.weight_scale": torch.tensor(3.0)}
    with pytest.raises(InputError, match="does not say whether the table is still to be multiplied") as caught:
        read(tensors)
    assert "--scale none" in caught.value.hint
    assert torch.equal(read(tensors, scale="none"), codes())
    assert torch.equal(read(tensors, scale="weight_scale"), codes() * 3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_masked_copies_of_a_scaled_table_give_the_pruned_tokens(tmp_path: Path, dtype: torch.dtype) -> None:
    table = codes(count=32)
    small, scale = quantised(table, dtype)
    save_file({NAME: small, "quantize.embedding.weight_scale": scale.reshape(())}, tmp_path / "model.safetensors")
    drawn = torch.Generator().manual_seed(1)
    x = table[torch.randint(0, 32, (400,), generator=drawn)] + 0.3 * torch.randn(400, 8, generator=drawn)
    np.save(tmp_path / "x.npy", x.numpy())
    done = toc(
        "optimize", "model.safetensors", "--features", "x.npy", "--emit", "masked", "--emit", "codebook", "--assume", cwd=tmp_path
    )  # fmt: skip
    assert done.code == 0, done.err
    masked = load_file(tmp_path / "model.masked.safetensors")[NAME]
    kept = load_file(tmp_path / "model.toc.safetensors")["0.kept"][0, 0]
    effective = masked.float() * scale
    expected = torch.cdist(x[:, kept].double(), (small.float() * scale)[:, kept].double()).argmin(1)
    assert masked.dtype == dtype
    assert torch.equal(torch.cdist(x.double(), effective.double()).argmin(1), expected)
