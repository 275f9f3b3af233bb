"""`--levels N`: the first levels in every form that allows it, run in their own library, and what each level is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import library_models as models
from cli import toc
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, levels
from toc_cli.io.families.base import Codebook
from toc_cli.libraries import run
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.source import sources
from toc_cli.report.advice import rerun

ROWS = 400
CODECS = {"encodec": (models.encodec, 2), "dac": (models.dac, 2), "mimi": (models.mimi, 2), "higgs": (models.higgs, 1)}


def prepared(name: str, here: Path) -> tuple[Path, list[tuple[Codebook, Quantiser]], np.ndarray]:
    pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    folder = models.save(CODECS[name][0](), here / "model")
    ckpt = open_checkpoint(folder)
    found = [(source.book, source.full) for source in sources(ckpt, detect(ckpt))]
    x = np.random.default_rng(1).standard_normal((ROWS, found[0][1].width)).astype(np.float32)
    np.save(here / "x.npy", x)
    return folder, found, x


def optimize(here: Path, *flags: object) -> dict[str, Any]:
    done = toc("optimize", "model", "--features", "x.npy", "-o", "m.toc.safetensors", *flags, cwd=here)
    assert done.code == 0, done.err
    return json.loads((here / "m.toc.json").read_text())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("keep", ["1.0", "0.5"])
def test_a_codec_of_fewer_levels_runs_in_its_own_library(name: str, keep: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder, before, x = prepared(name, tmp_path)
    count = CODECS[name][1]
    entries = optimize(tmp_path, "--keep", keep, "--levels", count, "--emit", "sliced")["codebooks"]
    small = tmp_path / "m.sliced"
    after = detect(open_checkpoint(small))
    assert [book.levels for book in after] == [min(count, book.levels) for book, _ in before]
    assert sum(f.stat().st_size for f in small.glob("*.safetensors")) < sum(
        f.stat().st_size for f in folder.glob("*.safetensors")
    )
    for (book, full), cut, entry in zip(before, after, entries, strict=True):
        rows = x if book.outer_width else x[:, entry["kept"][0][0]]
        tokens = run(
            small, cut, torch.from_numpy(rows)
        ).tokens  # loads with nothing missing and nothing left over, or raises
        assert tokens.shape[1] == min(count, book.levels)
        if keep == "1.0":
            expected = full.lookup(x)
            clear = ~expected.near_tie[:, :count].flatten(1).any(1)
            assert torch.equal(tokens[clear], expected.tokens[clear][:, :count])


def test_the_artefact_gives_the_first_tokens(tmp_path: Path) -> None:
    _, ((_, full),), x = prepared("encodec", tmp_path)
    optimize(tmp_path, "--keep", "1.0", "--levels", 2)
    assert load_file(tmp_path / "m.toc.safetensors")["0.codebook"].shape[0] == 2
    assert toc("quantize", "x.npy", "--codebook", "m.toc.safetensors", "-o", "t.h5", "-q", cwd=tmp_path).code == 0
    with h5py.File(tmp_path / "t.h5") as file:
        found = file["x"][()].reshape(ROWS, 2)
    assert np.array_equal(found, full.tokens(x)[:, :2, 0].numpy())


@pytest.mark.parametrize("cut", [True, False])
def test_the_record_says_what_every_level_is_worth(cut: bool, tmp_path: Path) -> None:
    """Against plain sums over the rows."""
    folder, ((_, full),), x = prepared("encodec", tmp_path)
    record = optimize(tmp_path, *(("--levels", 1) if cut else ()), "--report", "page.html")
    (entry,) = record["codebooks"]
    told = [warning["text"] for warning in record["warnings"] if warning["id"] == "levels"]
    assert [("1 of 3 levels stay" in text) for text in told] == [True] * cut
    page = (tmp_path / "page.html").read_text()
    assert "What each level is worth" in page
    assert ("1 (kept)" in page) == cut
    assert ("--levels 1" in rerun(record, criterion="pca", keep="12")) == cut, "a recommended run cuts the same levels"
    stay = 1 if cut else len(full.levels)
    assert (entry["levels"], entry["levels_cut"]["before"], entry["levels_cut"]["after"]) == (
        stay,
        len(full.levels),
        stay,
    )
    config = json.loads((folder / "config.json").read_text())
    rate = config["sampling_rate"] / math.prod(config["upsampling_ratios"])
    tokens, target = full.tokens(x), full.target(x)
    assert target is not None
    power = float(((target - target.mean(0)) ** 2).sum(1).mean())
    for at, (point, part) in enumerate(zip(entry["levels_cut"]["curve"], full.approximations(tokens), strict=True)):
        error = float(((target - part) ** 2).sum(1).mean())
        assert point["levels"] == at + 1
        assert point["distortion"] == pytest.approx(error, rel=1e-6)
        assert point["snr_db"] == pytest.approx(10 * math.log10(power / error), abs=1e-4)
        assert point["tokens_per_row"] == at + 1
        assert point["bits_per_row"] == pytest.approx((at + 1) * math.log2(full.levels[0].codes.shape[1]))
        assert point["bits_per_second"] == pytest.approx(point["bits_per_row"] * rate)


def test_a_residual_vq_in_its_own_library(tmp_path: Path) -> None:
    library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    torch.manual_seed(0)
    whole = library.ResidualVQ(dim=12, codebook_size=16, num_quantizers=4, codebook_dim=8).eval()
    torch.save(whole.state_dict(), tmp_path / "rvq.pt")
    x = torch.randn(ROWS, 12)
    np.save(tmp_path / "x.npy", x.numpy())
    done = toc(
        "optimize", "rvq.pt", "--features", "x.npy", "--levels", 3, "--keep", "1.0", "--emit", "sliced", "-o", "m.toc.safetensors",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "3 levels in place of 4" in done.out + done.err
    small = library.ResidualVQ(dim=12, codebook_size=16, num_quantizers=3, codebook_dim=8).eval()
    small.load_state_dict(torch.load(tmp_path / "m.sliced.pt", weights_only=True), strict=True)
    assert torch.equal(small(x[None])[1], whole(x[None])[1][..., :3])


def test_groups_of_levels_in_their_own_library(tmp_path: Path) -> None:
    library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    torch.manual_seed(0)
    build = {"dim": 16, "codebook_size": 16, "groups": 2}
    whole = library.GroupedResidualVQ(num_quantizers=3, **build).eval()
    torch.save(whole.state_dict(), tmp_path / "model")
    x = torch.randn(ROWS, 16)
    np.save(tmp_path / "x.npy", x.numpy())
    (entry,) = optimize(tmp_path, "--levels", 2, "--keep", "1.0", "--emit", "sliced")["codebooks"]
    small = library.GroupedResidualVQ(num_quantizers=2, **build).eval()
    small.load_state_dict(torch.load(next(tmp_path.glob("m.sliced*")), weights_only=True), strict=True)
    assert torch.equal(small(x[None])[1], whole(x[None])[1][..., :2])
    error = [(x[None] - module(x[None])[0]).square().sum(-1).mean().item() for module in (whole, small)]
    assert entry["after"]["token_agreement"] == 1
    assert entry["after"]["excess_distortion"] == pytest.approx(error[1] / error[0] - 1, rel=1e-4)
    first = toc("report", "m.toc.json", cwd=tmp_path).out.splitlines()[0]
    assert first.startswith("Weigh it: 2 of 3 levels kept")


def test_levels_that_go_through_networks_stay(tmp_path: Path) -> None:
    library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    module = library.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, implicit_neural_codebook=True)
    torch.save(module.state_dict(), tmp_path / "qinco.pt")
    ckpt = open_checkpoint(tmp_path / "qinco.pt")
    (book,) = detect(ckpt)
    if book.levels > 1:
        assert "networks of their own" in levels.refusal(ckpt, book, 1, "sliced")


def test_an_optimizer_is_left_out_or_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    module = library.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, codebook_dim=4)
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4, 8)}}
    torch.save(
        {"state_dict": module.state_dict(), "optimizer": {"state": state, "param_groups": [{"params": [0]}]}},
        tmp_path / "t.pt",
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 8)))
    common = [
        "optimize",
        "t.pt",
        "--features",
        "x.npy",
        "--levels",
        2,
        "--keep",
        "1.0",
        "--emit",
        "sliced",
        "-o",
        "m.toc.safetensors",
    ]
    done = toc(*common, cwd=tmp_path)
    assert (done.code, "--lean leaves it out" in " ".join(done.err.split())) == (2, True)
    done = toc(*common, "--lean", cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--levels", "0"), "greater than or equal to 1"),
        (("--levels", "99"), "has 3"),
        (("--levels", "2", "--emit", "masked"), "keeps every level"),
        (("--levels", "2", "--emit", "consumer"), "leaves every token as it was"),
    ],
)
def test_what_cannot_be_is_refused(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    prepared("encodec", tmp_path)
    done = toc("optimize", "model", "--features", "x.npy", "-o", "m.toc.safetensors", *flags, cwd=tmp_path)
    assert done.code == 2, done.err
    assert says in " ".join(done.err.split())
    assert not list(tmp_path.glob("m.*"))


def test_a_codebook_of_one_level_has_none_to_spare(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).standard_normal((16, 4)))
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((60, 4)))
    done = toc("optimize", "codes.npy", "--features", "x.npy", "--levels", "1", cwd=tmp_path)
    assert done.code == 2
    assert "none here is one" in done.err


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        ({"frame_rate": 12.5}, 12.5),
        ({"sampling_rate": 24000, "upsampling_ratios": [8, 5, 4, 2]}, 75.0),
        ({"sample_rate": 16000, "acoustic_model_config": {"downsampling_ratios": [8, 5, 4, 2]}}, 50.0),
        ({"sampling_rate": 44100, "hop_length": 512}, 44100 / 512),
        ({"sampling_rate": 24000}, None),
        ({}, None),
        ({"sampling_rate": "x", "upsampling_ratios": [0]}, None),
    ],
)
def test_rows_a_second(config: dict[str, Any], rate: float | None) -> None:
    assert levels.frame_rate(config) == rate
