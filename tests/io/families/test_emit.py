"""The engine of the emit modes against its definition: masked = subspace, sliced = masked, consumer = slice after assign."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from memory_checkpoint import MemoryCheckpoint
from toc_cli.errors import UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families import detect, emit, generic
from toc_cli.io.families.base import Codebook, Parts, Site
from toc_cli.io.families.space import space
from toc_cli.ops.quantiser import Quantiser, quantiser


def quantiser_of(ckpt: Checkpoint, codebook: Codebook) -> Quantiser:
    parts = codebook.parts(ckpt)
    return quantiser(
        parts.tables,
        metric=codebook.metric,
        residual=codebook.residual,
        unit_vectors=codebook.unit_vectors or codebook.stored_unit,
        project_in=parts.project_in,
    )


def output(ckpt: Checkpoint, codebook: Codebook, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (N, L, H), and what comes out of the projection behind the codebook (N, W)."""
    full, out = quantiser_of(ckpt, codebook), codebook.parts(ckpt).project_out
    tokens = full.tokens(x)
    vectors = full.vectors(tokens)
    return tokens, vectors @ out.weight.double().T + out.bias.double() if out and out.bias is not None else vectors


@st.composite
def modules(draw: st.DrawFn) -> tuple[MemoryCheckpoint, torch.Tensor, torch.Tensor, bool]:
    """A checkpoint of one module, kept (1, H, D'), the features it reads, and whether the constant is zero."""
    levels, heads = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (3, 1)]))
    dim, codes, outer = draw(st.integers(2, 7)), draw(st.integers(2, 12)), draw(st.integers(1, 9))
    size = draw(st.integers(1, dim))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {}
    if outer != heads * dim:
        tensors |= {"project_in.weight": random(heads * dim, outer), "project_in.bias": random(heads * dim)}
        tensors |= {"project_out.weight": random(outer, heads * dim), "project_out.bias": random(outer)}
    for level in range(levels):
        stem = f"layers.{level}._codebook." if levels > 1 else "_codebook."
        tensors[stem + "embed"] = random(heads, codes + level, dim) / 2**level
        tensors[stem + "cluster_size"] = random(heads, codes + level).abs()
        tensors[stem + "embed_avg"] = tensors[stem + "embed"] * tensors[stem + "cluster_size"].unsqueeze(-1)
    kept = torch.stack([torch.randperm(dim, generator=generator)[:size].sort().values for _ in range(heads)])[None]
    width = outer if "project_in.weight" in tensors else heads * dim
    return MemoryCheckpoint(tensors), kept, random(40, width), draw(st.booleans())


def constant(ckpt: Checkpoint, codebook: Codebook, zero: bool) -> torch.Tensor:
    fill = torch.zeros(codebook.levels, codebook.heads, codebook.dim, dtype=torch.float64)
    if not zero:
        fill[0] = codebook.parts(ckpt).tables[0].double().mean(1)
    return fill.float().double()


@settings(max_examples=80, deadline=None)
@given(modules())
def test_masked_is_the_subspace_and_sliced_is_masked(
    case: tuple[MemoryCheckpoint, torch.Tensor, torch.Tensor, bool],
) -> None:
    ckpt, kept, x, zero = case
    (codebook,) = detect(ckpt)
    fill = constant(ckpt, codebook, zero or codebook.zero_fill)
    masked = ckpt.edited(emit.edits(ckpt, codebook, "masked", kept=kept, fill=fill))
    found = quantiser_of(ckpt, codebook).pruned(kept, fill).lookup(x)
    sure = ~found.near_tie.flatten(1).any(1)
    edited = replace(codebook, stored_unit=False)
    tokens, vectors = output(masked, edited, x)
    assert torch.equal(tokens[sure], found.tokens[sure])
    if emit.supported(ckpt, codebook, kept.shape[-1])["sliced"]:
        return
    sliced = ckpt.edited(emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill))
    (cut,) = detect(sliced)
    assert cut.dim == kept.shape[-1]
    cut_tokens, cut_vectors = output(sliced, replace(cut, metric=codebook.metric), x)
    assert torch.equal(cut_tokens[sure], found.tokens[sure])
    torch.testing.assert_close(cut_vectors[sure], vectors[sure], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(modules())
def test_consumer_keeps_tokens_and_gives_slice_after_assign(
    case: tuple[MemoryCheckpoint, torch.Tensor, torch.Tensor, bool],
) -> None:
    ckpt, kept, x, zero = case
    (codebook,) = detect(ckpt)
    if emit.supported(ckpt, codebook)["consumer"]:
        return
    fill = constant(ckpt, codebook, zero or codebook.zero_fill)
    after = ckpt.edited(emit.edits(ckpt, codebook, "consumer", kept=kept, fill=fill))
    tokens, vectors = output(after, codebook, x)
    assert torch.equal(tokens, quantiser_of(ckpt, codebook).tokens(x))
    q = quantiser_of(ckpt, codebook).vectors(tokens).reshape(len(x), codebook.heads, codebook.dim)
    held = (
        fill.sum(0)
        .expand_as(q)
        .clone()
        .scatter_(2, kept.expand(len(x), -1, -1), q.gather(2, kept.expand(len(x), -1, -1)))
    )
    out = codebook.parts(ckpt).project_out
    assert out is not None
    assert out.bias is not None
    expected = held.flatten(1) @ out.weight.double().T + out.bias.double()
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)


def turn(seed: int, heads: int, dim: int, size: int) -> torch.Tensor:
    """(1, H, D, D') float64 with orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square)[0][None, ..., :size].contiguous()


@settings(max_examples=60, deadline=None)
@given(modules(), st.integers(0, 10**6))
def test_a_rotation_is_masked_at_full_width_and_read_by_its_consumer(
    case: tuple[MemoryCheckpoint, torch.Tensor, torch.Tensor, bool], seed: int
) -> None:
    """E' = R R^T E + (I - R R^T) c has the shape of E and the tokens of the rotated codebook; W R R^T reads what it would hold."""
    ckpt, kept, x, zero = case
    (codebook,) = detect(ckpt)
    fill = constant(ckpt, codebook, zero or codebook.zero_fill)
    rotation = turn(seed, codebook.heads, codebook.dim, kept.shape[-1])
    offered = emit.supported(ckpt, codebook, kept.shape[-1], rotated=True)
    reference = quantiser_of(ckpt, codebook).rotated(rotation, fill)
    found = reference.lookup(x)
    sure = ~found.near_tie.flatten(1).any(1)
    out = codebook.parts(ckpt).project_out
    assert offered["masked"] == ""
    masked = ckpt.edited(emit.edits(ckpt, codebook, "masked", kept=kept, fill=fill, rotation=rotation))
    tokens, vectors = output(masked, codebook, x)
    assert torch.equal(tokens[sure], found.tokens[sure])
    expected = reference.vectors(found.tokens)
    if out is not None and out.bias is not None:
        expected = expected @ out.weight.double().T + out.bias.double()
    torch.testing.assert_close(vectors[sure], expected[sure], rtol=1e-4, atol=1e-4)
    twins = [key for key in ckpt.infos if key.endswith("embed_avg")]
    for key in twins:  # the moving sums stand for the same codes
        codes, counts = (
            masked.get(key.replace("embed_avg", "embed")),
            ckpt.get(key.replace("embed_avg", "cluster_size")),
        )
        torch.testing.assert_close(masked.get(key), codes * counts.unsqueeze(-1), rtol=1e-4, atol=1e-4)
    if offered["consumer"] or out is None or out.bias is None:
        return
    after = ckpt.edited(emit.edits(ckpt, codebook, "consumer", kept=kept, fill=fill, rotation=rotation))
    tokens, vectors = output(after, codebook, x)
    assert torch.equal(tokens, quantiser_of(ckpt, codebook).tokens(x))
    expected = reference.vectors(tokens) @ out.weight.double().T + out.bias.double()
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)


def test_only_a_euclidean_lookup_bears_a_rotation_at_full_width() -> None:
    ckpt = MemoryCheckpoint({"_codebook.embed": torch.randn(1, 8, 4)})
    (book,) = detect(ckpt)
    for other in (
        replace(book, metric="cosine"),
        replace(book, unit_vectors=True),
        replace(book, stored_fill=lambda c, f: f),
    ):
        assert "Euclidean" in emit.supported(ckpt, other, rotated=True)["masked"]
    half = MemoryCheckpoint({"_codebook.embed": torch.randn(1, 8, 4).bfloat16()})
    (book,) = detect(half)
    assert "half precision" in emit.supported(half, book, rotated=True)["masked"]


LAYOUTS = {
    "KD": (12, 6),
    "DK": (6, 12),
    "1KD": (1, 12, 6),
    "HKD": (3, 12, 6),
    "KHD": (12, 3, 6),
    "HDK": (3, 6, 12),
    "LKD": (2, 12, 6),
    "(HK)D,H=3": (36, 6),
    "1(HK)D,H=3": (1, 36, 6),
    "K(HD),H=3": (12, 18),
    "(LK)D,L=2": (24, 6),
    "KD,H=2": (12, 6),
    "LHKD": (2, 3, 12, 6),
}


@pytest.mark.parametrize(("layout", "shape"), LAYOUTS.items(), ids=LAYOUTS)
def test_every_layout_is_masked_where_it_lies(layout: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ckpt = MemoryCheckpoint({"table": torch.randn(shape)})
    codebook = replace(generic.table(ckpt, "table", layout=layout, metric="euclidean"), granted=True)
    assert (codebook.num_codes[0], codebook.dim) == (12, 6)
    heads = codebook.heads if codebook.own_dims_per_head else 1
    kept = torch.stack([torch.randperm(6)[:3].sort().values for _ in range(heads)]).expand(codebook.heads, 3)[None]
    fill = constant(ckpt, codebook, codebook.zero_fill)
    masked = ckpt.edited(emit.edits(ckpt, codebook, "masked", kept=kept, fill=fill))
    x = torch.randn(50, codebook.heads * codebook.dim)
    pruned = quantiser_of(ckpt, codebook).pruned(kept, fill)
    assert torch.equal(quantiser_of(masked, codebook).tokens(x), pruned.tokens(x))
    before, after = codebook.parts(ckpt).tables[0], codebook.parts(masked).tables[0]
    for head in range(codebook.heads):
        gone = [d for d in range(6) if d not in kept[0, head]]
        assert torch.equal(after[head][:, kept[0, head]], before[head][:, kept[0, head]])
        assert (after[head][:, gone] == fill[0, head, gone].float()).all()
    rotation = turn(1, heads, 6, 3).expand(1, codebook.heads, 6, 3)
    turned = ckpt.edited(emit.edits(ckpt, codebook, "masked", kept=kept, fill=fill, rotation=rotation))
    wanted = quantiser_of(ckpt, codebook).rotated(rotation, fill).lookup(x)
    same = quantiser_of(turned, codebook).tokens(x) == wanted.tokens
    assert (same | wanted.near_tie).all()


@pytest.mark.parametrize("spelling", [weight_norm, old_weight_norm], ids=["original0", "weight_g"])
@pytest.mark.parametrize("mode", ["sliced", "consumer"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_is_cut_through_the_weight(spelling: object, mode: str) -> None:
    """Convolutions of torch itself on both sides: the edited weights, loaded there, give the masked result."""
    torch.manual_seed(0)
    before = spelling(torch.nn.Conv1d(4, 6, 3, padding=1))  # type: ignore[operator]
    after = spelling(torch.nn.Conv1d(6, 5, 3, padding=1, padding_mode="replicate"))  # type: ignore[operator]
    tensors = {f"before.{name}": t for name, t in before.state_dict().items()}
    tensors |= {f"after.{name}": t for name, t in after.state_dict().items()}
    tensors["table"] = torch.randn(9, 6)
    ckpt = MemoryCheckpoint(tensors)
    direction, norm = (
        ("parametrizations.weight.original1", "original0") if spelling is weight_norm else ("weight_v", "weight_g")
    )
    sites = (
        Site("table", 1, "codes", 0),
        Site(f"before.{direction}", 0, "producer", bias="before.bias", norm=norm),  # type: ignore[arg-type]
        Site(f"after.{direction}", 1, "consumer", bias="after.bias", norm=norm),  # type: ignore[arg-type]
    )
    codebook = replace(generic.table(ckpt, "table", metric="euclidean"), sites=sites, refusals={}, granted=True)
    kept, fill = torch.tensor([[[0, 2, 5]]]), torch.randn(1, 1, 6).double()
    edited = emit.edits(ckpt, codebook, mode, kept=kept, fill=fill).tensors  # type: ignore[arg-type]
    x, tokens = torch.randn(2, 4, 8), torch.randint(0, 9, (2, 8))
    held = fill.float()[0, 0].repeat(9, 1)
    held[:, kept[0, 0]] = tensors["table"][:, kept[0, 0]]
    expected = after(held[tokens].transpose(1, 2))
    if mode == "consumer":
        after.load_state_dict(
            {k.removeprefix("after."): edited.get(k, t) for k, t in tensors.items() if k.startswith("after.")}
        )
        torch.testing.assert_close(after(tensors["table"][tokens].transpose(1, 2)), expected)
        return
    small = spelling(torch.nn.Conv1d(4, 3, 3, padding=1))  # type: ignore[operator]
    small.load_state_dict({k.removeprefix("before."): t for k, t in edited.items() if k.startswith("before.")})
    torch.testing.assert_close(small(x), before(x)[:, kept[0, 0]])
    reads = spelling(torch.nn.Conv1d(3, 5, 3, padding=1, padding_mode="replicate"))  # type: ignore[operator]
    reads.load_state_dict({k.removeprefix("after."): t for k, t in edited.items() if k.startswith("after.")})
    torch.testing.assert_close(reads(edited["table"][tokens].transpose(1, 2)), expected)
    basis = turn(1, 1, 6, 3)
    turned = emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill, rotation=basis).tensors
    small.load_state_dict({k.removeprefix("before."): t for k, t in turned.items() if k.startswith("before.")})
    torch.testing.assert_close(small(x), torch.einsum("dk,ndt->nkt", basis[0, 0].float(), before(x)))
    inside = basis[0, 0] @ basis[0, 0].T
    whole = tensors["table"].double() @ inside + fill[0, 0] @ (torch.eye(6, dtype=torch.float64) - inside)
    reads.load_state_dict({k.removeprefix("after."): t for k, t in turned.items() if k.startswith("after.")})
    torch.testing.assert_close(
        reads(turned["table"][tokens].transpose(1, 2)), after(whole.float()[tokens].transpose(1, 2))
    )


def test_a_channel_that_loses_all_its_weight_is_zero_not_nan() -> None:
    weight = torch.zeros(2, 4, 1)
    weight[0] = 1
    weight[1, 3] = 2  # output 1 reads dimension 3 alone
    layer = weight_norm(torch.nn.Conv1d(4, 2, 1))
    layer.weight = weight
    tensors = {"table": torch.randn(5, 4), **layer.state_dict()}
    ckpt = MemoryCheckpoint(tensors)
    key = "parametrizations.weight.original1"
    sites = (Site("table", 1, "codes", 0), Site(key, 1, "consumer", bias="bias", norm="original0"))
    codebook = replace(generic.table(ckpt, "table"), sites=sites, refusals={}, granted=True)
    kept, fill = torch.tensor([[[0, 1]]]), torch.zeros(1, 1, 4).double()
    for mode, width in (("sliced", 2), ("consumer", 4)):
        edited = emit.edits(ckpt, codebook, mode, kept=kept, fill=fill).tensors  # type: ignore[arg-type]
        after = weight_norm(torch.nn.Conv1d(width, 2, 1))
        after.load_state_dict({name: edited.get(name, tensors[name]) for name in layer.state_dict()})
        assert torch.equal(after.weight[1], torch.zeros(width, 1))
        torch.testing.assert_close(after.weight[0, :2], weight[0, :2])


def test_a_transposed_convolution_and_a_concatenation_fold_the_constant() -> None:
    torch.manual_seed(0)
    up, joined = torch.nn.ConvTranspose2d(4, 3, 1), torch.nn.Conv2d(7, 2, 1)
    tensors = {"table": torch.randn(9, 4)}
    tensors |= {f"up.{k}": t for k, t in up.state_dict().items()} | {
        f"joined.{k}": t for k, t in joined.state_dict().items()
    }
    ckpt = MemoryCheckpoint(tensors)
    sites = (
        Site("table", 1, "codes", 0),
        Site("up.weight", 0, "consumer", bias="up.bias"),
        Site("joined.weight", 1, "consumer", offset=3, bias="joined.bias"),
    )
    codebook = replace(generic.table(ckpt, "table"), sites=sites, refusals={}, granted=True)
    kept, fill = torch.tensor([[[1, 3]]]), torch.randn(1, 1, 4).float().double()
    edited = emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill).tensors
    tokens, other = torch.randint(0, 9, (2, 5, 5)), torch.randn(2, 3, 5, 5)
    held = fill.float()[0, 0].repeat(9, 1)
    held[:, [1, 3]] = tensors["table"][:, [1, 3]]
    masked, cut = held[tokens].permute(0, 3, 1, 2), edited["table"][tokens].permute(0, 3, 1, 2)
    small, narrow = torch.nn.ConvTranspose2d(2, 3, 1), torch.nn.Conv2d(5, 2, 1)
    small.load_state_dict({"weight": edited["up.weight"], "bias": edited["up.bias"]})
    narrow.load_state_dict({"weight": edited["joined.weight"], "bias": edited["joined.bias"]})
    torch.testing.assert_close(small(cut), up(masked))
    torch.testing.assert_close(narrow(torch.cat([other, cut], 1)), joined(torch.cat([other, masked], 1)))


def test_a_constant_that_cannot_fold_is_refused() -> None:
    ckpt = MemoryCheckpoint(
        {"table": torch.randn(5, 4), "after.weight": torch.randn(3, 4, 3), "after.bias": torch.zeros(3)}
    )
    kept, fill = torch.tensor([[[0, 1]]]), torch.ones(1, 1, 4).double()
    for site in (
        Site("after.weight", 1, "consumer", bias="after.bias", folds=False),
        Site("after.weight", 1, "consumer"),
    ):
        codebook = replace(
            generic.table(ckpt, "table"), sites=(Site("table", 1, "codes", 0), site), refusals={}, granted=True
        )
        with pytest.raises(UsageError, match=r"does not fold into after\.weight exactly. Use --fill zero"):
            emit.edits(ckpt, codebook, "consumer", kept=kept, fill=fill)
        zero = emit.edits(ckpt, codebook, "consumer", kept=kept, fill=fill * 0).tensors["after.weight"]
        assert not zero[:, 2:].any()
        assert zero[:, :2].all()


def test_a_quotient_codebook_is_masked_through_its_sums() -> None:
    """Mimi keeps sums and counts; the constant comes out of the division, codes that were never used included."""
    counts = torch.tensor([3.0, 0.0, 1.0])
    ckpt = MemoryCheckpoint({"embed_sum": torch.randn(3, 4), "cluster_usage": counts})
    site = Site("embed_sum", 1, "sums", 0, counts="cluster_usage", floor=1e-5)
    codebook = replace(generic.table(ckpt, "embed_sum"), sites=(site,), granted=True)
    fill = torch.full((1, 1, 4), 0.25).double()
    masked = emit.edits(ckpt, codebook, "masked", kept=torch.tensor([[[1]]]), fill=fill).tensors["embed_sum"]
    effective = masked / counts.clamp(min=1e-5)[:, None]
    torch.testing.assert_close(effective[:, [0, 2, 3]], torch.full((3, 3), 0.25))
    assert torch.equal(masked[:, 1], ckpt.get("embed_sum")[:, 1])


def test_two_codebooks_edit_one_layer_one_upon_the_other() -> None:
    torch.manual_seed(0)
    ckpt = MemoryCheckpoint(
        {"a": torch.randn(5, 4), "b": torch.randn(5, 4), "w": torch.randn(2, 8), "bias": torch.zeros(2)}
    )
    books = []
    for name, offset in (("a", 0), ("b", 4)):
        site = Site("w", 1, "consumer", offset=offset, bias="bias")
        books.append(
            replace(generic.table(ckpt, name), sites=(Site(name, 1, "codes", 0), site), refusals={}, granted=True)
        )
    kept, fill = torch.tensor([[[0, 1]]]), torch.ones(1, 1, 4).double()
    first = emit.edits(ckpt, books[0], "consumer", kept=kept, fill=fill)
    both = emit.edits(ckpt, books[1], "consumer", kept=kept, fill=fill, on=first).tensors
    weight = ckpt.get("w")
    assert torch.equal(both["w"].abs() > 0, torch.tensor([True, True, False, False] * 2).expand(2, 8))
    torch.testing.assert_close(both["bias"], weight[:, [2, 3, 6, 7]].sum(1))


def test_codebooks_that_share_a_config_value_must_agree() -> None:
    ckpt = MemoryCheckpoint({"a": torch.randn(5, 4), "b": torch.randn(5, 4)}, config={"codebook_dim": 4})
    books = [
        replace(
            generic.table(ckpt, name),
            granted=True,
            refusals={},
            load_hint=lambda size: f"codebook_dim={size}",
            config_edits=lambda kept: {("codebook_dim",): kept.shape[-1]},
        )
        for name in "ab"
    ]
    fill = torch.zeros(1, 1, 4).double()
    first = emit.edits(ckpt, books[0], "sliced", kept=torch.tensor([[[0, 1]]]), fill=fill)
    assert first.config == {("codebook_dim",): 2}
    with pytest.raises(UsageError, match="codebook_dim = 2 and 3"):
        emit.edits(ckpt, books[1], "sliced", kept=torch.tensor([[[0, 1, 2]]]), fill=fill, on=first)


def test_an_inert_file_offers_the_codebook_alone() -> None:
    ckpt = MemoryCheckpoint({"_codebook.embed": torch.randn(1, 8, 4)})
    ckpt.read_only = "the file also holds foreign objects."
    (codebook,) = detect(ckpt)
    reasons = emit.supported(ckpt, codebook)
    assert reasons["codebook"] == ""
    assert reasons["masked"] == reasons["sliced"] == "the file also holds foreign objects"


def test_shared_storage_stays_shared(tmp_path: Path) -> None:
    table = torch.randn(1, 16, 6)
    twin, size = table * 2, torch.full((1, 16), 2.0)
    names = {"embed": table, "embed_avg": twin, "cluster_size": size}
    torch.save(
        {f"layers.{q}._codebook.{name}": t for q in range(3) for name, t in names.items()}, tmp_path / "shared.pt"
    )
    ckpt = open_checkpoint(tmp_path / "shared.pt")
    (codebook,) = detect(ckpt)
    assert codebook.zero_fill  # one table cannot hold c for level 0 and 0 for the others
    kept, fill = torch.tensor([[[0, 2, 3]]]), torch.zeros(3, 1, 6).double()
    for mode in ("masked", "sliced"):
        ckpt.write(tmp_path / f"{mode}.pt", emit.edits(ckpt, codebook, mode, kept=kept, fill=fill))  # type: ignore[arg-type]
        after = torch.load(tmp_path / f"{mode}.pt", weights_only=True)
        pointers = {after[f"layers.{q}._codebook.embed"].data_ptr() for q in range(3)}
        assert len(pointers) == 1
        assert len({after[f"layers.{q}._codebook.embed_avg"].data_ptr() for q in range(3)}) == 1


def test_shared_storage_with_other_content_is_not_the_same_tensor(tmp_path: Path) -> None:
    """Two views of one storage: what is equal is edited along, what is not stays."""
    storage = torch.randn(3, 8, 4)
    storage[1] = storage[0]
    views = {"_codebook.embed": storage[0:1], "same": storage[1:2], "other": storage[2:3]}
    torch.save(views, tmp_path / "views.pt")
    ckpt = open_checkpoint(tmp_path / "views.pt")
    (codebook,) = detect(ckpt, assume=True)
    assert len({ckpt.infos[key].storage for key in views}) == 1
    found = emit.edits(ckpt, codebook, "masked", kept=torch.tensor([[[0, 2]]]), fill=torch.zeros(1, 1, 4).double())
    assert set(found.tensors) == {"_codebook.embed", "same"}
    assert torch.equal(found.tensors["same"], found.tensors["_codebook.embed"])


@pytest.mark.parametrize("mode", ["masked", "sliced"])
def test_rows_that_are_stored_at_unit_length_are_written_so(mode: str) -> None:
    ckpt = MemoryCheckpoint({"_codebook.embed": torch.nn.functional.normalize(torch.randn(1, 9, 5), dim=-1)})
    (codebook,) = detect(ckpt)
    codebook = replace(codebook, metric="cosine", stored_unit=True, refusals={}, load_hint=str)
    found = emit.edits(ckpt, codebook, mode, kept=torch.tensor([[[1, 3]]]), fill=torch.zeros(1, 1, 5).double())  # type: ignore[arg-type]
    rows = found.tensors["_codebook.embed"]
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(1, 9))
    whole = ckpt.get("_codebook.embed")[..., [1, 3]]
    torch.testing.assert_close(
        rows[..., [1, 3]] if mode == "masked" else rows, torch.nn.functional.normalize(whole, dim=-1)
    )


def test_moments_of_an_optimizer_cannot_be_rotated() -> None:
    state = {"quantize.embedding.weight": torch.randn(16, 6), "quant_conv.weight": torch.randn(6, 5, 1, 1)}
    state |= {"post_quant_conv.weight": torch.randn(5, 6, 1, 1)}
    moments = {f"opt_vae/state/0/{name}": torch.rand(16, 6) for name in ("exp_avg", "exp_avg_sq")}
    ckpt = MemoryCheckpoint({**{f"model/{key}": value for key, value in state.items()}, **moments})
    (book,) = detect(ckpt, assume=True)
    assert emit.supported(ckpt, book)["sliced"] == ""
    assert "cannot be rotated" in emit.supported(ckpt, book, rotated=True)["sliced"]
    plain = MemoryCheckpoint(state)
    (book,) = detect(plain, assume=True)
    assert emit.supported(plain, book, rotated=True)["sliced"] == ""


def test_another_metric_allows_another_constant() -> None:
    """A cosine lookup takes no constant but 0; the same table under distances does."""
    ckpt = MemoryCheckpoint({"quantize.embedding.weight": torch.randn(16, 6)})
    for metric, zero in (("euclidean", False), ("cosine", True)):
        (book,) = detect(ckpt, metric=metric, assume=True)
        assert (book.metric, book.zero_fill) == (metric, zero)


def test_parts_and_sites_of_a_rotation_agree() -> None:
    """E R, R^T W_in, W_out R with the constant off the rotation in the bias: the rotated quantiser, layer by layer."""
    torch.manual_seed(0)
    tensors = {
        "_codebook.embed": torch.randn(2, 12, 5),
        "project_in.weight": torch.randn(10, 7),
        "project_in.bias": torch.randn(10),
    }
    tensors |= {"project_out.weight": torch.randn(7, 10), "project_out.bias": torch.randn(7)}
    ckpt = MemoryCheckpoint(tensors)
    (codebook,) = detect(ckpt)
    rotation = torch.stack([torch.linalg.qr(torch.randn(5, 5).double())[0][:, :3] for _ in range(2)])[None]
    fill = constant(ckpt, codebook, zero=False)
    kept = torch.arange(3).expand(1, 2, 3)
    sliced = ckpt.edited(emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill, rotation=rotation))
    (cut,) = detect(sliced)
    x = torch.randn(60, 7)
    reference = quantiser_of(ckpt, codebook).rotated(rotation, fill)
    tokens, vectors = output(sliced, cut, x)
    assert torch.equal(tokens, reference.tokens(x))
    out = tensors["project_out.weight"].double(), tensors["project_out.bias"].double()
    torch.testing.assert_close(vectors, reference.vectors(tokens) @ out[0].T + out[1], rtol=1e-5, atol=1e-5)


def test_edits_of_nothing_change_nothing() -> None:
    ckpt = MemoryCheckpoint({"_codebook.embed": torch.randn(1, 8, 4)})
    (codebook,) = detect(ckpt)
    kept, fill = torch.arange(4).expand(1, 1, 4), torch.ones(1, 1, 4).double()
    assert emit.edits(ckpt, codebook, "codebook", kept=kept, fill=fill) == Edits()
    for mode in ("masked", "sliced"):
        edited = emit.edits(ckpt, codebook, mode, kept=kept, fill=fill).tensors  # type: ignore[arg-type]
        assert set(edited) == {"_codebook.embed"}
        assert torch.equal(edited["_codebook.embed"], ckpt.get("_codebook.embed"))


def test_parts_never_claim_levels_that_are_no_tables() -> None:
    tensors = {f"layers.{q}._codebook.embed": torch.randn(1, 8, 4) for q in range(2)}
    ckpt = MemoryCheckpoint({**tensors, "mlps.0.proj_in.weight": torch.randn(4, 8)})
    (codebook,) = detect(ckpt)
    parts: Parts = codebook.parts(ckpt)
    assert (codebook.levels, codebook.exact_levels, len(parts.tables)) == (2, 1, 1)


def test_a_level_that_keeps_fewer_has_columns_of_zeros():
    """(L, H, D, D') basis of kept dimensions (-1: none), column by column."""
    (book,) = detect(MemoryCheckpoint({"quantize.embedding.weight": torch.randn(4, 3)}))
    kept = torch.tensor([[[0, 2]], [[1, -1]]])
    found = space(book, kept, torch.full((2, 1, 3), 0.5, dtype=torch.float64))
    expected = torch.tensor([[[[1, 0], [0, 0], [0, 1]]], [[[0, 0], [1, 0], [0, 0]]]], dtype=torch.float64)
    assert torch.equal(found.basis, expected)
    assert torch.equal(found.constant, torch.tensor([[[0, 0.5, 0]], [[0.5, 0, 0.5]]], dtype=torch.float64))
    assert found.sizes == (2, 1)
