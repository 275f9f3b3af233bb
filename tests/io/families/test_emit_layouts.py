"""Layouts of no installable library, as small torch modules with the names and the forward pass of their repositories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.ops.quantiser import quantiser

CODES, DIM, SIZE = 24, 8, 5


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    return (x.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1) - 2 * x @ codes.T).argmin(1)


class LlamaGen(nn.Module):
    """tokenizer_image/vq_model.py: rows and inputs normalised, the normalised row passed on."""

    width = 6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(6, dim, 1), nn.Conv2d(dim, 6, 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(CODES, dim)
        self.quantize.register_buffer("codebook_used", torch.zeros(65536))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = normalize(self.quant_conv(x[..., None, None]).flatten(1), dim=-1)
        rows = normalize(self.quantize.embedding.weight, dim=-1)
        tokens = nearest(z, rows)
        return tokens[:, None], self.post_quant_conv(rows[tokens][..., None, None]).flatten(1)


class Kakao(nn.Module):
    """rqvae/models/rqvae: a residual of tables with one padding row."""

    width = 6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(6, dim, 1), nn.Conv2d(dim, 6, 1)
        self.quantizer = nn.Module()
        self.quantizer.codebooks = nn.ModuleList(nn.Embedding(CODES + 1, dim, padding_idx=CODES) for _ in range(3))
        for book in self.quantizer.codebooks:
            book.register_buffer("cluster_size_ema", torch.ones(CODES))
            book.register_buffer("embed_ema", book.weight[:-1].detach().clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = self.quant_conv(x[..., None, None]).flatten(1)
        tokens, total = [], torch.zeros_like(residual)
        for book in self.quantizer.codebooks:
            tokens.append(nearest(residual, book.weight[:-1]))
            residual, total = residual - book(tokens[-1]), total + book(tokens[-1])
        return torch.stack(tokens, 1), self.post_quant_conv(total[..., None, None]).flatten(1)


class Recommender(nn.Module):
    """LC-Rec index/models/rqvae.py: an MLP, residual tables, an MLP."""

    width = 12

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.rq = nn.Module(), nn.Module(), nn.Module()
        self.encoder.mlp_layers = nn.Sequential(
            nn.Dropout(), nn.Linear(12, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, dim)
        )
        self.decoder.mlp_layers = nn.Sequential(
            nn.Dropout(), nn.Linear(dim, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 12)
        )
        self.rq.vq_layers = nn.ModuleList(nn.Module() for _ in range(3))
        for layer in self.rq.vq_layers:
            layer.embedding = nn.Embedding(CODES, dim)

    def hidden(self, x: Tensor) -> Tensor:
        return self.encoder.mlp_layers[:4](x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = self.encoder.mlp_layers(x)
        tokens, total = [], torch.zeros_like(residual)
        for layer in self.rq.vq_layers:
            tokens.append(nearest(residual, layer.embedding.weight))
            chosen = layer.embedding(tokens[-1])
            residual, total = residual - chosen, total + chosen
        return torch.stack(tokens, 1), self.decoder.mlp_layers(total)


@pytest.mark.parametrize("build", [LlamaGen, Kakao, Recommender])
def test_forms_of_a_layout_run(build: Callable[[int], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(DIM).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    (codebook,) = detect(ckpt)
    parts = codebook.parts(ckpt)
    fill = torch.zeros(codebook.levels, 1, DIM).double()
    if not codebook.zero_fill:
        fill[0] = parts.tables[0].double().mean(1)
    kept = torch.randperm(DIM)[:SIZE].sort().values[None, None]
    x = 2 * torch.randn(300, model.width)
    results = {}
    for mode, dim in (("masked", DIM), ("sliced", SIZE), ("consumer", DIM)):
        ckpt.write(tmp_path / f"{mode}.pt", emit.edits(ckpt, codebook, mode, kept=kept, fill=fill))  # type: ignore[arg-type]
        after = build(dim)
        after.load_state_dict(torch.load(tmp_path / f"{mode}.pt", weights_only=True)["model"], strict=True)
        results[mode] = after.eval()(x)
    full = quantiser(
        parts.tables,
        metric=codebook.metric,
        residual=codebook.residual,
        unit_vectors=codebook.unit_vectors,
        project_in=parts.project_in,
    )
    features = model.hidden(x) if isinstance(model, Recommender) else x
    assert torch.equal(full.tokens(features.detach())[:, :, 0], model(x)[0])
    assert torch.equal(results["masked"][0], full.pruned(kept, fill).tokens(features.detach())[:, :, 0])
    assert torch.equal(results["sliced"][0], results["masked"][0])
    torch.testing.assert_close(results["sliced"][1], results["masked"][1], rtol=1e-5, atol=1e-5)
    assert torch.equal(results["consumer"][0], model(x)[0])
    assert not torch.allclose(results["consumer"][1], model(x)[1], atol=1e-3)
    assert (results["masked"][0] != model(x)[0]).any()


def test_both_readers_of_the_top_codes_lose_the_dropped_dimensions(tmp_path: Path) -> None:
    """rosinality: a convolution reads along axis 1, a transposed one along axis 0, the bottom codes follow the upsampled top ones."""
    torch.manual_seed(0)
    layers = {
        "quantize_conv_t": nn.Conv2d(7, DIM, 1),
        "quantize_conv_b": nn.Conv2d(9, DIM, 1),
        "dec_t.blocks.0": nn.Conv2d(DIM, 5, 3, padding=1),
        "upsample_t": nn.ConvTranspose2d(DIM, DIM, 4, stride=2, padding=1),
        "dec.blocks.0": nn.Conv2d(2 * DIM, 5, 3, padding=1),
    }
    tensors = {f"{name}.{leaf}": t for name, layer in layers.items() for leaf, t in layer.state_dict().items()}
    for which in "tb":
        tensors[f"quantize_{which}.embed"] = torch.randn(DIM, CODES)
        tensors[f"quantize_{which}.cluster_size"] = torch.rand(CODES)
        tensors[f"quantize_{which}.embed_avg"] = torch.randn(DIM, CODES)
    torch.save(tensors, tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    bottom, top = detect(ckpt)
    assert (top.label, top.num_codes, top.dim, top.outer_width) == ("quantize_t.embed", (CODES,), DIM, 7)
    kept, fill = torch.tensor([[[0, 3, 4]]]), torch.zeros(1, 1, DIM).double()
    both = emit.edits(ckpt, bottom, "consumer", kept=kept, fill=fill)
    both = emit.edits(ckpt, top, "consumer", kept=kept, fill=fill, on=both)
    ckpt.write(tmp_path / "consumer.pt", both)
    after = torch.load(tmp_path / "consumer.pt", weights_only=True)
    held = torch.zeros(DIM, 1, 1)
    held[[0, 3, 4]] = 1
    q_t, q_b, up = torch.randn(1, DIM, 4, 4), torch.randn(1, DIM, 8, 8), torch.randn(1, DIM, 8, 8)
    for name, read, cut in (
        ("dec_t.blocks.0", q_t, q_t * held),
        ("upsample_t", q_t, q_t * held),
        ("dec.blocks.0", torch.cat([up, q_b], 1), torch.cat([up, q_b * held], 1)),
    ):
        expected = layers[name](cut)
        layers[name].load_state_dict({leaf: after[f"{name}.{leaf}"] for leaf in ("weight", "bias")})
        torch.testing.assert_close(layers[name](read), expected)
    masked = emit.edits(ckpt, top, "masked", kept=kept, fill=fill).tensors
    assert not masked["quantize_t.embed"][[1, 2, 5, 6, 7]].any()
    assert torch.equal(masked["quantize_t.embed"][[0, 3, 4]], tensors["quantize_t.embed"][[0, 3, 4]])
