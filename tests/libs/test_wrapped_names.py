"""Levels that were compiled, sharded or checkpointed one by one have a wrapper's name between their number and their tensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli import toc
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.io.families.names import sections

vqp = pytest.importorskip("vector_quantize_pytorch")
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_fsdp_wrapped_module._checkpoint_wrapped_module")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_chain_stays_one(wrapper: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=24, kmeans_init=False).eval()
    for level in module.layers:
        level._codebook.embed.data = torch.randn(1, 24, 8)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(200, 8)
    np.save(tmp_path / "x.npy", x.numpy())

    def wrapped(name: str) -> str:
        return re.sub(r"^(layers\.\d+)\.", rf"\1.{wrapper}.", name)

    save_file({wrapped(name): tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    save_file(state, tmp_path / "plain.safetensors")
    (book,) = detect(open_checkpoint(tmp_path / "wrapped.safetensors"))
    assert book.levels == 3
    for form in ("masked", "sliced"):
        made = {}
        for name in ("wrapped", "plain"):
            done = toc(
                "optimize",
                f"{name}.safetensors",
                "--features",
                "x.npy",
                "--keep",
                "4",
                "--emit",
                form,
                "--force",
                cwd=tmp_path,
            )
            assert done.code == 0, done.err
            made[name] = load_file(tmp_path / f"{name}.{form}.safetensors")
        expected = {wrapped(name): tensor for name, tensor in made["plain"].items()}
        assert made["wrapped"].keys() == expected.keys()
        assert all(torch.equal(made["wrapped"][name], tensor) for name, tensor in expected.items())


def test_a_name_that_stands_both_ways_stays_as_it_is(tmp_path: Path) -> None:
    tables = {f"layers.0.{middle}codebook.weight": torch.randn(24, 8) for middle in ("_orig_mod.", "")}
    for order in (tables, dict(reversed(tables.items()))):
        save_file(order, tmp_path / "both.safetensors")
        (section,) = sections(open_checkpoint(tmp_path / "both.safetensors"))
        assert {name: section.key(name) for name in section} == {name: name for name in tables}
