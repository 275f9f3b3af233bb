"""Every file of a fixture collection gives what its manifest expects: one test per entry, whatever the collection."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import fixture_entries, shared_folder
from toc_cli.errors import TocError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.io.families.base import Codebook

FOLDER = shared_folder("TOC_FIXTURES", "fixtures")
ENTRIES = fixture_entries(FOLDER)
FOUND = ("ok", "ok-inert", "warn", "bad-values")
PAYLOAD = "TOC-FIXTURE-PAYLOAD-EXECUTED"


@pytest.fixture(params=ENTRIES or [None], ids=lambda entry: entry["path"] if entry else "none")
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param is None:
        pytest.skip("checkpoint fixtures are not here: set TOC_FIXTURES to their folder")
    return request.param


def test_fixture(entry: dict[str, Any], fixtures_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fixtures_dir / entry["path"]
    if entry["expect"] in FOUND:
        ckpt = open_checkpoint(path)
        books = detect(ckpt)
        assert_books(ckpt, books, entry)
        written = [
            mode for mode in ("masked", "sliced", "consumer") for book in books if not emit.supported(ckpt, book)[mode]
        ]
        assert not (entry["expect"] == "ok-inert" and written)
    elif entry["expect"] == "hostile":
        code = 3
        try:
            detect(open_checkpoint(path))
        except TocError as error:
            code = error.exit_code
        assert code == 3
    else:
        with pytest.raises(TocError) as caught:
            detect(open_checkpoint(path))
        assert caught.value.exit_code == 3
        assert Path(entry["path"]).name in str(caught.value)
    assert PAYLOAD not in "".join(capfd.readouterr())


def assert_books(ckpt: Checkpoint, books: list[Codebook], entry: dict[str, Any]) -> None:
    """Exactly the codebooks of the entry, each with its shape, heads, metric, dtype and effective codes."""
    sections = re.match(r'(?:\["[^"]+"\])*', entry["nesting"])  # a remark may follow
    nesting = re.findall(r'"([^"]+)"', sections.group() if sections else "")
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in entry["codebooks"]:
        for key in stored_keys(row):
            wanted.setdefault("/".join([*nesting, key]), []).append(row)
    places = [
        (key, book, level)
        for book in books
        for level, heads in enumerate(book.keys)
        for key in dict.fromkeys(as_listed(book, key, wanted) for key in heads)
    ]
    assert {key for key, _, _ in places} <= set(wanted)
    assert {row["key"] for row in entry["codebooks"]} == {row["key"] for key, _, _ in places for row in wanted[key]}
    for key, book, level in places:
        assert_level(ckpt, book, level, wanted[key], entry)


def assert_level(
    ckpt: Checkpoint, book: Codebook, level: int, rows: list[dict[str, Any]], entry: dict[str, Any]
) -> None:
    """One level of a codebook is what its row of the manifest says; one tensor of several levels may have a row or several."""
    expected = next((row for row in rows if row["level"] == level), rows[0])
    assert (book.num_codes[level], book.dim) == (expected["num_codes"], expected["dim"])
    assert book.dtype == expected["dtype"]
    assert book.heads == expected.get("groups", expected["heads"])
    unlike = len({row["dim"] for row in entry["codebooks"]}) > 1  # levels of several widths stand alone
    if isinstance(expected["level"], int) and "pruned" not in entry["family"] and not unlike:
        assert book.levels == expected["levels"]
        assert level == expected["level"] or len({book.keys[0][0], book.keys[level][0]}) == 1
    assert metric_fits(book, expected["metric"])
    tables = book.parts(ckpt).tables
    assert len(tables) == (book.exact_levels or book.levels)
    if level < len(tables):
        assert tables[level].shape == (book.heads, book.num_codes[level], book.dim)
        assert torch.isfinite(tables[level].float()).all() or entry["expect"] == "bad-values"


def as_listed(book: Codebook, key: str, wanted: dict[str, list[dict[str, Any]]]) -> str:
    """The key under which the manifest lists a table: its own, or that of a copy that is edited along."""
    twins = [copy + key.removeprefix(book.root) for copy in book.copies]
    return next((name for name in (key, *twins) if name in wanted), key)


def stored_keys(book: dict[str, Any]) -> list[str]:
    """The tensors under which a codebook may be listed: its key, or what it is computed from."""
    return book.get("stored_keys", [book["key"]])


def metric_fits(book: Codebook, said: str) -> bool:
    if said in ("unknown", "as source"):
        return True
    if "still euclidean" in said:  # of the search, not of the encoding
        return book.metric == "euclidean"
    return book.metric == ("logits" if "logits" in said else said.split(" ")[0])


def test_every_word_of_the_manifest_is_known() -> None:
    assert {entry["expect"] for entry in ENTRIES} <= {*FOUND, "no-codebook", "refuse", "damaged", "hostile"}
