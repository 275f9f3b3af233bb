"""What stands beside a model in a training file is cut with it: averaged copies, DDP prefixes, optimizer moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from memory_checkpoint import MemoryCheckpoint
from toc_cli.errors import UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit

KEPT = torch.tensor([[[0, 2, 3]]])
ZERO = torch.zeros(1, 1, 6).double()


class Tokenizer(torch.nn.Module):
    """The layout of taming-transformers around one codebook, small."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
        self.quantize = torch.nn.Module()
        self.quantize.embedding = torch.nn.Embedding(20, dim)
        self.quant_conv = torch.nn.Conv2d(5, dim, 1)
        self.post_quant_conv = torch.nn.Conv2d(dim, 5, 1)
        self.decoder = torch.nn.Conv2d(5, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1)
        codes = self.quantize.embedding.weight
        tokens = torch.cdist(z.flatten(0, 2), codes).argmin(1)
        q = codes[tokens].reshape(z.shape)
        q = z + (q - z).detach() + codes.mean() * 0
        return self.decoder(self.post_quant_conv(q.permute(0, 3, 1, 2))), tokens


def trained(
    path: Path, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW, **options: Any
) -> tuple[Tokenizer, torch.Tensor]:
    torch.manual_seed(0)
    model = Tokenizer(6)
    x = torch.randn(2, 3, 4, 4)
    steps = optimizer(model.parameters(), lr=1e-2, **options)  # type: ignore[call-arg]
    for _ in range(3):
        (model(x)[0] - x).square().mean().backward()
        steps.step()
        steps.zero_grad()
    torch.save({"model": model.state_dict(), "optimizer": steps.state_dict(), "epoch": 3}, path)
    return model, x


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.AdamW, {}), (torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9})],
)
def test_a_sliced_training_file_trains_on(optimizer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    _, x = trained(tmp_path / "run.pt", optimizer, **options)
    ckpt = open_checkpoint(tmp_path / "run.pt")
    (codebook,) = detect(ckpt, assume=True)
    assert emit.supported(ckpt, codebook)["sliced"] == ""
    ckpt.write(tmp_path / "sliced.pt", emit.edits(ckpt, codebook, "sliced", kept=KEPT, fill=ZERO))
    after, before = (torch.load(tmp_path / name, weights_only=True) for name in ("sliced.pt", "run.pt"))
    small = Tokenizer(3)
    small.load_state_dict(after["model"], strict=True)
    steps = optimizer(small.parameters(), lr=1e-2, **options)
    steps.load_state_dict(after["optimizer"])
    number = [name for name, _ in small.named_parameters()].index("quant_conv.weight")
    for slot, moment in before["optimizer"]["state"][number].items():
        if isinstance(moment, torch.Tensor) and moment.dim():
            assert torch.equal(after["optimizer"]["state"][number][slot], moment[KEPT[0, 0]])
    (small(x)[0] - x).square().mean().backward()
    steps.step()
    assert after["epoch"] == 3


def test_masked_and_sliced_of_the_layout_run_alike(tmp_path: Path) -> None:
    model, x = trained(tmp_path / "run.pt")
    ckpt = open_checkpoint(tmp_path / "run.pt")
    (codebook,) = detect(ckpt, assume=True)
    fill = model.quantize.embedding.weight.detach().double().mean(0)[None, None]
    outputs = {}
    for mode, dim in (("masked", 6), ("sliced", 3), ("consumer", 6)):
        ckpt.write(tmp_path / f"{mode}.pt", emit.edits(ckpt, codebook, mode, kept=KEPT, fill=fill))  # type: ignore[arg-type]
        after = Tokenizer(dim)
        after.load_state_dict(torch.load(tmp_path / f"{mode}.pt", weights_only=True)["model"], strict=True)
        outputs[mode] = after.eval()(x)
    torch.testing.assert_close(outputs["sliced"][0], outputs["masked"][0], rtol=1e-5, atol=1e-6)
    assert torch.equal(outputs["sliced"][1], outputs["masked"][1])
    assert torch.equal(outputs["consumer"][1], model(x)[1])
    assert (tmp_path / "sliced.pt").stat().st_size < (tmp_path / "masked.pt").stat().st_size


def test_moments_that_could_be_anothers_are_not_guessed() -> None:
    """Two layers of one shape and one state: nothing says whose it is, so the sliced form refuses."""
    tensors = {
        "model/quantize.embedding.weight": torch.randn(9, 6),
        "model/quant_conv.weight": torch.randn(6, 6, 1, 1),
        "model/post_quant_conv.weight": torch.randn(6, 6, 1, 1),
        "optimizer/state/0/exp_avg": torch.randn(6, 6, 1, 1),
    }
    ckpt = MemoryCheckpoint(tensors)
    (codebook,) = detect(ckpt, assume=True)
    assert (
        "optimizer state in the file may belong to model/quant_conv.weight" in emit.supported(ckpt, codebook)["sliced"]
    )
    assert emit.supported(ckpt, codebook)["masked"] == ""
    with pytest.raises(UsageError, match="nothing says for certain"):
        emit.edits(ckpt, codebook, "sliced", kept=KEPT, fill=ZERO)


def test_moments_under_the_names_of_parameters_are_certain() -> None:
    tensors = {
        "model/quantize.embedding.weight": torch.randn(9, 6),
        "model/quant_conv.weight": torch.randn(6, 6, 1, 1),
        "model/post_quant_conv.weight": torch.randn(6, 6, 1, 1),
        "optimizer/state/quant_conv.weight/exp_avg": torch.randn(6, 6, 1, 1),
    }
    ckpt = MemoryCheckpoint(tensors)
    (codebook,) = detect(ckpt, assume=True)
    edited = emit.edits(ckpt, codebook, "sliced", kept=KEPT, fill=ZERO).tensors
    moment = tensors["optimizer/state/quant_conv.weight/exp_avg"]
    assert torch.equal(edited["optimizer/state/quant_conv.weight/exp_avg"], moment[KEPT[0, 0]])


def test_moments_of_other_layers_stay() -> None:
    tensors = {
        "model/encoder.weight": torch.randn(4, 3),
        "model/quantize.embedding.weight": torch.randn(9, 6),
        "model/quant_conv.weight": torch.randn(6, 5, 1, 1),
        "model/post_quant_conv.weight": torch.randn(5, 6, 1, 1),
        "optimizer/state/0/exp_avg": torch.randn(4, 3),
    }
    ckpt = MemoryCheckpoint(tensors)
    (codebook,) = detect(ckpt, assume=True)
    edited = emit.edits(ckpt, codebook, "sliced", kept=KEPT, fill=ZERO).tensors
    assert not [key for key in edited if key.startswith("optimizer")]


def model(prefix: str, scale: float = 1.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        f"{prefix}quantize.embedding.weight": torch.randn(9, 6) * scale,
        f"{prefix}quant_conv.weight": torch.randn(6, 5, 1, 1) * scale,
        f"{prefix}quant_conv.bias": torch.randn(6) * scale,
        f"{prefix}post_quant_conv.weight": torch.randn(5, 6, 1, 1) * scale,
        f"{prefix}post_quant_conv.bias": torch.randn(5) * scale,
    }


@pytest.mark.parametrize(
    ("primary", "copy"),
    [("ema/", "model/"), ("ema_model.", "online_model."), ("state_dict/ema_model.", "state_dict/model.")],
)
def test_an_average_beside_the_model_is_one_codebook_with_a_copy(primary: str, copy: str) -> None:
    ckpt = MemoryCheckpoint({**model(copy, 2.0), **model(primary)})
    (codebook,) = detect(ckpt, assume=True)
    assert codebook.keys[0][0] == f"{primary}quantize.embedding.weight"
    assert codebook.copies == (copy,)
    for mode in ("masked", "sliced", "consumer"):
        edited = emit.edits(ckpt, codebook, mode, kept=KEPT, fill=ZERO).tensors  # type: ignore[arg-type]
        mine = {key.removeprefix(primary): t for key, t in edited.items() if key.startswith(primary)}
        other = {key.removeprefix(copy): t for key, t in edited.items() if key.startswith(copy)}
        assert set(mine) == set(other)
        assert all(torch.equal(mine[name] * 2, other[name]) for name in mine)


def test_an_average_that_lost_its_dots_is_cut_too() -> None:
    tensors = model("state_dict/")
    flat = {f"state_dict/model_ema.{key.removeprefix('state_dict/').replace('.', '')}": t for key, t in tensors.items()}
    ckpt = MemoryCheckpoint({**tensors, **flat})
    (codebook,) = detect(ckpt, assume=True)
    edited = emit.edits(ckpt, codebook, "sliced", kept=KEPT, fill=ZERO).tensors
    assert edited["state_dict/model_ema.quantizeembeddingweight"].shape == (9, 3)
    assert edited["state_dict/model_ema.quant_convbias"].shape == (3,)
    assert edited["state_dict/model_ema.post_quant_convweight"].shape == (5, 3, 1, 1)


def test_the_other_copy_is_read_where_it_is_named() -> None:
    ckpt = MemoryCheckpoint({**model("model/", 2.0), **model("ema/")})
    key = "model/quantize.embedding.weight"
    (average,) = detect(ckpt)
    assert any("model/ holds another copy" in note for note in average.warnings)
    (book,) = detect(ckpt, codebook=key, assume=True)
    assert (book.keys[0][0], book.copies, book.family) == (key, ("ema/",), average.family)
    edited = emit.edits(ckpt, book, "masked", kept=KEPT, fill=ZERO).tensors
    assert {key, "ema/quantize.embedding.weight"} <= set(edited)


@pytest.mark.parametrize(
    "names", [("blocks.{}.", "blocks.{}."), ("encoder_{}_vq.", "encoder_{}_vq."), ("module.b{}.", "b{}.")]
)
def test_each_of_several_codebooks_has_its_own_average(names: tuple[str, str]) -> None:
    """Names that end alike are no copies: `ema.blocks.0.vq` averages `model.blocks.0.vq` alone."""
    draw = torch.Generator().manual_seed(0)
    keys = [
        f"{root}{name.format(at)}quantize.embedding.weight"
        for root, name in zip(("ema.", "model."), names, strict=True)
        for at in (0, 1)
    ]
    ckpt = MemoryCheckpoint({key: torch.randn(16, 8, generator=draw) for key in keys})
    found = {book.keys[0][0]: book for book in detect(ckpt)}
    assert list(found) == keys[:2]
    for at, book in enumerate(found.values()):
        (copy,) = book.copies
        assert copy + keys[at].removeprefix(book.root) == keys[2 + at]


def test_an_average_of_a_codebook_that_is_not_there_is_no_copy_of_another() -> None:
    tables = {f"{name}.quantize.embedding.weight": torch.randn(16, 8) for name in ("ema.blocks.0", "model.blocks.1")}
    assert [book.copies for book in detect(MemoryCheckpoint(tables))] == [(), ()]


def test_two_models_that_are_no_copies_stay_two() -> None:
    ckpt = MemoryCheckpoint({**model("teacher/"), **model("student/", 2.0)})
    assert [book.copies for book in detect(ckpt, assume=True)] == [(), ()]


def test_a_ddp_prefix_is_part_of_the_names(tmp_path: Path) -> None:
    tensors = {f"module.{name}": t for name, t in model("").items()}
    torch.save({"state_dict": tensors}, tmp_path / "ddp.pt")
    ckpt = open_checkpoint(tmp_path / "ddp.pt")
    (codebook,) = detect(ckpt, assume=True)
    ckpt.write(tmp_path / "sliced.pt", emit.edits(ckpt, codebook, "sliced", kept=KEPT, fill=ZERO))
    after = torch.load(tmp_path / "sliced.pt", weights_only=True)["state_dict"]
    assert list(after) == list(tensors)
    assert after["module.quant_conv.weight"].shape == (3, 5, 1, 1)
