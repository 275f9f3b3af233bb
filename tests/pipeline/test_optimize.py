"""`toc optimize` as a whole: what it keeps, what it writes, and that the same inputs give the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import toc_cli
from cli import make_checkpoint, make_features, toc
from toc_cli.demo import CHECKPOINT, FEATURES
from toc_cli.ops.criterion import CRITERIA
from toc_cli.pipeline import Options, Outputs, plan_optimization
from toc_cli.pipeline.curve import Curve


@pytest.fixture
def here(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model.safetensors")
    make_features(tmp_path / "feats.h5", rows=1000)
    return tmp_path


def outputs(folder: Path) -> dict[str, bytes]:
    """The written files; a record without its timing."""
    found = {}
    for path in sorted(folder.glob("*.toc.*")) + sorted(folder.glob("*.masked*")):
        found[path.name] = path.read_bytes()
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            record.pop("timing")
            found[path.name] = json.dumps(record).encode()
    return found


def run(folder: Path, *more: str, **environment: str) -> None:
    command = [
        sys.executable,
        "-m",
        "toc_cli",
        "optimize",
        "model.safetensors",
        "--features",
        "feats.h5",
        "-q",
        "--force",
        *more,
    ]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_kept_dimensions_are_those_of_the_double_loop(here: Path) -> None:
    codes = load_file(here / "model.safetensors")["quantize.embedding.weight"].double()
    gram = torch.einsum("id,jd->ijd", codes, codes)
    similarity = (gram.sum((0, 1)) - gram.diagonal().sum(1)) / (64 * 63)
    wanted = (0.3 * codes.var(0) - 0.7 * similarity).topk(12).indices.sort().values
    plan = toc_cli.optimize(here / "model.safetensors", here / "feats.h5", keep=0.5)
    assert torch.equal(plan.kept[0][0, 0], wanted)


def test_the_artefact_opens_with_plain_safetensors(here: Path) -> None:
    assert toc("optimize", "model.safetensors", "--features", "feats.h5", "--keep", "25%", cwd=here).code == 0
    whole = load_file(here / "model.safetensors")["quantize.embedding.weight"]
    with safe_open(here / "model.toc.safetensors", "pt") as file:
        kept = file.get_tensor("0.kept")
        assert torch.equal(file.get_tensor("0.codebook"), whole[:, kept[0, 0]][None, None])
        assert kept.dtype == torch.int64
        assert kept.shape == (1, 1, 6)
        assert file.get_tensor("0.usage").shape == (1, 1, 64)
        assert file.get_tensor("0.usage").sum() == 1000
        assert file.get_tensor("0.score").dtype == torch.float64
        assert file.get_tensor("0.fill").shape == (24,)
        assert file.metadata()["toc.schema"] == "2"
        assert str(here) not in json.dumps(file.metadata())


def test_the_record_is_valid_and_measured(here: Path) -> None:
    done = toc("optimize", "model.safetensors", "--features", "feats.h5", "--json", cwd=here)
    record = json.loads(done.out)
    schema = json.loads((Path(toc_cli.__file__).parent / "report" / "record.schema.json").read_text())
    jsonschema.validate(record, schema)
    assert record == json.loads((here / "model.toc.json").read_text())
    book = record["codebooks"][0]
    x = torch.from_numpy(h5py.File(here / "feats.h5")["x"][:]).double()
    codes = load_file(here / "model.safetensors")["quantize.embedding.weight"].double()
    kept = book["kept"][0][0]
    full, part = torch.cdist(x, codes).argmin(1), torch.cdist(x[:, kept], codes[:, kept]).argmin(1)
    assert book["after"]["token_agreement"] == pytest.approx((full == part).double().mean().item(), abs=1e-12)
    assert book["before"]["distortion"] == pytest.approx((x - codes[full]).square().sum(1).mean().item())
    assert book["before"]["used_codes"] == len(full.unique())
    low, high = book["ci95"]["after"]["token_agreement"]
    assert low < book["after"]["token_agreement"] < high
    assert book["sample"]["rows"] == 1000


def test_repeated_runs_and_thread_counts_give_the_same_bytes(here: Path) -> None:
    run(here, "--emit", "masked", "--sweep", "0.25,0.5", OMP_NUM_THREADS="1")
    first = outputs(here)
    run(here, "--emit", "masked", "--sweep", "0.25,0.5", OMP_NUM_THREADS="2")
    assert outputs(here) == first


@pytest.mark.parametrize("criterion", ["toc", "xcov", "agreement", "auto"])
def test_ranks_and_chunks_give_the_bytes_of_one_process(tmp_path: Path, criterion: str) -> None:
    shutil.copy(CHECKPOINT, tmp_path / "model.safetensors")
    shutil.copy(FEATURES, tmp_path / "feats.h5")
    options = ("--criterion", criterion)
    run(tmp_path, *options)
    first = outputs(tmp_path)
    run(tmp_path, *options, "--max-memory", "2MiB")
    assert outputs(tmp_path) == first
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "toc_cli"]
    command = [*launch, "optimize", "model.safetensors", "--features", "feats.h5", "-q", "--force", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == first


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_every_criterion_prunes_the_demo(tmp_path: Path, criterion: str) -> None:
    plan = plan_optimization(CHECKPOINT, FEATURES, Options(criterion=criterion, keep="8"))
    plan.save(tmp_path / "out.toc.safetensors")
    entry = plan.metrics[0]
    assert entry["kept_dim"] == 8
    assert 0 < entry["after"]["token_agreement"] <= 1
    tokens = toc("quantize", FEATURES, "--codebook", "out.toc.safetensors", "-o", "t.h5", "--json", cwd=tmp_path)
    assert tokens.code == 0, tokens.err
    with h5py.File(tmp_path / "t.h5") as found, h5py.File(FEATURES) as features:
        for name in ("upper", "lower"):
            rows = torch.from_numpy(features[name][:]).flatten(0, 1)
            assert np.array_equal(found[name][:].reshape(-1), toc_cli.quantize(rows, plan.codebook).numpy())
            assert found[name].dtype == np.uint8
            assert found[name].shape == features[name].shape[:2]
        assert np.array_equal(found["label"], features["label"])


def test_keep_auto_is_the_smallest_that_meets_the_bound() -> None:
    plan = plan_optimization(CHECKPOINT, FEATURES, Options(keep="auto", min_agreement=0.9))
    count = plan.metrics[0]["kept_dim"]
    assert plan.metrics[0]["after"]["token_agreement"] >= 0.9
    study, _ = plan.chosen[0]
    least = [
        min(Curve(study, part=part).points([point])[point]["token_agreement"] or 0 for part in (0, 1))
        for point in (("toc", count, 0), ("toc", count - 1, 0))
    ]
    assert least[0] >= 0.9 > least[1]


def test_the_sweep_meets_the_single_runs() -> None:
    plan = plan_optimization(CHECKPOINT, FEATURES, Options(keep="16", sweep="0.25:1.0:4"))
    sweep = plan.metrics[0]["sweep"]
    assert sweep["kept_dims"] == [8, 16, 24, 32]
    assert sweep["criteria"]["toc"]["token_agreement"][1] == plan.metrics[0]["after"]["token_agreement"]
    assert (
        sweep["criteria"]["variance"]["excess_distortion"][1]
        == plan.metrics[0]["baselines"]["variance"]["excess_distortion"]
    )
    assert sweep["criteria"]["pca"]["excess_distortion"][3] == 0


def test_dry_run_writes_nothing(here: Path) -> None:
    done = toc("optimize", "model.safetensors", "--features", "feats.h5", "--dry-run", "--emit", "masked", cwd=here)
    assert done.code == 0
    assert "would write" in done.out
    assert sorted(path.name for path in here.iterdir()) == ["feats.h5", "model.safetensors"]


def test_dry_run_where_outputs_stand(here: Path) -> None:
    line = ("optimize", "model.safetensors", "--features", "feats.h5")
    assert toc(*line, "-q", cwd=here).code == 0
    before = {path.name: path.stat().st_mtime_ns for path in here.iterdir()}
    done = toc(*line, "--dry-run", "--keep", "5", "--emit", "masked", cwd=here)
    assert done.code == 0, done.err
    assert "in place of the one that stands" in " ".join(done.out.split())
    assert {path.name: path.stat().st_mtime_ns for path in here.iterdir()} == before


def test_all_dimensions_change_nothing(here: Path) -> None:
    plan = toc_cli.optimize(here / "model.safetensors", here / "feats.h5", keep=24)
    assert plan.metrics[0]["after"]["token_agreement"] == 1
    assert plan.metrics[0]["after"]["excess_distortion"] == 0


def test_the_input_is_never_the_output(here: Path) -> None:
    (here / "model.toc.safetensors").symlink_to(here / "model.safetensors")
    before = (here / "model.safetensors").read_bytes()
    done = toc("optimize", "model.safetensors", "--features", "feats.h5", "--force", cwd=here)
    assert done.code == 2
    assert (here / "model.safetensors").read_bytes() == before


def test_vectors_are_those_of_the_pruned_codebook(here: Path) -> None:
    toc("optimize", "model.safetensors", "--features", "feats.h5", "--keep", "6", cwd=here)
    done = toc("quantize", "feats.h5", "--codebook", "model.toc.safetensors", "--vectors", cwd=here)
    assert done.code == 0, done.err
    codes = load_file(here / "model.toc.safetensors")["0.codebook"][0, 0]
    with h5py.File(here / "feats.tokens.h5") as file:
        assert np.array_equal(file["x.vectors"][:], codes[file["x"][:].astype(int)].numpy())


def test_labels_are_probed(tmp_path: Path) -> None:
    plan = plan_optimization(CHECKPOINT, FEATURES, Options())
    probe = plan.metrics[0]["probe"]
    assert set(probe["before"]) == {"upper->lower", "lower->upper"}
    assert 0.1 < probe["before"]["upper->lower"]["accuracy"] < 1


def test_outputs_take_their_stem_from_o(tmp_path: Path) -> None:
    names = Outputs(Path("a/model.safetensors"), ("masked",), Path("b/small.toc.safetensors"))
    assert names.of("masked") == Path("b/small.masked.safetensors")
    assert names.record == Path("b/small.toc.json")
    shards = Outputs(Path("a/model.safetensors.index.json"), ("sliced",))
    assert shards.of("sliced") == Path("a/model.sliced")


def test_forms_that_change_tokens_warn_of_models_trained_on_them(here: Path) -> None:
    arguments = ("optimize", "model.safetensors", "--features", "feats.h5", "--force", "-q")
    warned = toc(*arguments, "--emit", "codebook", "--emit", "masked", cwd=here)
    assert "of the tokens change in the masked form: a language model" in warned.err
    assert "language model" not in toc(*arguments, cwd=here).err
    drawn = toc(*arguments[:-1], "--emit", "masked", cwd=here)
    assert (drawn.out.count("language model"), drawn.err.count("language model")) == (1, 0)
    assert "language model" not in toc(*arguments, "--emit", "masked", "--keep", "100%", cwd=here).err


def test_a_float8_codebook_is_pruned_in_its_own_dtype(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "m.safetensors", torch.randn(64, 24).to(torch.float8_e4m3fn))
    make_features(tmp_path / "feats.h5")
    done = toc("optimize", "m.safetensors", "--features", "feats.h5", "--emit", "masked", "-q", cwd=tmp_path)
    assert done.code == 0, done.err
    assert load_file(tmp_path / "m.masked.safetensors")["quantize.embedding.weight"].dtype == torch.float8_e4m3fn
    assert load_file(tmp_path / "m.toc.safetensors")["0.codebook"].dtype == torch.float8_e4m3fn
    assert toc("quantize", "feats.h5", "--codebook", "m.toc.safetensors", "-q", cwd=tmp_path).code == 0


@pytest.mark.parametrize("criterion", ["features", "xmodal", "xcov"])
def test_features_that_only_choose_codes_are_not_scored_as_codes(tmp_path: Path, criterion: str) -> None:
    """wav2vec 2.0: tokens are an argmax of logits, so no feature lives in the space of the codevectors."""
    tensors = {"quantizer.codevectors": torch.randn(1, 32, 6), "quantizer.weight_proj.weight": torch.randn(32, 9)}
    torch.save(tensors, tmp_path / "w.pt")
    np.savez(tmp_path / "f.npz", a=np.ones((9, 9), np.float32), b=np.ones((9, 9), np.float32))
    done = toc("optimize", "w.pt", "--features", "f.npz", "--criterion", criterion, cwd=tmp_path)
    assert done.code == 2
    assert "by learned logits" in done.err


def test_a_lone_array_has_a_name_in_sentences(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).normal(size=(12, 24)))
    make_features(tmp_path / "feats.h5")
    done = toc("optimize", "codes.npy", "--features", "feats.h5", "--emit", "sliced", cwd=tmp_path)
    assert done.code == 2
    assert "not possible for the array: the layers around the codebook" in done.err


def test_features_of_several_heads_name_the_way_to_say_so(here: Path) -> None:
    """A table that heads share does not say how many: the file has no projection to count them by."""
    make_checkpoint(here / "model.safetensors", dim=8)
    refused = toc("optimize", "model.safetensors", "--features", "feats.h5", cwd=here)
    assert refused.code == 3
    assert "If 3 heads share this table, --codebook KEY --layout 1KD,H=3 says so" in refused.err
    layout = ("--codebook", "quantize.embedding.weight", "--layout", "KD,H=3")
    done = toc("optimize", "model.safetensors", "--features", "feats.h5", *layout, "--json", "-q", cwd=here)
    assert done.code == 0, done.err
    (book,) = json.loads(done.out)["codebooks"]
    assert book["heads"] == 3
    assert len({tuple(kept) for kept in book["kept"][0]}) == 1


def test_what_is_dead_in_one_head_is_not_dead_in_another(tmp_path: Path) -> None:
    codes = torch.randn(2, 32, 8)
    codes[0, :, 3] = 1.0
    codes[:, :, 6] = 2.0
    np.save(tmp_path / "codes.npy", codes.numpy())
    np.save(tmp_path / "feats.npy", np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32))
    done = toc("optimize", "codes.npy", "--features", "feats.npy", "--layout", "HKD", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "1 of 8 dimensions tell no codes apart, constant over all of them (6)." in done.err
    assert "1 of 8 dimensions tell no codes apart, constant over all of them in level 0, head 0 (3)." in done.err
    (book,) = json.loads(done.out)["codebooks"]
    assert (book["dead_dimensions"], book["dead_by_head"], book["constant_dimensions"]) == (2, [[2, 1]], [6])


def test_codes_far_from_the_centre_are_warned_of(here: Path) -> None:
    codes = torch.randn(64, 24)
    codes[:, :12] += 4
    make_checkpoint(here / "model.safetensors", codes)
    run = ("optimize", "model.safetensors", "--features", "feats.h5", "-q", "--force")
    assert "the similarity term of --criterion toc differs over dimensions" in toc(*run, cwd=here).err
    assert "similarity term" not in toc(*run, "--criterion", "variance", cwd=here).err


def test_the_usage_rank_of_the_record_is_of_the_codes_in_use(here: Path) -> None:
    book = toc_cli.optimize(here / "model.safetensors", here / "feats.h5", keep=6).metrics[0]
    codes = load_file(here / "model.safetensors")["quantize.embedding.weight"].double().numpy()
    x = h5py.File(here / "feats.h5")["x"][:]
    tokens = ((x[:, None] - codes) ** 2).sum(-1).argmin(1)
    values = np.linalg.svd(codes[tokens] - codes[tokens].mean(0), compute_uv=False) ** 2
    q = values / values.sum()
    assert book["before"]["usage_rank"] == pytest.approx(np.exp(-(q * np.log(q)).sum()))
    assert 1 < book["after"]["usage_rank"] < 6


def test_the_interval_of_a_perplexity_lies_around_it(here: Path) -> None:
    """Of few rows per code, resamples alone would put it far below."""
    book = toc_cli.optimize(here / "model.safetensors", here / "feats.h5", keep=6, limit=150).metrics[0]
    for side in ("before", "after"):
        for field in ("perplexity", "entropy"):
            low, high = book["ci95"][side][field]
            assert (low + high) / 2 == pytest.approx(book[side][field], rel=0.03)
