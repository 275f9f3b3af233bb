"""`toc quantize --record`: what was counted of tokens, gated and shown by every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import toc
from toc_cli.report import schema
from toc_cli.report.counts import datasets, values

ROWS = 500


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """The record of two datasets under two residual levels of 8 and 8 codes."""
    draw = np.random.default_rng(0)
    tables = draw.standard_normal((2, 8, 4)).astype(np.float32)
    tables[1] *= 0.2
    save_file({"table": torch.from_numpy(tables)}, tmp_path / "model.safetensors")
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        for name, codes in (("audio", 8), ("video", 3)):
            near = tables[0][draw.integers(0, codes, ROWS)]
            file[name] = near + 0.1 * draw.standard_normal((ROWS, 4)).astype(np.float32)
    words = ["--codebook", "model.safetensors", "--key", "table", "--layout", "LKD", "--metric", "euclidean"]
    done = toc("quantize", "feats.h5", *words, "--record", "tokens.toc.json", cwd=tmp_path)
    assert done.code == 0, done.err
    return tmp_path / "tokens.toc.json"


def test_the_numbers_are_those_of_the_tokens(counted: Path) -> None:
    record = json.loads(counted.read_text())
    schema.validate(record)
    assert {entry["role"] for entry in record["inputs"]} == {"checkpoint", "features"}
    with h5py.File(counted.parent / "feats.tokens.h5") as file:
        for dataset in datasets(record):
            tokens = file[dataset["name"]][:].astype(int)
            found = values(dataset)
            entropies = []
            for level in range(2):
                share = np.bincount(tokens[:, level], minlength=8) / ROWS
                bits = -sum(p * np.log2(p) for p in share if p)
                entropies.append(bits)
                assert found[f"level{level}.used_codes"] == (share > 0).sum()
                assert found[f"level{level}.dead_codes"] == (share == 0).sum()
                assert found[f"level{level}.entropy_bits"] == pytest.approx(bits)
                assert found[f"level{level}.entropy"] == pytest.approx(bits / 3)
                assert found[f"level{level}.perplexity"] == pytest.approx(2**bits)
            assert found["perplexity"] == pytest.approx(2 ** np.mean(entropies))
            ids, sizes = np.unique(tokens, axis=0, return_counts=True)
            assert found["distinct_ids"] == len(ids)
            assert found["largest_id"] == sizes.max()
            assert found["rows_alone"] == pytest.approx((sizes == 1).sum() / ROWS)
            assert found["collision_rate"] == found["prefix2.collision_rate"] == pytest.approx(1 - len(ids) / ROWS)
            assert found["prefix1.distinct_ids"] == len(np.unique(tokens[:, 0]))


def test_a_gate_holds_them(counted: Path) -> None:
    held = toc("report", counted, "--check", "prefix1.distinct_ids>=1", "--check", "level0.dead_codes<=8")
    assert held.code == 0, held.err
    assert "to 2 datasets" in held.out
    failed = toc("report", counted, "--check", "level0.used_codes>=8")
    assert failed.code == 1
    assert "tokens.toc.json, dataset 1 video: level0.used_codes is 3; asked: >= 8" in failed.err
    assert toc("report", counted, "--check", "token_agreement>=0.5").code == 2


def test_every_format_shows_and_judges_them(counted: Path, tmp_path: Path) -> None:
    words = ["--check", "level0.used_codes>=8", "--exit-zero"]
    texts = {}
    for format in ("html", "md", "junit", "json", "github", "sarif"):
        target = tmp_path / f"out.{format}"
        done = toc("report", counted, *words, "--format", f"{format}:{target}")
        assert done.code == 0, done.err
        texts[format] = target.read_text()
    for format in ("html", "md"):
        assert "Tokens of audio" in texts[format]
        assert "toc quantize" in texts[format]
    assert 'name="tokens.toc.json: dataset 1 video" tests="1" failures="1"' in texts["junit"]
    assert [check["status"] for check in json.loads(texts["json"])["checks"]] == ["passed", "failed"]
    assert "dataset 1 video" in texts["github"]
    assert "dataset 1 video" in texts["sarif"]


def test_a_baseline_of_tokens(counted: Path, tmp_path: Path) -> None:
    record = json.loads(counted.read_text())
    record["tokens"]["datasets"][1]["name"] = "other"
    (tmp_path / "old.toc.json").write_text(json.dumps(record))
    done = toc("report", counted, "--baseline", "old.toc.json", "--check", "perplexity>=baseline * 0.99", cwd=tmp_path)
    assert done.code == 1
    assert "dataset 1 video: perplexity" in done.err
    assert "the baseline does not have this number" in done.err
    assert "dataset 0" not in done.err


def test_the_record_is_not_written_over_the_tokens(counted: Path) -> None:
    words = ["--codebook", "model.safetensors", "--key", "table", "--layout", "LKD", "--metric", "euclidean"]
    for name in ("feats.tokens.h5", "./feats.tokens.h5"):
        done = toc("quantize", "feats.h5", *words, "--record", name, "--force", cwd=counted.parent)
        assert (done.code, "is to hold the tokens" in done.err) == (2, True), done.err
    assert h5py.is_hdf5(counted.parent / "feats.tokens.h5")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.append(found[0]), "two datasets have one name"),
        (lambda found: found[0].update(tables=[]), "0 tables are not one per level and head"),
        (lambda found: found[0]["tables"].append(found[0]["tables"][0]), "3 tables are not one per level and head"),
        (lambda found: found[0]["tables"][0].update(used_codes=9), "a table uses 9 of 8 codes"),
        (lambda found: found[0].update(used_codes=1), "used_codes is 1"),
        (lambda found: found[0].update(codes=1), "codes is 1"),
        (lambda found: found[0]["tuples"][0].update(distinct=ROWS + 1), "more ids of 1 tokens than its 500 rows"),
    ],
)
def test_counts_that_contradict_themselves_are_refused(
    counted: Path, change: Callable[[list[dict[str, Any]]], object], said: str
) -> None:
    record = json.loads(counted.read_text())
    change(record["tokens"]["datasets"])
    counted.write_text(json.dumps(record))
    done = toc("report", counted)
    assert (done.code, said in " ".join(done.err.split())) == (3, True), done.err
