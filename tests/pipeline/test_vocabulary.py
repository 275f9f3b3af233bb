"""`--vocab`: a language model loses the rows of the codes that went, and goes on with the tokens that stayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli import toc
from toc_cli.pipeline.vocabulary import Rows, parse_vocab
from toc_cli.report.schema import validate

CODES, DIM, TEXT, AFTER = 24, 6, 5, 2
"""The vocabulary: tokens of text, then the codes, then two special ones."""


def tables(here: Path) -> None:
    """A table of which every third code is dead, and features near the others."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(CODES, DIM, generator=generator)
    save_file({"quantize.embedding.weight": codes}, here / "vq.safetensors")
    alive = torch.tensor([id for id in range(CODES) if id % 3 != 2])
    chosen = torch.cat([alive, alive[torch.randint(0, len(alive), (500,), generator=generator)]])
    np.save(here / "x.npy", (codes[chosen] + 0.01 * torch.randn(len(chosen), DIM, generator=generator)).numpy())


def llama(here: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    rows = TEXT + CODES + AFTER
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=rows - 2, eos_token_id=[rows - 1, 0], pad_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(here / "lm")
    return model


def optimize(here: Path, *flags: str) -> dict[str, Any]:
    given = ("optimize", "vq.safetensors", "--features", "x.npy", "--keep", "1.0", "--assume", "--metric", "euclidean")
    done = toc(*given, "-o", "m.toc.safetensors", *flags, cwd=here)
    assert done.code == 0, done.err
    record = json.loads((here / "m.toc.json").read_text())
    validate(record)
    return record


def test_a_language_model_runs_with_the_tokens_that_stay(tmp_path: Path) -> None:
    tables(tmp_path)
    model = llama(tmp_path)
    named = [f"lm:{key}@{TEXT}" for key in ("model.embed_tokens.weight", "lm_head.weight")]
    record = optimize(tmp_path, "--codes", "used", "--vocab", named[0], "--vocab", named[1])
    gone, rows = CODES // 3, TEXT + CODES + AFTER
    about = record["vocab"]
    assert [table["rows"] for table in about["tables"]] == [[rows, rows - gone]] * 2
    assert (about["file"], about["changed_tokens"]) == ("lm", 0.0)
    assert about["config"] == {
        "vocab_size": rows - gone, "bos_token_id": rows - gone - 2, "eos_token_id": [rows - gone - 1, 0],
    }  # fmt: skip
    texts = [warning["text"] for warning in record["warnings"] if warning["id"] == "vocab"]
    assert len(texts) == 1
    assert "tokens after the codes have new ids" in texts[0]
    after = type(model).from_pretrained(tmp_path / "m.vocab").eval()
    maps = load_file(tmp_path / "m.toc.safetensors")["0.code_map"][0, 0]
    alive = (maps >= 0).nonzero().flatten()
    old = torch.cat([torch.tensor([0, 3]), TEXT + alive, torch.tensor([rows - 1])])
    new = torch.cat([torch.tensor([0, 3]), TEXT + maps[alive], torch.tensor([rows - gone - 1])])
    with torch.no_grad():
        before, now = model(old[None]).logits[0], after(new[None]).logits[0]
    assert torch.equal(before[:, old], now[:, new])  # the same scores for every token that stayed
    assert not {path.name for path in tmp_path.iterdir()} & {"lm.vocab", "m.sliced"}


def test_merged_codes_share_a_mean_by_usage(tmp_path: Path) -> None:
    tables(tmp_path)
    rows = torch.randn(TEXT + CODES, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
    save_file({"e": rows, "head.bias": rows[:, 0].contiguous(), "other": torch.ones(2)}, tmp_path / "lm.safetensors")
    record = optimize(tmp_path, "--codes", "9", "--vocab", f"lm.safetensors:e@{TEXT}")
    tensors, cut = load_file(tmp_path / "m.toc.safetensors"), load_file(tmp_path / "m.vocab.safetensors")
    maps, codes = tensors["0.code_map"][0, 0], load_file(tmp_path / "vq.safetensors")["quantize.embedding.weight"]
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    usage = torch.bincount(torch.cdist(x, codes).argmin(1), minlength=CODES).double()
    assert torch.equal(cut["e"][:TEXT], rows[:TEXT])
    for new in range(9):
        members = (maps == new).nonzero().flatten()
        mean = (usage[members, None] * rows[TEXT + members].double()).sum(0) / usage[members].sum()
        assert torch.equal(cut["e"][TEXT + new], mean.bfloat16())
    assert torch.equal(cut["other"], torch.ones(2))
    changed = (
        usage[[int((maps == maps[id]).sum()) > 1 and int(maps[id]) >= 0 for id in range(CODES)]].sum() / usage.sum()
    )
    assert record["vocab"]["changed_tokens"] == pytest.approx(float(changed))
    texts = " ".join(warning["text"] for warning in record["warnings"] if warning["id"] == "vocab")
    assert "of the tokens mean something else" in texts
    assert "left alone: head.bias" in texts


def test_levels_have_tables_or_spans_of_their_own(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = {f"layers.{level}._codebook.embed": torch.randn(1, 8, 4, generator=generator) for level in range(2)}
    save_file(levels, tmp_path / "vq.safetensors")
    np.save(tmp_path / "x.npy", torch.randn(40, 4, generator=generator).numpy())
    table = torch.arange(20.0)[:, None].repeat(1, 3)
    save_file({"a": table[:8].clone(), "b": table[:9].clone(), "flat": table.clone()}, tmp_path / "lm.safetensors")
    named = ("a#0", "b@1#1", "flat@2")
    flags = [part for name in named for part in ("--vocab", f"lm.safetensors:{name}")]
    record = optimize(tmp_path, "--codes", "5", *flags)
    cut, maps = load_file(tmp_path / "m.vocab.safetensors"), load_file(tmp_path / "m.toc.safetensors")["0.code_map"]
    assert [table["rows"] for table in record["vocab"]["tables"]] == [[8, 5], [9, 6], [20, 14]]
    for level, (key, start, into) in enumerate((("a", 0, 0), ("b", 1, 1))):
        alone = [
            id for id in range(8) if maps[level, 0, id] >= 0 and int((maps[level, 0] == maps[level, 0, id]).sum()) == 1
        ]
        for id in alone:
            new = int(maps[level, 0, id])
            assert cut[key][into + new, 0] == start + id
            assert cut["flat"][2 + 5 * level + new, 0] == 2 + 8 * level + id
    assert cut["flat"][-2:, 0].tolist() == [18, 19]


def test_tables_inside_the_checkpoint_go_with_its_sliced_form(tmp_path: Path) -> None:
    tables(tmp_path)
    model = load_file(tmp_path / "vq.safetensors") | {"gen_embed.weight": torch.randn(CODES, 7)}
    save_file(model, tmp_path / "vq.safetensors")
    flags = ("--codes", "used", "--vocab", "gen_embed.weight", "--codebook", "quantize.embedding.weight")
    record = optimize(tmp_path, *flags, "--emit", "sliced")
    cut = load_file(tmp_path / "m.sliced.safetensors")
    ids = load_file(tmp_path / "m.toc.safetensors")["0.code_ids"][0, 0]
    assert torch.equal(cut["gen_embed.weight"], model["gen_embed.weight"][ids])
    assert torch.equal(cut["quantize.embedding.weight"], model["quantize.embedding.weight"][ids])
    assert record["vocab"]["file"] is None
    assert not (tmp_path / "m.vocab.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--vocab", "lm.safetensors:e"), 2, "--vocab follows a cut of codes"),
        (("--codes", "used", "--vocab", "lm.safetensors:none"), 3, "has no tensor 'none'"),
        (("--codes", "used", "--vocab", "lm.safetensors:e@9"), 2, "would end at row 33 of e, which has 29"),
        (("--codes", "used", "--vocab", "lm.safetensors:e#3"), 2, "#3 is no level"),
        (("--codes", "used", "--vocab", "lm.safetensors:ids"), 3, "no table with a row per token"),
        (("--codes", "used", "--vocab", "quantize.embedding.weight"), 2, "Add --emit sliced"),
        (("--codes", "used", "--vocab", "lm.safetensors:e", "--vocab", "x"), 2, "several files"),
        (("--codes", "used", "--vocab", "lm.safetensors:e", "--vocab", "lm.safetensors:e@3"), 2, "overlap"),
        (("--codes", "used", "--vocab", "named:e"), 2, "a vocabulary_map of its own"),
        (("--codes", "used", "--emit", "consumer"), 2, "leaves every token as it was"),
        (("--codes", "1"), 2, "leaves one code"),
    ],
)
def test_what_cannot_be_is_refused(flags: tuple[str, ...], code: int, sentence: str, tmp_path: Path) -> None:
    tables(tmp_path)
    save_file({"e": torch.zeros(TEXT + CODES, 4), "ids": torch.arange(40)}, tmp_path / "lm.safetensors")
    (tmp_path / "named").mkdir()
    save_file({"e": torch.zeros(TEXT + CODES, 4)}, tmp_path / "named" / "model.safetensors")
    (tmp_path / "named" / "config.json").write_text('{"model_type": "chameleon", "vocabulary_map": {"IMGIMGAZ": 7}}')
    given = ("optimize", "vq.safetensors", "--features", "x.npy", "--assume", "--metric", "euclidean")
    done = toc(*given, *flags, cwd=tmp_path)
    assert (done.code, sentence in done.err) == (code, True), done.err
    assert not list(tmp_path.glob("*.toc.*"))


def test_places_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_vocab(["lm:a.b@12#3", "lm:c"]) == (Path("lm"), (Rows("a.b", 12, 3), Rows("c")))
    assert parse_vocab(["a@2"]) == (None, (Rows("a", 2),))
    assert parse_vocab(["w:0"]) == (None, (Rows("w:0"),))
    assert parse_vocab([]) == (None, ())
