"""`--lean`: what training needed alone stays out of the edited copies, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli import make_features, toc

MODEL = {
    "quantize.embedding.weight": (64, 24), "quant_conv.weight": (24, 24, 1, 1), "quant_conv.bias": (24,),
    "post_quant_conv.weight": (24, 24, 1, 1), "post_quant_conv.bias": (24,), "decoder.conv.weight": (4, 24),
    "loss.discriminator.main.0.weight": (16, 16), "loss.perceptual_loss.lin0.weight": (8, 8), "lossless.weight": (3,),
}  # fmt: skip
LEFT = {name for name in MODEL if not name.startswith("loss.")}


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in MODEL.items()}


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors(tmp_path: Path, sharded: bool) -> None:
    make_features(tmp_path / "feats.h5")
    name = "m.safetensors"
    if sharded:
        name = "model.safetensors.index.json"
        halves = {"a.safetensors": list(MODEL)[:4], "b.safetensors": list(MODEL)[4:]}
        for part, keys in halves.items():
            save_file({key: model()[key] for key in keys}, tmp_path / part)
        total = sum(tensor.nbytes for tensor in model().values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {key: part for part, keys in halves.items() for key in keys},
        }
        (tmp_path / name).write_text(json.dumps(index))
    else:
        save_file(model(), tmp_path / name)
    flags = (
        "--features",
        "feats.h5",
        "--emit",
        "masked",
        "--emit",
        "consumer",
        "--lean",
        "--assume",
        "--space",
        "encoder",
    )
    dry = toc("optimize", name, *flags, "--dry-run", cwd=tmp_path)
    assert "--lean leaves out (tensors): losses 1,280 bytes (2)." in dry.err
    assert toc("optimize", name, *flags, cwd=tmp_path).code == 0
    for form in ("masked", "consumer"):
        paths = (
            [tmp_path / f"model.{form}" / part for part in halves] if sharded else [tmp_path / f"m.{form}.safetensors"]
        )
        found = {key for path in paths for key in load_file(path)}
        assert found == LEFT
        if sharded:
            written = json.loads((tmp_path / f"model.{form}" / name).read_text())
            assert set(written["weight_map"]) == LEFT
            assert written["metadata"]["total_size"] == total - 1280


def test_a_training_file_of_torch(tmp_path: Path) -> None:
    make_features(tmp_path / "feats.h5")
    weights = model()
    optimizer = {
        "state": {
            i: {"exp_avg": torch.zeros_like(t), "step": torch.tensor(3.0)} for i, t in enumerate(weights.values())
        },
        "param_groups": [{"lr": 1e-3, "params": list(range(len(weights)))}],
    }
    torch.save({"epoch": 3, "state_dict": weights, "optimizer_states": [optimizer]}, tmp_path / "m.ckpt")
    flags = (
        "--features",
        "feats.h5",
        "--emit",
        "masked",
        "--emit",
        "sliced",
        "--lean",
        "--assume",
        "--space",
        "encoder",
    )
    done = toc("optimize", "m.ckpt", *flags, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "optimizer" in done.err
    for form in ("masked", "sliced"):
        found = torch.load(tmp_path / f"m.{form}.ckpt")
        assert set(found) == {"epoch", "state_dict"}
        assert set(found["state_dict"]) == LEFT
        assert found["epoch"] == 3
    assert torch.load(tmp_path / "m.sliced.ckpt")["state_dict"]["quantize.embedding.weight"].shape == (64, 12)


def test_what_has_nothing_to_leave_out_is_refused(tmp_path: Path) -> None:
    make_features(tmp_path / "feats.h5")
    save_file(model(), tmp_path / "m.safetensors")
    done = toc("optimize", "m.safetensors", "--features", "feats.h5", "--lean", "--space", "encoder", cwd=tmp_path)
    assert done.code == 2
    assert "--lean has nothing to leave out" in done.err
