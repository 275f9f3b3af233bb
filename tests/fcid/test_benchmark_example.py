"""`examples/benchmark`: rows of results that stand for what made them, and the tables drawn of them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
from scipy import stats

from toc_cli.demo import AVDIGITS
from toc_cli.fcid.train_config import run_config

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "benchmark"
CLIPS = 24


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("models", "run", "tables")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The first clips of every split of AV-Digits."""
    with h5py.File(AVDIGITS) as whole, h5py.File(tmp_path / "few.h5", "w") as few:
        for name, split in whole.items():
            if isinstance(split, h5py.Dataset):
                few[name] = split[:]
                continue
            for key, values in split.items():
                if key not in ("frames", "waveform"):
                    few[f"{name}/{key}"] = values[:CLIPS]
                    few[f"{name}/{key}"].attrs.update(values.attrs)
    return tmp_path / "few.h5"


def test_a_row_is_made_once_and_again_where_something_changed(
    bench: dict[str, ModuleType],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [
        "run.py",
        str(tmp_path / "out"),
        "--data",
        str(data),
        "--models",
        "plain-1",
        "--seeds",
        "1",
        "--probe-seeds",
        "1",
    ]
    small = bench["models"].settings_of("plain-1", 8, 1, 0)
    small["train"]["batch_size"], small["model"]["heads"], small["model"]["codebook"] = 8, 2, {"size": 6}
    monkeypatch.setattr(bench["run"], "settings_of", lambda *place: small)

    def printed(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*asked, *more])
        bench["run"].main()
        return capsys.readouterr().out

    assert "plain-1, width 64, seed 0: {'label_clip ave_train to val'" in printed("--validation")
    assert printed("--validation") == ""
    small["train"]["seed"] = 7
    assert "plain-1" in printed("--validation")
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert len(rows) == 1
    assert len(list((tmp_path / "out/runs").glob("*/model.safetensors"))) == 2
    text = bench["tables"].document(rows)
    value = f"{100 * rows[0]['figures']['label_clip ave_train to val']['full']:.1f}"
    assert f"| `plain-1` (1) | {value} |" in text


def test_every_model_is_a_run(bench: dict[str, ModuleType]) -> None:
    models = bench["models"]
    configs = {name: run_config(models.settings_of(name, 64, 60, 0)) for name in models.profiles() | models.ablations()}
    assert configs["corrected-2"].model.readout == "both"
    assert not configs["plain-1"].model.fine_codebook
    assert configs["uniform-1"].model.alignment == "uniform"
    assert configs["without club"].model.weights.club == 0
    assert configs["published codebook.ema"].model.codebook.ema == "sequential"
    whole = configs["corrected-2"].model
    assert all(configs[name].model != whole for name in models.ablations())


def test_intervals_and_paired_differences(bench: dict[str, ModuleType]) -> None:
    tables = bench["tables"]
    rng = np.random.default_rng(0)
    for count in (2, 3, 5):
        values = rng.normal(size=count)
        reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert tables.interval(values) == pytest.approx((reference.low, reference.high))
    assert tables.interval([1.0]) == (-np.inf, np.inf)

    def row(seed: int, value: float) -> dict[str, object]:
        return {
            "seed": seed,
            "figures": {"label_clip ave_train to ave_test": {"full": value, "pca 0.5 slice": value - 0.01}},
        }

    ahead = tables.difference([row(0, 0.5), row(1, 0.6), row(2, 0.9)], [row(1, 0.5), row(0, 0.4)], "clip")
    assert ahead == "+10.0 [+10.0, +10.0]"
    assert tables.losses([row(0, 0.5)], "clip", "pca 0.5 slice") == pytest.approx([-1.0])
    assert tables.values([row(0, 0.5), row(1, 0.6)], "clip") == "55.0 ± 7.1"
    assert tables.values([row(0, 0.5)], "second") == "–"


def test_readme_and_results_are_what_the_rows_say(bench: dict[str, ModuleType]) -> None:
    rows = json.loads((FOLDER / "results.json").read_text())
    assert (FOLDER / "RESULTS.md").read_text() == bench["tables"].document(rows)
    assert bench["tables"].short(rows).strip() in (FOLDER.parents[1] / "README.md").read_text()
