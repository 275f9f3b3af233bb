"""Files of vector-quantize-pytorch, cut by us, load in the library itself and run: tokens and outputs are what toc says they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.io.families.base import Codebook
from toc_cli.ops.quantiser import Quantiser, quantiser
from vqp_recipes import RECIPES, Recipe, run, run_file, trained, vqp


@dataclass
class Case:
    name: str
    recipe: Recipe
    model: torch.nn.Module
    x: torch.Tensor
    ckpt: Checkpoint
    codebook: Codebook
    full: Quantiser
    kept: torch.Tensor
    fill: torch.Tensor
    folder: Path

    def write(self, mode: str) -> Path:
        edits = emit.edits(self.ckpt, self.codebook, mode, kept=self.kept, fill=self.fill)  # type: ignore[arg-type]
        target = self.folder / f"{mode}.pt"
        self.ckpt.write(target, edits)
        return target

    def run(
        self, path: Path, options: dict[str, Any] | None = None, x: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (N, W) and tokens (N, L, H) of the library with the weights of a file."""
        return run_file(self.recipe, path, self.codebook, self.x if x is None else x, options)


@pytest.fixture(params=RECIPES, ids=str)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    recipe = RECIPES[request.param]
    model, x = trained(recipe, 300, seed=7)
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    ckpt = open_checkpoint(path)
    (codebook,) = detect(ckpt)
    full = build_quantiser(ckpt, codebook)
    generator = np.random.default_rng(0)
    heads = 1 if recipe.shared_heads else codebook.heads
    kept = np.stack([np.sort(generator.permutation(codebook.dim)[: recipe.size]) for _ in range(heads)])
    kept = np.broadcast_to(kept, (codebook.heads, recipe.size)).copy()[None]
    fill = torch.zeros(codebook.levels, codebook.heads, codebook.dim, dtype=torch.float64)
    if not codebook.zero_fill and codebook.exact_levels is None:
        fill[0] = codebook.parts(ckpt).tables[0].double().mean(1)
    return Case(request.param, recipe, model, x, ckpt, codebook, full, torch.from_numpy(kept), fill, tmp_path)


def build_quantiser(ckpt: Checkpoint, codebook: Codebook) -> Quantiser:
    parts = codebook.parts(ckpt)
    return quantiser(
        parts.tables,
        metric=codebook.metric,
        residual=codebook.residual,
        unit_vectors=codebook.unit_vectors,
        stored_unit=codebook.stored_unit,
        project_in=parts.project_in,
        norm_in=parts.norm_in,
    )


def assert_tokens(found: torch.Tensor, expected: torch.Tensor, near: torch.Tensor) -> None:
    """Equal but where the two nearest codes are as good as equally far in float32."""
    rows = (found != expected).flatten(1).any(1)
    assert not (rows & ~near.flatten(1).any(1)).any()
    assert len(torch.unique(found[:, 0, 0])) > 5


def test_tokens_of_the_full_codebook_are_the_librarys(case: Case) -> None:
    _, tokens = run(case.model, case.x, case.codebook)
    levels = case.codebook.exact_levels or case.codebook.levels
    if "affine_param" in case.recipe.options:
        tokens = case.run(case.folder / "model.pt")[1]
        assert (
            tokens == case.full.tokens(case.x)
        ).float().mean() > 0.97  # the library moves its batch statistics as it looks up
        return
    found = case.full.lookup(case.x)
    assert_tokens(tokens[:, :levels], found.tokens, found.near_tie)


def test_masked_gives_the_tokens_of_the_pruned_codebook(case: Case) -> None:
    if not case.recipe.masked:
        with pytest.raises(UsageError, match="mixes the dimensions"):
            case.write("masked")
        return
    _, tokens = case.run(case.write("masked"))
    if "affine_param" in case.recipe.options:
        assert (tokens == case.full.pruned(case.kept, case.fill).tokens(case.x)).float().mean() > 0.97
        return
    pruned = case.full.pruned(case.kept, case.fill).lookup(case.x)
    assert_tokens(tokens, pruned.tokens, pruned.near_tie)
    assert (tokens != case.full.tokens(case.x)).any()  # pruning did something


def test_sliced_equals_masked(case: Case) -> None:
    if case.recipe.cut is None:
        with pytest.raises(UsageError, match=r"statistics would change|mixes the dimensions"):
            case.write("sliced")
        return
    masked, sliced = case.write("masked"), case.write("sliced")
    vectors, tokens = case.run(masked)
    if case.recipe.build in (vqp.SimVQ, vqp.ResidualSimVQ):  # reads and gives the kept dimensions alone
        keep = case.kept[0, 0]
        cut_vectors, cut_tokens = case.run(sliced, case.recipe.cut, case.x[:, keep])
        vectors = vectors[:, keep]
    else:
        cut_vectors, cut_tokens = case.run(sliced, case.recipe.cut)
    near = case.full.pruned(case.kept, case.fill).lookup(case.x).near_tie
    assert_tokens(cut_tokens, tokens, near)
    same = (cut_tokens == tokens).flatten(1).all(1)
    assert torch.linalg.norm((cut_vectors - vectors)[same]) <= 1e-5 * torch.linalg.norm(vectors[same])
    assert sliced.stat().st_size < masked.stat().st_size or not case.codebook.outer_width


def test_consumer_keeps_every_token_and_reads_the_kept_dimensions_only(case: Case) -> None:
    if not case.recipe.consumer:
        with pytest.raises(UsageError, match=r"the layer that reads|which layer reads"):
            case.write("consumer")
        return
    full_vectors, full_tokens = case.run(case.folder / "model.pt")
    vectors, tokens = case.run(case.write("consumer"))
    assert torch.equal(tokens, full_tokens)
    assert not torch.allclose(vectors, full_vectors, atol=1e-4)
    if case.codebook.exact_levels:
        return
    weight, bias = projection_out(case)
    q = case.full.vectors(tokens).reshape(len(tokens), case.codebook.heads, case.codebook.dim)
    held = case.fill.sum(0).expand_as(q).clone()
    for head in range(case.codebook.heads):
        held[:, head, case.kept[0, head]] = q[:, head, case.kept[0, head]]
    expected = held.flatten(1) @ weight.T + bias
    assert torch.linalg.norm(vectors - expected) <= 1e-5 * torch.linalg.norm(expected)


def projection_out(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    out = case.codebook.parts(case.ckpt).project_out
    assert out is not None
    assert out.bias is not None
    return out.weight.double(), out.bias.double()


def test_running_sums_follow_the_codes(case: Case) -> None:
    if not case.codebook.ema_twins or not case.recipe.masked or case.codebook.stored_fill:
        assert "simvq" in case.name or case.name in ("qinco", "affine")
        return
    masked = torch.load(case.write("masked"), weights_only=True)
    prefix = case.codebook.keys[0][0].removesuffix("embed")
    codes, sums, counts = (masked[prefix + name] for name in ("embed", "embed_avg", "cluster_size"))
    gone = torch.ones(case.codebook.dim, dtype=torch.bool)
    gone[case.kept[0, 0]] = False
    torch.testing.assert_close(sums[0][:, gone], (codes[0] * counts[0, :, None])[:, gone])


def test_a_rotation_folds_into_the_projections(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = vqp.ResidualVQ(dim=32, codebook_size=64, num_quantizers=2, codebook_dim=16)
    x = torch.randn(300, 32)
    torch.save(model.eval().state_dict(), tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    (codebook,) = detect(ckpt)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0][:, :10]
    fill = torch.zeros(2, 1, 16, dtype=torch.float64)
    fill[0] = codebook.parts(ckpt).tables[0].double().mean(1)
    kept = torch.arange(10).expand(1, 1, 10)
    ckpt.write(tmp_path / "sliced.pt", emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill, rotation=rotation))
    cut = vqp.ResidualVQ(dim=32, codebook_size=64, num_quantizers=2, codebook_dim=10)
    cut.load_state_dict(torch.load(tmp_path / "sliced.pt", weights_only=True), strict=True)
    vectors, tokens = run(cut.eval(), x, codebook)
    reference = build_quantiser(ckpt, codebook).rotated(rotation.expand(1, 1, 16, 10), fill)
    found = reference.lookup(x)
    assert_tokens(tokens, found.tokens, found.near_tie)
    parts = codebook.parts(ckpt)
    expected = reference.vectors(tokens) @ parts.project_out.weight.double().T + parts.project_out.bias.double()  # type: ignore[union-attr]
    assert torch.linalg.norm(vectors - expected) <= 1e-5 * torch.linalg.norm(expected)


def test_the_identity_trap_is_refused(tmp_path: Path) -> None:
    """heads x D' = dim: the library builds no projections, and could not load those of the file."""
    options = {"dim": 32, "heads": 4, "codebook_size": 48, "separate_codebook_per_head": True}
    model = vqp.VectorQuantize(**options, codebook_dim=16)
    assert isinstance(vqp.VectorQuantize(**options, codebook_dim=8).project_in, torch.nn.Identity)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    (codebook,) = detect(ckpt)
    kept, fill = torch.arange(8).expand(1, 4, 8), torch.zeros(1, 4, 16, dtype=torch.float64)
    assert "builds no projections" in emit.supported(ckpt, codebook, 8)["sliced"]
    assert not emit.supported(ckpt, codebook, 9)["sliced"]
    with pytest.raises(UsageError, match="4 heads of 8 dimensions make 32"):
        emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill)


def test_random_projections_have_no_sliced_form(tmp_path: Path) -> None:
    model = vqp.RandomProjectionQuantizer(dim=16, codebook_size=32, codebook_dim=16, num_codebooks=2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    (codebook,) = detect(ckpt)
    reasons = emit.supported(ckpt, codebook)
    assert (codebook.metric, codebook.heads, reasons["masked"]) == ("cosine", 2, "")
    assert "no codebook_dim" in reasons["sliced"]
    assert "only the indices" in reasons["consumer"]
    assert any("random by design" in note for note in codebook.warnings)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: vqp.FSQ(levels=[8, 5, 5, 5]), "FSQ keeps its levels in code"),
        (lambda: vqp.FSQ(levels=[8, 5, 5, 5], dim=16), "fixed grid"),
        (
            lambda: torch.nn.ModuleDict({"a": torch.nn.Linear(3, 16), "q": vqp.FSQ(levels=[8, 5, 5], dim=16)}),
            "fixed grid",
        ),
        (lambda: vqp.ResidualFSQ(dim=16, levels=[8, 5, 5, 5], num_quantizers=2), "fixed grid"),
        (lambda: vqp.GroupedResidualFSQ(dim=16, groups=2, levels=[8, 5, 5], num_quantizers=2), "fixed grid"),
        (lambda: vqp.LatentQuantize(levels=[5, 5, 8], dim=16), "fixed grid"),
        (lambda: vqp.LFQ(codebook_size=256), "sign bits"),
        (lambda: vqp.LFQ(codebook_size=256, dim=16), "sign bits"),
        (lambda: vqp.ResidualLFQ(dim=16, codebook_size=256, num_quantizers=2), "sign bits"),
        (lambda: vqp.SimVQ(dim=16, codebook_size=32, codebook_transform=network()), "out of a network"),
    ],
    ids=[
        "fsq",
        "projected",
        "in a model",
        "residual",
        "grouped",
        "latent",
        "lfq",
        "lfq projected",
        "lfq residual",
        "simvq",
    ],
)
def test_codes_that_are_no_tables_are_named(build: Callable[[], torch.nn.Module], said: str, tmp_path: Path) -> None:
    torch.save(build().state_dict(), tmp_path / "model.pt")
    with pytest.raises(Exception, match=said) as caught:
        detect(open_checkpoint(tmp_path / "model.pt"))
    assert caught.value.exit_code == 3  # type: ignore[attr-defined]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))


def test_a_bridged_table_is_listed_and_never_scored(tmp_path: Path) -> None:
    model = vqp.VectorQuantize(dim=16, codebook_size=32, vq_bridge=torch.nn.Linear(16, 16))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    (codebook,) = detect(ckpt)
    assert "vq_bridge" in emit.supported(ckpt, codebook)["masked"]
    with pytest.raises(InputError, match="effective codes are not in the file"):
        codebook.parts(ckpt)


@pytest.mark.parametrize("shared", [True, False])
def test_scales_of_a_hierarchy_offer_the_codebook_alone(shared: bool, tmp_path: Path) -> None:
    model = vqp.HierarchicalVQ(dim=16, codebook_size=32, scales=(1, 2, 4), shared_codebook=shared)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ckpt = open_checkpoint(tmp_path / "model.pt")
    books = detect(ckpt)
    assert len(books) == (1 if shared else 3)
    for book in books:
        assert {mode for mode, reason in emit.supported(ckpt, book).items() if not reason} == {"codebook"}


def test_a_learnable_codebook_is_cut_with_its_moments_and_trains_on(tmp_path: Path) -> None:
    """`embed_avg` has the shape of the learnable table and is no parameter: it takes no moment from it."""
    options = {"dim": 32, "codebook_size": 48, "learnable_codebook": True, "ema_update": False}
    torch.manual_seed(0)
    model = vqp.VectorQuantize(**options, codebook_dim=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(1, 300, 32)

    def step(trained: torch.nn.Module, by: torch.optim.Optimizer) -> None:
        vectors, _, loss = trained(x)
        (vectors.square().mean() + loss.sum()).backward()
        by.step()

    step(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "train.pt")
    ckpt = open_checkpoint(tmp_path / "train.pt")
    (codebook,) = detect(ckpt)
    kept, fill = torch.arange(9)[None, None] + 3, torch.zeros(1, 1, 16, dtype=torch.float64)
    ckpt.write(tmp_path / "cut.pt", emit.edits(ckpt, codebook, "sliced", kept=kept, fill=fill))
    content = torch.load(tmp_path / "cut.pt", weights_only=True)
    cut = vqp.VectorQuantize(**options, codebook_dim=9)
    cut.load_state_dict(content["model"], strict=True)
    again = torch.optim.Adam(cut.parameters(), lr=1e-2)
    again.load_state_dict(content["optimizer"])
    moments = again.state[cut._codebook.embed]["exp_avg"]
    assert torch.equal(moments, optimizer.state[model._codebook.embed]["exp_avg"][..., 3:12])
    before = cut._codebook.embed.detach().clone()
    step(cut, again)
    assert not torch.equal(before, cut._codebook.embed)
