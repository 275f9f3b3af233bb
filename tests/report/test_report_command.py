"""`toc report` through the installed console script: exit codes 0 to 4, stdout and stderr apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toc_cli.errors import OutputError, UsageError
from toc_cli.report import report_runs, schema

TOC = Path(sys.executable).parent / "toc"
Save = Callable[..., Path]

pytestmark = pytest.mark.skipif(not TOC.exists(), reason="the console script is not installed: pip install -e .")


def toc(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", **environment}
    command = [str(TOC), "report", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_0_newest_record_in_the_terminal(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    old = save(record, "old.toc.json")
    os.utime(old, (1, 1))
    save(record, "new.toc.json")
    done = toc(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Do not ship this selection: it costs +")
    assert "new.toc.json" in done.stdout
    assert "\x1b" not in done.stdout


def test_1_a_check_failed(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    save(record)
    done = toc(tmp_path, "model.toc.json", "--check", "token_agreement>=1", "--format", "junit:j.xml,github,md:r.md")
    assert done.returncode == 1
    measured = "model.toc.json, codebook 0 quantizer.codebook: token_agreement is "
    assert done.stdout.startswith(f"::error title=toc token_agreement::{measured}")
    assert done.stderr.startswith(f"Written: j.xml\nWritten: r.md\nerror: 1 check fails: {measured}")
    assert done.stderr.endswith("; asked: >= 100%.\n--exit-zero reports without failing.\n")
    assert "<failure" in (tmp_path / "j.xml").read_text()
    assert toc(tmp_path, "--check", "token_agreement>=1", "--exit-zero", "-q").returncode == 0


def test_2_usage(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    save(record)
    done = toc(tmp_path, "--check", "token_agreemnt>=0.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: No number is called 'token_agreemnt' in this record.\nDid you mean token_agreement?"
    )


def test_3_input(tmp_path: Path) -> None:
    (tmp_path / "x.toc.json").write_text("[1, 2]")
    done = toc(tmp_path, "x.toc.json")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: x.toc.json: Not a record of a schema this toc reads: ")


def test_4_output(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    save(record)
    done = toc(tmp_path, "--format", "md:missing/r.md")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: missing/r.md could not be written: ")


def test_json_on_stdout_is_the_report(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    save(record)
    done = toc(tmp_path, "--json")
    schema.validate(json.loads(done.stdout), "report")


# What follows needs no process: the library function behind the command.


@pytest.mark.parametrize(
    "formats",
    [["pdf:x.pdf"], ["md", "json"], ["md:a", "json:a"], [":x"]],
    ids=["unknown", "two on stdout", "one file", "no kind"],
)
def test_formats_that_cannot_be_meant(record: dict[str, Any], save: Save, formats: list[str]) -> None:
    with pytest.raises(UsageError):
        report_runs([save(record)], formats=formats)


def test_nothing_is_overwritten_unasked(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    path, target = save(record), tmp_path / "r.md"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        report_runs([path], formats=[f"md:{target}"])
    with pytest.raises(UsageError, match="is an input"):
        report_runs([path], formats=[f"json:{path}"], force=True)
    assert target.read_text() == "mine"
    report_runs([path], formats=[f"md:{target}"], force=True)
    assert target.read_text().startswith("## ")


def test_nothing_half_written_is_left(
    tmp_path: Path, record: dict[str, Any], save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(record)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device"):
        report_runs([path], formats=[f"md:{tmp_path / 'r.md'}"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_baseline_is_made_held_and_renewed(tmp_path: Path, record: dict[str, Any], save: Save) -> None:
    old, new = tmp_path / "baseline.toc.json", save(record, "new.toc.json")
    first = report_runs([new], baseline=old, update_baseline=True, expressions=["distortion<=baseline*1.01"])
    assert first.report.status == "open"
    assert old.read_bytes() == new.read_bytes()
    record["codebooks"][0]["after"]["distortion"] *= 2
    save(record, "new.toc.json")
    worse = report_runs([new], baseline=old, update_baseline=True, expressions=["distortion<=baseline*1.01"])
    assert worse.report.status == "fail"
    assert worse.notes[-1].endswith("stays as it was: a check fails.")
    assert old.read_bytes() != new.read_bytes()
    report_runs([new], baseline=old, update_baseline=True, expressions=["distortion<=baseline*2"])
    assert old.read_bytes() == new.read_bytes()


@pytest.mark.parametrize(
    "kwargs", [{"update_baseline": True}, {"update_baseline": True, "baseline": Path("b"), "two": True}]
)
def test_update_baseline_needs_one_record_and_a_place(
    record: dict[str, Any], save: Save, kwargs: dict[str, Any]
) -> None:
    paths = [save(record)] * (2 if kwargs.pop("two", False) else 1)
    with pytest.raises(UsageError, match="--update-baseline needs"):
        report_runs(paths, **kwargs)


def test_no_record_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"No \*\.toc\.json in"):
        report_runs()


def test_missing_extra_is_named(record: dict[str, Any], save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(record)
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UsageError, match=r"pip install 'toc-cli\[report\]'"):
                report_runs([path], formats=["html"])
    report_runs([path], formats=["md"])
