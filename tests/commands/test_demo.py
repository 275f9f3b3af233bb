"""`toc demo` ends in a verdict worth copying: proven reading, a selection that ships, pictures as the model's own class makes them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cli import toc
from toc_cli.demo import CHECKPOINT, FEATURES, avdigits
from toc_cli.demo.choice import DemoChoice
from toc_cli.demo.decoder import decode
from toc_cli.fcid.evaluation import silent
from toc_cli.fcid.run_folder import RunFolder, load_model
from toc_cli.fcid.train_config import run_config
from toc_cli.fcid.trainer import Watcher

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "make_demo_data.py"


def test_the_demo_ships(tmp_path: Path) -> None:
    done = toc("demo", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.startswith("Ship it: ")
    for command in ("toc inspect", "toc capture", "toc optimize"):
        assert f"  {command} MODEL" in done.err
    record = json.loads((tmp_path / "toc-demo" / "digits_vq.toc.json").read_text())
    book = record["codebooks"][0]
    assert book["evidence"] == "proven"
    assert book["after"]["excess_distortion"] <= 0.01
    assert book["kept_dim"] < book["dim"] / 2
    assert {output["mode"] for output in record["outputs"]} == {"codebook", "masked", "sliced", "consumer"}
    assert len(record["outcome"]["samples"]) == 8
    assert record["outcome"]["forms"]["masked"]["psnr_db_change"]["value"] > -0.1
    page = (tmp_path / "toc-demo" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8 * 5
    for level in ("fine", "coarse"):
        assert f"{level}.toc.json: Ship it: " in done.out
        found = json.loads((tmp_path / "toc-demo" / "avdigits" / f"{level}.toc.json").read_text())["codebooks"][0]
        assert found["kept_dim"] < found["dim"] / 2
    evaluation = json.loads((tmp_path / "toc-demo" / "avdigits" / "evaluation.toc.json").read_text())["evaluation"]
    for part, least in (("classification", 0.7), ("localisation", 0.5)):
        [mean] = [row for row in evaluation[part] if row["from"] is None]
        assert mean["results"]["full"]["value"] > least
        assert abs(mean["results"]["artefact subspace"]["delta"]) < 0.05
    again = toc("demo", cwd=tmp_path)
    assert (again.code, "--force" in again.err) == (2, True)


def test_it_trains_with_the_settings_of_the_run_that_it_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "shipped"
    settings.mkdir()
    text = (avdigits.RUN / "config.toml").read_text()
    (settings / "config.toml").write_text(text.replace("epochs = 60", "epochs = 1"))
    monkeypatch.setattr(avdigits, "RUN", settings)
    quick = dataclasses.replace(avdigits.EVALUATION, parts=("classification",), probe_epochs=1)
    monkeypatch.setattr(avdigits, "EVALUATION", quick)
    seen: list[int] = []
    watcher = Watcher(on_step=lambda report: seen.append(report.step))
    choice = DemoChoice(keep="0.25", criterion="pca")
    records, files = avdigits.walk(tmp_path / "out", choice, silent, watcher)
    assert seen == list(range(1, 24))
    assert set(records) == {"fine.toc.json", "coarse.toc.json", "evaluation.toc.json"}
    assert all(file.exists() for file in files)
    assert RunFolder(tmp_path / "out" / "run").settings()["train"]["epochs"] == 1


def test_a_training_that_is_stopped_leaves_nothing_and_promises_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    watcher = Watcher(on_step=lambda report: signal.raise_signal(signal.SIGINT), on_warning=told.append)
    with pytest.raises(KeyboardInterrupt):
        avdigits.walk(tmp_path / "out", DemoChoice(keep="0.25", criterion="pca"), silent, watcher)
    assert told == ["Stopped after step 1 of 1380."]
    assert not list((tmp_path / "out").iterdir())


def test_the_shipped_run_is_of_the_trainer_of_today() -> None:
    _, config = load_model(avdigits.RUN)
    assert config.table() == run_config(RunFolder(avdigits.RUN).settings()).table()
    assert (config.train.epochs, config.model.width, config.model.codebook.size) == (60, 64, 128)
    log = [json.loads(line) for line in (avdigits.RUN / "log.jsonl").read_text().splitlines()]
    validated = [line["loss"] for line in log if line["kind"] == "validation"]
    assert len(validated) == 60
    assert min(validated) < validated[0]
    assert sum(path.stat().st_size for path in avdigits.HERE.rglob("*.*")) < 12_000_000


def test_its_decoder_and_tokens_are_those_of_the_models_class() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("make_demo_data", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = example.Autoencoder().eval()
    model.load_state_dict(load_file(CHECKPOINT))
    with h5py.File(FEATURES) as file:
        rows = torch.from_numpy(np.concatenate([file["upper"][:], file["lower"][:]], 1).astype(np.float32))
        tokens = np.concatenate([file["upper.tokens"][:], file["lower.tokens"][:]], 1)
        images = torch.from_numpy(file["images"][:].astype(np.float32))[:, None] / 16
    with torch.no_grad():
        whole, _ = model(images)
        z = model.quant_conv(rows.transpose(1, 2).unflatten(2, (4, 4))).permute(0, 2, 3, 1).flatten(0, 2)
        chosen = model.quantize.tokens(z).reshape(tokens.shape).numpy()
    assert (chosen == tokens).mean() > 0.9999
    made = decode(load_file(CHECKPOINT), rows)
    same = (made - whole.clamp(0, 1)).abs().flatten(1).amax(1)
    assert (same < 0.01).float().mean() > 0.9  # features are stored in half precision: a few tokens turn over
