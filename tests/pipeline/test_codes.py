"""Fewer codes in every form that allows it: the tokens are the mapped ones wherever the chosen code survived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import library_models as models
from cli import make_features, toc
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect
from toc_cli.libraries import run
from toc_cli.pipeline.source import sources

ROWS = 600
FORMS = ("--emit", "masked", "--emit", "sliced")


def alive_only(codes: torch.Tensor, step: int = 3) -> torch.Tensor:
    """Features near the codes (K, D) whose id is not `step` - 1 modulo `step`: the others are dead."""
    generator = torch.Generator().manual_seed(3)
    alive = torch.tensor([id for id in range(len(codes)) if id % step != step - 1])
    chosen = torch.cat([alive, alive[torch.randint(0, len(alive), (ROWS - len(alive),), generator=generator)]])
    return codes[chosen] + 0.02 * torch.randn(ROWS, codes.shape[1], generator=generator)


def optimize(here: Path, model: str, *flags: str) -> dict[str, Any]:
    done = toc(
        "optimize",
        model,
        "--features",
        "feats.h5",
        "--keep",
        "1.0",
        "-o",
        "m.toc.safetensors",
        "--assume",
        *flags,
        cwd=here,
    )
    assert done.code == 0, done.err
    return json.loads((here / "m.toc.json").read_text())["codebooks"][0]


def expected(here: Path, old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The new ids of old tokens (N, L, H), and the old ids that stand for them."""
    tensors = load_file(here / "m.toc.safetensors")
    heads = torch.arange(old.shape[2])
    new = torch.stack([level[heads, old[:, at]] for at, level in enumerate(tensors["0.code_map"])], 1)
    ids = torch.stack([level[heads, new[:, at]] for at, level in enumerate(tensors["0.code_ids"])], 1)
    return new, ids


def tokens_of(path: Path, x: torch.Tensor) -> torch.Tensor:
    ckpt = open_checkpoint(path)
    return sources(ckpt, detect(ckpt, assume=True))[0].full.tokens(x)


def test_a_table_of_k_means(tmp_path: Path) -> None:
    codes = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.numpy())
    x = alive_only(codes)
    make_features(tmp_path / "feats.h5", x=x.numpy())
    entry = optimize(tmp_path, "km.npy", "--codes", "used", *FORMS)
    assert entry["codes"]["before"] == [48]
    assert (entry["codes"]["after"], entry["codes"]["dropped"], entry["codes"]["merged"]) == ([32], 16, 0)
    assert (entry["codes"]["mapped_share"], entry["codes"]["changed_share"]) == (1, 0)
    assert abs(entry["codes"]["excess_distortion"]) < 1e-12
    new, ids = expected(tmp_path, tokens_of(tmp_path / "km.npy", x))
    sliced = np.load(tmp_path / "m.sliced.npy")
    assert np.array_equal(sliced, codes.numpy()[[id for id in range(48) if id % 3 != 2]])
    assert torch.equal(tokens_of(tmp_path / "m.sliced.npy", x), new)
    assert torch.equal(tokens_of(tmp_path / "m.masked.npy", x), ids)


def test_old_tokens_are_rewritten_as_quantising_anew_gives_them(tmp_path: Path) -> None:
    codes = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.numpy())
    make_features(tmp_path / "feats.h5", x=alive_only(codes).numpy(), label=np.arange(ROWS))
    entry = optimize(tmp_path, "km.npy", "--codes", "used")
    for book, name in (("km.npy", "old.h5"), ("m.toc.safetensors", "new.h5")):
        assert toc("quantize", "feats.h5", "--codebook", book, "-o", name, cwd=tmp_path).code == 0
    done = toc("remap", "old.h5", "--codebook", "m.toc.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "old.remapped.h5") as mapped:
        assert np.array_equal(new["x"], mapped["x"])
        assert np.array_equal(mapped["label"], np.arange(ROWS))
        assert mapped.attrs["toc.codebook_sha256"] == new.attrs["toc.codebook_sha256"]
    assert toc("decode", "old.remapped.h5", "--codebook", "m.toc.safetensors", cwd=tmp_path).code == 0
    assert entry["codes"]["after"] == [32]
    again = toc("remap", "new.h5", "--codebook", "m.toc.safetensors", cwd=tmp_path)
    assert again.code == 3
    assert "chosen by another codebook" in again.err
    for tokens, sentence in (([0, 48], "token 48 is no code"), ([0, 2], "a code that has vanished")):
        np.save(tmp_path / "t.npy", np.array(tokens))
        done = toc("remap", "t.npy", "--codebook", "m.toc.safetensors", cwd=tmp_path)
        assert done.code == 3
        assert sentence in done.err


def test_merged_codes_say_how_many_tokens_change_meaning(tmp_path: Path) -> None:
    codes = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    codes[10] = codes[7] + 0.01
    np.save(tmp_path / "km.npy", codes.numpy())
    x = alive_only(codes)
    make_features(tmp_path / "feats.h5", x=x.numpy())
    entry = optimize(tmp_path, "km.npy", "--codes", "31", *FORMS)
    old = tokens_of(tmp_path / "km.npy", x)
    pair = ((old == 7) | (old == 10)).double().mean()
    assert entry["codes"]["merged"] == 2
    assert entry["codes"]["changed_share"] == pytest.approx(float(pair))
    usage = torch.bincount(old.flatten(), minlength=48).double()
    mean = (usage[7] * codes[7].double() + usage[10] * codes[10].double()) / (usage[7] + usage[10])
    new, ids = expected(tmp_path, old)
    sliced = torch.from_numpy(np.load(tmp_path / "m.sliced.npy"))
    assert torch.allclose(sliced[new.flatten()[(old == 7).flatten()][0]], mean.float())
    assert torch.equal(tokens_of(tmp_path / "m.masked.npy", x), ids)


def test_codes_then_dimensions_in_one_run(tmp_path: Path) -> None:
    codes = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.numpy())
    x = alive_only(codes)
    make_features(tmp_path / "feats.h5", x=x.numpy())
    entry = optimize(tmp_path, "km.npy", "--codes", "used", "--keep", "0.5", "--emit", "masked")
    assert (entry["num_codes"], entry["kept_dim"]) == ([32], 4)
    tensors = load_file(tmp_path / "m.toc.safetensors")
    assert tensors["0.codebook"].shape == (1, 1, 32, 4)
    pruned = tokens_of(tmp_path / "m.toc.safetensors", x)
    assert torch.equal(tokens_of(tmp_path / "m.masked.npy", x)[:, 0, 0], tensors["0.code_ids"][0, 0, pruned[:, 0, 0]])


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--codes", "1"), 2, "leaves one code"),
        (("--codes", "49"), 2, "more than the codebook's 48 codes"),
        (("--codes", "few"), 2, "not a share or a count"),
        (("--codes", "used", "--emit", "consumer"), 2, "it leaves every token as it was"),
        (("--codes", "4", "--max-distortion", "0.01"), 2, "stays within it"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, flags: tuple[str, ...], code: int, sentence: str) -> None:
    codes = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.numpy())
    make_features(tmp_path / "feats.h5", x=alive_only(codes).numpy())
    done = toc("optimize", "km.npy", "--features", "feats.h5", "--assume", *flags, cwd=tmp_path)
    assert sentence in done.err
    assert done.code == code
    assert len(list(tmp_path.iterdir())) == 2


def test_codes_that_all_stay_get_no_new_ids(tmp_path: Path) -> None:
    codes = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.numpy())
    make_features(tmp_path / "feats.h5", x=codes.repeat(3, 1).numpy())
    done = toc("optimize", "km.npy", "--features", "feats.h5", "--assume", "--codes", "used", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "all 16 codes stay as they are" in done.err
    assert "new ids" not in done.err
    assert torch.equal(load_file(tmp_path / "km.toc.safetensors")["0.code_map"][0, 0], torch.arange(16))


def test_a_dead_first_code_cannot_be_masked(tmp_path: Path) -> None:
    codes = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.flip(0).numpy())  # 47 is dead, and becomes 0
    make_features(tmp_path / "feats.h5", x=alive_only(codes).numpy())
    done = toc(
        "optimize", "km.npy", "--features", "feats.h5", "--assume", "--codes", "used", "--emit", "masked", cwd=tmp_path
    )
    assert done.code == 2
    assert "code 0 of level 0 is dropped, and no kept code has a lower id" in done.err


def runs_in_the_library(here: Path, build: dict[str, Any], kept: int, x: torch.Tensor, old: torch.Tensor) -> None:
    """The sliced and the masked file of a ResidualVQ of 24 codes, built by the library, give the mapped tokens."""
    import vector_quantize_pytorch as vqp

    new, ids = expected(here, old)
    for name, size, tokens in (("m.sliced.pt", kept, new), ("m.masked.pt", 24, ids)):
        other = vqp.ResidualVQ(codebook_size=size, **build).eval()
        other.load_state_dict(torch.load(here / name))
        with torch.inference_mode():
            assert torch.equal(other(x[None])[1][0][..., None], tokens)


def test_a_residual_vq_in_its_own_library(tmp_path: Path) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    build = {"dim": 8, "num_quantizers": 2, "kmeans_init": False}
    module = vqp.ResidualVQ(codebook_size=24, **build).eval()
    for level in module.layers:
        level._codebook.embed.data = torch.randn_like(level._codebook.embed)
        level._codebook.embed_avg.data = level._codebook.embed.clone() * 2
        level._codebook.cluster_size.data.fill_(2.0)
    torch.save(module.state_dict(), tmp_path / "rvq.pt")
    first, second = (level._codebook.embed[0] for level in module.layers)
    pairs = torch.cartesian_prod(torch.arange(0, 24, 2), torch.arange(0, 12))
    x = first[pairs[:, 0]] + 0.1 * second[pairs[:, 1]]
    make_features(tmp_path / "feats.h5", x=x.numpy())
    with torch.inference_mode():
        old = module(x[None])[1][0][..., None]
    entry = optimize(tmp_path, "rvq.pt", "--codes", "used", *FORMS)
    (kept, _) = entry["codes"]["after"]
    assert kept < 24
    runs_in_the_library(tmp_path, build, kept, x, old)
    state = torch.load(tmp_path / "m.sliced.pt")
    assert state["layers.0._codebook.embed_avg"].shape == (1, kept, 8)
    assert state["layers.0._codebook.cluster_size"].shape == (1, kept)


def test_levels_that_share_one_table_keep_the_codes_that_any_of_them_uses(tmp_path: Path) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    build = {"dim": 8, "num_quantizers": 2, "kmeans_init": False, "shared_codebook": True}
    module = vqp.ResidualVQ(codebook_size=24, **build).eval()
    table = module.layers[0]._codebook.embed
    table.data = torch.randn_like(table)
    torch.save(module.state_dict(), tmp_path / "rvq.pt")
    pairs = torch.cartesian_prod(torch.arange(0, 24, 3), torch.arange(0, 24, 4))
    x = table[0, pairs[:, 0]] + 0.3 * table[0, pairs[:, 1]]
    make_features(tmp_path / "feats.h5", x=x.detach().numpy())
    with torch.inference_mode():
        old = module(x[None])[1][0][..., None]
    entry = optimize(tmp_path, "rvq.pt", "--codes", "used", *FORMS)
    kept = len(old.unique())
    assert entry["codes"]["after"] == [kept, kept]
    assert kept < 24
    runs_in_the_library(tmp_path, build, kept, x, old)


@pytest.mark.parametrize("form", ["masked", "sliced"])
def test_codes_that_a_network_makes_are_refused(tmp_path: Path, form: str) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    module = vqp.ResidualVQ(dim=8, num_quantizers=2, codebook_size=16, kmeans_init=False, implicit_neural_codebook=True)
    torch.save(module.state_dict(), tmp_path / "qinco.pt")
    make_features(tmp_path / "feats.h5", x=torch.randn(40, 8).numpy())
    done = toc(
        "optimize", "qinco.pt", "--features", "feats.h5", "--codes", "used", "--emit", form, "--assume", cwd=tmp_path
    )
    assert (done.code, "the codes after level 0 are no stored tables" in done.err) == (2, True), done.err


@pytest.mark.parametrize("family", ["encodec", "diffusers vqmodel"])
def test_codecs_in_their_own_library(tmp_path: Path, family: str) -> None:
    pytest.importorskip("diffusers" if "diffusers" in family else "transformers")
    models.save(models.vqmodel() if "diffusers" in family else models.encodec(), tmp_path / "model")
    ckpt = open_checkpoint(tmp_path / "model")
    (book,) = detect(ckpt)
    full = sources(ckpt, [book])[0].full
    x = torch.randn(12, full.width, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    make_features(tmp_path / "feats.h5", x=x.numpy())
    entry = optimize(tmp_path, "model", "--codes", "used", "--emit", "sliced", "--verify")
    kept = entry["codes"]["after"][0]
    assert kept == 16 if family == "encodec" else kept <= 12  # transformers takes powers of two alone
    new, _ = expected(tmp_path, full.tokens(x))
    sliced = tmp_path / "m.sliced"
    (cut,) = detect(open_checkpoint(sliced))
    assert cut.num_codes == (kept,) * book.levels
    assert torch.equal(run(sliced, cut, x).tokens, new)


@pytest.mark.parametrize("flags", [("--codes", "12"), ("--codes", "used")])
def test_figures_compare_with_the_model_as_it_came(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Tokens that merge or vanish count as changed, and the distortion is against all codes: no gate passes a destroyed codebook."""
    codes = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "km.npy", codes.numpy())
    x = alive_only(codes)
    make_features(tmp_path / "feats.h5", x=x.numpy())
    entry = optimize(tmp_path, "km.npy", *flags)
    tensors = load_file(tmp_path / "m.toc.safetensors")
    code_map, new = tensors["0.code_map"][0, 0], tensors["0.codebook"][0, 0].double()
    full = torch.cdist(x.double(), codes.double()).argmin(1)
    now = torch.cdist(x.double(), new).argmin(1)
    members = torch.bincount(code_map[code_map >= 0], minlength=len(new))
    same = (code_map[full] == now) & (members[code_map[full].clamp(min=0)] == 1)
    before = (x.double() - codes.double()[full]).square().sum(1).mean()
    after = (x.double() - new[now]).square().sum(1).mean()
    assert entry["after"]["token_agreement"] == pytest.approx(same.double().mean().item(), abs=1e-12)
    assert entry["after"]["excess_distortion"] == pytest.approx((after / before - 1).item(), rel=1e-6, abs=1e-12)
    assert entry["before"]["distortion"] == pytest.approx(before.item(), rel=1e-6)
    assert entry["before"]["used_codes"] == len(full.unique())
    assert entry["before"]["dead_codes"] == 40 - len(full.unique())
    done = toc("report", "m.toc.json", "--check", "token_agreement>=99%", cwd=tmp_path)
    assert done.code == (0 if flags[1] == "used" else 1)
    first = toc("report", "m.toc.json", cwd=tmp_path).out.splitlines()[0]
    if flags[1] == "used":
        assert first == f"Ship it: {len(new)} of 40 codes kept, and every token is unchanged."
    else:
        assert "Ship it" not in first
        assert "12 of 40 codes" in first
