"""The shipped schemas accept what the tool writes and refuse, in one sentence, what only looks like it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from toc_cli.errors import InputError
from toc_cli.report import Run, assemble, machine, read_run, schema
from toc_cli.report.checks import parse


@pytest.mark.parametrize("kind", ["record", "report"])
def test_schemas_are_schemas(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema.load(kind))


def test_records_and_reports_validate(record: dict[str, Any], deep_record: dict[str, Any]) -> None:
    for each in (record, deep_record):
        schema.validate(each)
        checks = [parse("token_agreement>=0.5"), parse("distortion<=baseline", "warn")]
        report = assemble([Run("r.toc.json", each)], checks, Run("old.toc.json", each))
        schema.validate(machine.data(report), "report")


BREAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version": lambda r: r.update(schema_version=3),
    "no codebooks": lambda r: r.pop("codebooks"),
    "string for a number": lambda r: r["codebooks"][0]["after"].update(snr_db="high"),
    "huge integer": lambda r: r["codebooks"][0]["after"].update(distortion=10**400),
    "kept beyond dim": lambda r: r["codebooks"][0].update(kept=[[[24]]]),
    "more kept than there are": lambda r: r["codebooks"][0].update(kept_dim=25),
    "score too long": lambda r: r["codebooks"][0].update(score=[[[0.0] * 25]]),
    "curve too short": lambda r: r["codebooks"][0]["sweep"]["criteria"]["toc"]["snr_db"].pop(),
    "not base64": lambda r: r["codebooks"][0]["figures"][0]["cosine"].update(before="!"),
    "triangle too small": lambda r: r["codebooks"][0]["figures"][0]["cosine"].update(after="AAAA"),
    "map of different lengths": lambda r: r["codebooks"][0]["figures"][0]["pca_map"]["x"].pop(),
    "ranks of different lengths": lambda r: r["codebooks"][0]["figures"][0]["rank_frequency"]["before"].pop(),
    "spectrum of different lengths": lambda r: r["codebooks"][0]["figures"][0]["spectrum"]["after"]["rank"].pop(),
    "interval of three": lambda r: r["codebooks"][0]["ci95"]["after"].update(token_agreement=[0, 1, 2]),
    "nine figures": lambda r: r["codebooks"][0].update(figures=r["codebooks"][0]["figures"] * 9),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_contradicts_itself_is_refused(record: dict[str, Any], save: Callable[..., Path], name: str) -> None:
    BREAKS[name](record)
    with pytest.raises(InputError) as error:
        read_run(save(record))
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not text"),
        (b"[]", "Not a record"),
        (b'{"schema_version": 1}', "Not a record"),
        (b"1" * 5000, "not JSON"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.toc.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_run(path)


@pytest.mark.parametrize("version", [1, 2])
def test_records_of_both_versions_are_read(record: dict[str, Any], save: Callable[..., Path], version: int) -> None:
    assert read_run(save(record | {"schema_version": version})).record["schema_version"] == version


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toc.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_run(path)


def test_numbers_survive_the_file(record: dict[str, Any], save: Callable[..., Path]) -> None:
    assert read_run(save(record)).record == json.loads(json.dumps(record))
