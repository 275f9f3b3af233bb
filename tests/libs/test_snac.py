"""SNAC's files, as its own package makes them: levels that pool their rows are refused, never read as DAC's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect

snac = pytest.importorskip("snac", reason="snac is not installed: pip install --no-deps snac, and einops")

SMALL = {
    "encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2], "attn_window_size": None,
    "codebook_size": 16, "codebook_dim": 4,
}  # fmt: skip


def saved(folder: Path, *, config: bool, **options: object) -> Path:
    """A model's weights, with the config.json that its loader reads, or without."""
    torch.manual_seed(0)
    made = {**SMALL, **options}
    folder.mkdir()
    model = snac.SNAC(**made)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if config:
        (folder / "config.json").write_text(json.dumps(made))
    codes = model.quantizer(torch.randn(1, 16, 8))[1]
    assert [code.shape[-1] for code in codes] == [8 // stride for stride in made["vq_strides"]]
    return folder


@pytest.mark.parametrize(("noise", "depthwise"), [(True, True), (True, False), (False, True)])
def test_strided_levels_are_refused_from_the_weights_alone(tmp_path: Path, noise: bool, depthwise: bool) -> None:
    folder = saved(tmp_path / "m", config=False, vq_strides=[2, 1], noise=noise, depthwise=depthwise)
    what = "noise blocks" if noise else "depthwise convolutions"
    with pytest.raises(InputError, match=rf"is SNAC's \({what} in its decoder\): each level pools") as caught:
        detect(open_checkpoint(folder))
    assert "--codebook KEY takes one table" in caught.value.hint


@pytest.mark.parametrize("strides", [[4, 2, 1], [8, 4, 2, 1]])
def test_strided_levels_are_refused_by_the_config(tmp_path: Path, strides: list[int]) -> None:
    folder = saved(tmp_path / "m", config=True, vq_strides=strides, noise=False, depthwise=False)
    with pytest.raises(InputError, match=r"is SNAC's \(vq_strides \[.*\] in config.json\)"):
        detect(open_checkpoint(folder))


def test_one_level_alone_is_a_table(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", config=True, vq_strides=[2, 1])
    key = "quantizer.quantizers.1.codebook.weight"
    (book,) = detect(open_checkpoint(folder), codebook=key, metric="cosine")
    assert (book.num_codes, book.dim, book.levels) == ((16,), 4, 1)
