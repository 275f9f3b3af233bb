"""Every published layout is read as its own formula computes it, at full width and masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memory_checkpoint import MemoryCheckpoint
from published_layouts import PUBLISHED, D, K, Published, W, a, factorized, layer, normed
from toc_cli.io.families import detect, emit
from toc_cli.io.families.base import Codebook
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.source import whole

ROWS = 60


def opened(layout: Published) -> MemoryCheckpoint:
    ckpt = MemoryCheckpoint(layout.tensors(), layout.config, **layout.values)
    ckpt.container = layout.container
    return ckpt


def read(layout: Published) -> tuple[MemoryCheckpoint, Codebook, Quantiser]:
    ckpt = opened(layout)
    (book,) = detect(ckpt, **layout.options)
    return ckpt, book, whole(book, book.parts(ckpt))


def features(layout: Published) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, layout.width))


def flat(tokens: torch.Tensor) -> np.ndarray:
    return tokens.flatten(1).numpy()


@pytest.fixture(params=PUBLISHED, ids=lambda layout: layout.name)
def layout(request: pytest.FixtureRequest) -> Published:
    return request.param


def test_tokens_are_those_of_the_formula(layout: Published) -> None:
    _, book, full = read(layout)
    assert book.family == layout.family
    x = features(layout)
    np.testing.assert_array_equal(flat(full.tokens(x)), layout.formula(layout.tensors(), x))


def test_the_masked_file_gives_the_pruned_tokens(layout: Published) -> None:
    ckpt, book, full = read(layout)
    reason = emit.supported(ckpt, book)["masked"]
    assert not reason, reason
    levels, heads = (book.levels if book.own_dims_per_level else 1), book.heads
    own = heads if book.own_dims_per_head else 1
    generator = torch.Generator().manual_seed(2)
    kept = torch.stack(
        [torch.stack([torch.randperm(book.dim, generator=generator)[: book.dim // 2].sort().values for _ in range(own)])
         for _ in range(levels)]
    ).expand(levels, heads, -1)  # fmt: skip
    shape = (book.levels, heads, book.dim)
    alone = not book.residual or book.own_dims_per_level
    fill = torch.zeros(shape).double() if book.zero_fill or not alone else torch.full(shape, 0.3).double()
    x = features(layout)
    masked = ckpt.edited(emit.edits(ckpt, book, "masked", kept=kept, fill=fill))
    pruned = full.pruned(kept, fill.numpy())
    np.testing.assert_array_equal(layout.formula(masked.tensors, x), flat(pruned.tokens(x)))


def test_running_averages_are_masked_along(layout: Published) -> None:
    """One more step of the running mean must not bring a dropped dimension back: sums over counts are the constant."""
    ckpt, book, _ = read(layout)
    twins = [site for site in book.sites if site.role == "sums"]
    assert {site.key for site in twins} == set(book.ema_twins)
    kept = torch.arange(book.dim // 2).expand(book.levels if book.own_dims_per_level else 1, book.heads, -1)
    fill = torch.zeros(book.levels, book.heads, book.dim).double()
    masked = ckpt.edited(emit.edits(ckpt, book, "masked", kept=kept, fill=fill))
    for site in twins:
        dropped = masked.tensors[site.key].movedim(site.axis, -1)[..., book.dim // 2 :]
        assert not dropped.any()
        assert ckpt.tensors[site.key].any()


def test_every_sum_in_the_file_is_found(layout: Published) -> None:
    _, book, _ = read(layout)
    sums = (
        "embed_avg",
        "code_sum",
        "codes_avg",
        "z_avg",
        "_ema_w",
        "ema_positions",
        "ema_dw",
        "ema_dw/hidden",
        "ema_dw/average",
    )
    assert {key for key in layout.shapes if key.endswith(sums)} == set(book.ema_twins)


def test_the_three_quantisers_of_facodec() -> None:
    """Prosody and content read the same features, the third what both left of them."""
    stems = [[f"net/quantizer.{group}.layers.{n}." for n in range(levels)] for group, levels in enumerate((1, 2, 3))]
    shapes = {
        key: shape
        for own in stems
        for stem in own
        for key, shape in {
            f"{stem}_codebook.weight": (K, D), **normed(f"{stem}in_proj", D, W), **normed(f"{stem}out_proj", W, D)
        }.items()
    }  # fmt: skip
    formulas = [factorized(own, "_codebook.weight", "in_proj", "out_proj") for own in stems]
    file = Published("FACodec", shapes, W, formulas[0], "factorized VQ (BigCodec, FACodec)")
    tensors, x = file.tensors(), features(file)

    def put_out(group: int) -> np.ndarray:
        tokens = formulas[group](tensors, x)
        return sum(
            layer(tensors, f"{stem}out_proj", a(tensors, f"{stem}_codebook.weight")[tokens[:, n]])
            for n, stem in enumerate(stems[group])
        )

    ckpt = opened(file)
    given = [x, x, x - put_out(0) - put_out(1)]
    for book, formula, rows in zip(detect(ckpt), formulas, given, strict=True):
        assert book.family == file.family
        np.testing.assert_array_equal(flat(whole(book, book.parts(ckpt)).tokens(rows)), formula(tensors, rows))
