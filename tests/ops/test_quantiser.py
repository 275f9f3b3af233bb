"""Quantisers against the loop, and the equivalences of toc-math."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from toc_cli.errors import InputError
from toc_cli.ops.quantiser import quantiser
from toc_cli.ops.rotation import pca


class Affine(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor | None = None


class Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float = 1e-5


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tables(seed, levels, heads, codes, dim):
    """One table (H, K_l, D) per level, K growing with the level, finer level by level."""
    return [draw(seed + level, heads, codes + level, dim) / (1 + level) for level in range(levels)]


def some(seed, levels, heads, dim, count):
    rng = np.random.default_rng(seed)
    picks = [[np.sort(rng.permutation(dim)[:count]) for _ in range(heads)] for _ in range(levels)]
    return torch.from_numpy(np.array(picks))


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["euclidean", "cosine", "dot"]), st.integers(0, 10**6), st.data())
def test_tokens_and_vectors_are_the_loop(shape, metric, seed, data):
    levels, heads, codes, dim = shape
    books = tables(seed, levels, heads, codes, dim)
    x = draw(seed + 9, 7, heads * dim)
    count = data.draw(st.integers(1, dim))
    kept = some(seed, levels, heads, dim, count)
    fill = np.zeros((levels, heads, dim)) if metric == "cosine" else draw(seed + 8, levels, heads, dim).double().numpy()
    full = quantiser(books, metric=metric, residual=True)
    loops = [(full, {}), (full.pruned(kept, fill), {"kept": kept.numpy(), "fill": fill})]
    for quant, options in loops:
        tokens = quant.tokens(x)
        vectors = quant.vectors(tokens)
        for n in range(len(x)):
            row = x[n].view(heads, dim).double().numpy()
            expected, vector = reference.quantise(row, [b.double().numpy() for b in books], metric, **options)
            assert tokens[n].tolist() == expected
            np.testing.assert_allclose(vectors[n].view(heads, dim), vector, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["euclidean", "cosine", "dot"]), st.booleans(), st.integers(0, 10**6), st.data())
def test_masked_tokens_are_the_subspace_tokens(shape, metric, unit, seed, data):
    levels, heads, codes, dim = shape
    count = data.draw(st.integers(1, dim))
    kept = some(seed, data.draw(st.sampled_from([1, levels])), heads, dim, count)
    free = metric != "cosine" and not unit
    fill = draw(seed + 8, levels, heads, dim).double().numpy() if free else None
    full = quantiser(
        [b.double() for b in tables(seed, levels, heads, codes, dim)], metric=metric, residual=True, unit_vectors=unit
    )
    x = draw(seed + 9, 50, heads * dim).double()
    pruned, masked = full.pruned(kept, fill), full.masked(kept, fill)
    tokens = pruned.tokens(x)
    assert torch.equal(masked.tokens(x), tokens)
    torch.testing.assert_close(masked.vectors(tokens), pruned.vectors(tokens), rtol=0, atol=1e-12)
    for level, codes_kept in enumerate(pruned.kept_codes(tokens)):
        assert codes_kept.shape == (50, heads, count)
        assert torch.equal(
            codes_kept,
            full.levels[level]
            .codes[torch.arange(heads), tokens[:, level]]
            .gather(-1, kept.expand(levels, -1, -1)[level].expand(50, -1, -1)),
        )


def test_all_dimensions_kept_is_the_full_quantiser():
    full = quantiser(tables(0, 2, 2, 5, 4), residual=True)
    x = draw(3, 40, 8)
    every = torch.arange(4).expand(1, 2, 4)
    assert torch.equal(full.pruned(every).tokens(x), full.tokens(x))
    assert torch.equal(full.rotated(torch.eye(4).double().expand(1, 2, 4, 4)).tokens(x), full.tokens(x))


def test_one_code():
    full = quantiser([draw(0, 1, 1, 3)])
    assert full.lookup(draw(1, 5, 3)).tokens.tolist() == [[[0]]] * 5
    assert full.tokens(torch.empty(0, 3)).shape == (0, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["euclidean", "cosine", "dot"]), st.integers(0, 10**6), st.integers(1, 6))
def test_a_rotated_lookup_is_the_lookup_in_the_components(metric, seed, count):
    book = draw(seed, 1, 9, 6).double()
    turn = torch.from_numpy(pca([book[0]]).leading(count))
    x = draw(seed + 1, 40, 6).double()
    fill = np.zeros((1, 1, 6)) if metric == "cosine" else draw(seed + 2, 1, 1, 6).double().numpy()
    rotated = quantiser([book], metric=metric).rotated(turn[None, None], fill)
    plain = quantiser([(book[0] @ turn)[None]], metric=metric)
    tokens = rotated.tokens(x)
    assert torch.equal(tokens, plain.tokens(x @ turn))
    inside = turn @ turn.T
    constant = torch.from_numpy(fill[0, 0]) - inside @ torch.from_numpy(fill[0, 0])
    torch.testing.assert_close(rotated.vectors(tokens), (book[0] @ inside)[tokens[:, 0, 0]] + constant)


def test_projections_and_norm_stand_before_the_lookup():
    book, x = draw(0, 2, 8, 3).double(), draw(1, 9, 5).double()
    weight, bias = draw(2, 6, 5).double(), draw(3, 6).double()
    scale, shift = draw(4, 6).double(), draw(5, 6).double()
    z = torch.nn.functional.layer_norm(x @ weight.T + bias, (6,), scale, shift, 1e-3)
    found = quantiser([book], project_in=Affine(weight, bias), norm_in=Norm(scale, shift, 1e-3))
    assert found.width == 5
    torch.testing.assert_close(found.target(x), z)
    assert torch.equal(found.tokens(x), quantiser([book]).tokens(z))


def test_levels_with_their_own_projections_leave_their_residual_outside():
    books = [draw(level, 1, 8, 3).double() for level in range(2)]
    inner = [Affine(draw(10 + level, 3, 5).double(), draw(20 + level, 3).double()) for level in range(2)]
    outer = [Affine(draw(30 + level, 5, 3).double(), draw(40 + level, 5).double()) for level in range(2)]
    x = draw(50, 30, 5).double()
    found = quantiser(books, residual=True, level_in=inner, level_out=outer)
    left, tokens, total = x, [], torch.zeros_like(x)
    for book, into, out in zip(books, inner, outer, strict=True):
        z = left @ into.weight.T + into.bias
        tokens.append(torch.cdist(z, book[0]).argmin(1))
        part = book[0][tokens[-1]] @ out.weight.T + out.bias
        left, total = left - part, total + part
    assert torch.equal(found.tokens(x)[:, :, 0], torch.stack(tokens, 1))
    torch.testing.assert_close(found.vectors(found.tokens(x)), total)
    inputs = list(found.inputs(x, found.tokens(x)))
    torch.testing.assert_close(inputs[0], x @ inner[0].weight.T + inner[0].bias)
    assert inputs[1].shape == (30, 3)


def test_logits_choose_the_codes_whatever_is_pruned():
    book = draw(0, 2, 4, 3)
    head = Affine(draw(1, 8, 5), draw(2, 8))
    x = draw(3, 20, 5)
    full = quantiser([book], metric="logits", logits=head)
    expected = (x.double() @ head.weight.double().T + head.bias).view(20, 2, 4).argmax(-1)
    assert torch.equal(full.tokens(x)[:, 0], expected)
    assert full.target(x) is None
    pruned = full.pruned(torch.tensor([[[0, 1], [1, 2]]]))
    assert torch.equal(pruned.tokens(x), full.tokens(x))
    vectors = pruned.vectors(full.tokens(x)).view(20, 2, 3)
    assert not vectors[:, 0, 2].any()
    assert not vectors[:, 1, 0].any()


def test_unit_vectors_are_passed_on_at_unit_length():
    book, x = draw(0, 1, 8, 4), draw(1, 20, 4)
    full = quantiser([book], metric="cosine", unit_vectors=True)
    pruned = full.pruned(torch.tensor([[[0, 2]]]))
    torch.testing.assert_close(full.vectors(full.tokens(x)).norm(dim=1), torch.ones(20).double())
    torch.testing.assert_close(pruned.vectors(pruned.tokens(x)).norm(dim=1), torch.ones(20).double())
    torch.testing.assert_close(full.target(x).norm(dim=1), torch.ones(20).double())


@pytest.mark.parametrize("options", [{"metric": "cosine"}, {"unit_vectors": True}])
def test_a_constant_is_refused_where_it_is_not_exact(options):
    full = quantiser([draw(0, 1, 4, 3)], **options)
    kept = torch.tensor([[[0]]])
    for form in (full.pruned, full.masked):
        with pytest.raises(ValueError, match="no constant but 0"):
            form(kept, np.ones((1, 1, 3)))
    assert not full.mean_fill([np.ones((1, 4))]).any()


def test_the_mean_fill_is_the_usage_weighted_mean_of_the_first_level():
    books = tables(0, 2, 2, 3, 4)
    usage = [np.array([[1, 2, 3], [0, 0, 0]]), np.ones((2, 4))]
    chain = quantiser(books, residual=True).mean_fill(usage)
    weights = torch.tensor([1, 2, 3]).double() / 6
    np.testing.assert_allclose(chain[0, 0], weights @ books[0][0].double())
    np.testing.assert_allclose(chain[0, 1], books[0][1].double().mean(0))
    assert not chain[1].any()
    apart = quantiser(books, residual=False).mean_fill(usage)
    np.testing.assert_allclose(apart[1], books[1].double().mean(1))


def test_a_stored_pruned_quantiser_is_the_pruned_one():
    full = quantiser(tables(0, 2, 1, 6, 4), residual=True)
    kept = torch.tensor([[[0, 3]]])
    fill = full.mean_fill([np.ones((1, 6)), np.ones((1, 7))])
    pruned = full.pruned(kept, fill)
    stored = quantiser([level.codes for level in pruned.levels], residual=True, kept=kept, fill=fill)
    x = draw(7, 60, 4)
    tokens = stored.tokens(x)
    assert torch.equal(tokens, pruned.tokens(x))
    assert torch.equal(stored.vectors(tokens), pruned.vectors(tokens))
    with pytest.raises(ValueError, match="pruned already"):
        pruned.pruned(kept)


def test_near_ties_are_counted():
    full = quantiser([torch.tensor([[[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]]])])
    found = full.lookup(torch.tensor([[1.0, 5.0], [0.1, 0.0]]))
    assert found.tokens[:, 0, 0].tolist() == [0, 0]
    assert found.near_tie[:, 0, 0].tolist() == [True, False]


@pytest.mark.parametrize("x", [torch.zeros(3, 5), torch.zeros(4)])
def test_the_wrong_width_is_an_input_error(x):
    with pytest.raises(InputError, match="rows of 4"):
        quantiser([draw(0, 1, 2, 4)]).tokens(x)


def test_tokens_do_not_depend_on_threads():
    full = quantiser(tables(0, 3, 2, 32, 8), residual=True, project_in=Affine(draw(5, 16, 24), draw(6, 16)))
    x = draw(7, 5000, 24)
    before, seen = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tokens = full.tokens(x)
        seen.add(tokens.numpy().tobytes() + full.vectors(tokens).numpy().tobytes() + full.target(x).numpy().tobytes())
    torch.set_num_threads(before)
    assert len(seen) == 1


def test_a_rotation_that_overflows_half_precision_is_kept_in_float32():
    book = torch.full((1, 2, 4), 6e4, dtype=torch.float16) * torch.tensor([1, -1]).half()[:, None]
    turn = torch.linalg.qr(torch.ones(4, 1).double()).Q[None, None]
    rotated = quantiser([book]).rotated(turn, np.zeros((1, 1, 4)))
    wide = quantiser([book.float()]).rotated(turn, np.zeros((1, 1, 4)))
    assert rotated.levels[0].codes.dtype == torch.float32
    assert torch.equal(rotated.levels[0].codes, wide.levels[0].codes)


def test_what_is_decoded_goes_through_the_projection_out():
    book, out, tokens = draw(0, 1, 5, 3), Affine(draw(1, 7, 3), draw(2, 7)), torch.tensor([[[4]], [[1]]])
    vectors = book[0, [4, 1]].double()
    assert torch.equal(quantiser([book]).decoded(tokens), vectors)
    expected = vectors @ out.weight.double().T + out.bias.double()
    torch.testing.assert_close(quantiser([book], project_out=out).decoded(tokens), expected)


def test_logits_tie_within_a_millionth_and_one_code_never():
    head = Affine(torch.eye(3))
    found = quantiser([draw(0, 1, 3, 2)], metric="logits", logits=head).lookup(
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 0.0], [2.0, 2.0 - 1e-6, 0.0]])
    )
    assert found.tokens.flatten().tolist() == [0, 0, 0]
    assert found.near_tie.flatten().tolist() == [True, False, True]
    alone = quantiser([draw(0, 1, 1, 2)], metric="logits", logits=Affine(torch.ones(1, 3)))
    assert not alone.lookup(torch.ones(2, 3)).near_tie.any()


@pytest.mark.parametrize("shapes", [[], [(4, 3)], [(2, 4, 3), (1, 4, 3)], [(1, 4, 3), (1, 4, 2)]])
def test_tables_that_make_no_quantiser(shapes):
    with pytest.raises(ValueError, match=r"tables must be \(H, K, D\)"):
        quantiser([torch.zeros(shape) for shape in shapes])


def test_one_head_that_overflows_makes_all_of_its_level_float32():
    small, large = torch.ones(2, 4), torch.full((2, 4), 6e4)
    book = torch.stack([small, large]).half()
    turn = torch.full((1, 2, 4, 1), 0.5).double()
    codes = quantiser([book]).rotated(turn, np.zeros((1, 2, 4))).levels[0].codes
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, book.float() @ torch.full((4, 1), 0.5))
