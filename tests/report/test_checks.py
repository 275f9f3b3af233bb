"""The gate: grammar, TOML, relative bounds, and what counts as failing."""

from __future__ import annotations

import copy
import html
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from toc_cli.errors import CheckFailed, InputError, UsageError
from toc_cli.report import Run, assemble, report_runs, terminal
from toc_cli.report.checks import Bound, judge, parse, parse_bound
from toc_cli.report.config import from_config
from toc_cli.report.formats import FORMATS, drawn
from toc_cli.report.reading import read_run

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    metric=st.from_regex(r"[a-z][a-z_0-9.|]{0,20}", fullmatch=True),
    sign=st.sampled_from([">=", "<=", ">", "<", "=="]),
    number=finite,
)
def test_what_is_written_is_read(metric: str, sign: str, number: float) -> None:
    check = parse(f" {metric} {sign} {number!r} ")
    assert (check.metric, check.operator, check.bound) == (metric, sign, Bound(number))


@pytest.mark.parametrize(
    ("text", "baseline", "value"),
    [
        ("0.95", None, 0.95),
        ("95%", None, 0.95),
        ("-1e-3", None, -0.001),
        (".5", None, 0.5),
        ("baseline", 2.0, 2.0),
        ("baseline - 0.5", 2.0, 1.5),
        ("baseline+50%", 2.0, 2.5),
        ("baseline * 105%", 2.0, 2.1),
        ("baseline * 2", None, None),
    ],
)
def test_bounds(text: str, baseline: float | None, value: float | None) -> None:
    found = parse_bound(text).value(baseline)
    assert found == value or (value is not None and found is not None and math.isclose(found, value))


def test_a_direction_with_an_arrow_is_a_name() -> None:
    assert parse("audio->video.probe_accuracy>=0.5").metric == "audio->video.probe_accuracy"


@pytest.mark.parametrize(
    "text", ["", "token_agreement", ">=1", "a>=True", "a>=b", "a=1", "a>=1e", "a>=baseline/2", "a >= nan", "a>=1 >=2e"]
)
def test_what_cannot_be_read_gets_the_grammar(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be read.*Write NAME"):
        parse(text)


def test_toml_table_with_levels_bounds_and_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        """
        [tool.toc.checks]
        token_agreement = ["error", {min = 0.95, max = 1}]
        excess_distortion = ["warn", {max = "baseline * 1.05"}]
        audio.token_agreement = ["error", {min = "90%"}]
        """
    )
    found = [(c.metric, c.operator, c.bound, c.level) for c in from_config(path)]
    assert found == [
        ("token_agreement", ">=", Bound(0.95), "error"),
        ("token_agreement", "<=", Bound(1.0), "error"),
        ("excess_distortion", "<=", Bound(1.05, "*"), "warn"),
        ("audio.token_agreement", ">=", Bound(0.9), "error"),
    ]


def test_toml_is_found_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_config(None) == []
    Path("pyproject.toml").write_text('[tool.toc.checks]\nstability = ["error", {min = 0.8}]\n')
    assert [c.metric for c in from_config(None)] == ["stability"]
    assert [c.source for c in from_config(None)] == ["pyproject.toml [tool.toc.checks]"]
    Path("toc.toml").write_text("[tool.toc.optimize]\nkeep = 0.5\n")
    assert [c.metric for c in from_config(None)] == ["stability"]
    Path("toc.toml").write_text('[tool.toc.checks]\nkept_dim = ["warn", {max = 8}]\n')
    with pytest.raises(UsageError, match=r"toc.toml and pyproject.toml here both have \[tool.toc.checks\]"):
        from_config(None)
    assert [c.metric for c in from_config(Path("toc.toml"))] == ["kept_dim"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[tool.toc.checks]\na = ["error"]', UsageError),
        ('[tool.toc.checks]\na = ["fatal", {min = 1}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {least = 1}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = true}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = "x"}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = "-1e999"}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = inf}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = nan}]', UsageError),
        ("[tool.toc.checks]\n", UsageError),
        ("[tool.toc.checks.a]\n", UsageError),
        ('[tool.toc.check]\na = ["error", {min = 1}]', UsageError),
        ("[tool.toc]\nchekcs = 1", UsageError),
        ('[toc.checks]\na = ["error", {min = 1}]', UsageError),
        ("[checks]\na = 1", UsageError),
        ("tool = 3", UsageError),
        ("[tool]\ntoc = 3", UsageError),
        ("[tool.toc]\nchecks = 3", UsageError),
        ("", UsageError),
        ("a = " + "[" * 20_000, InputError),
        ("a = 1" + "0" * 6000, InputError),
        ("not toml", InputError),
    ],
)
def test_toml_that_cannot_be_meant(tmp_path: Path, text: str, error: type[Exception]) -> None:
    path = tmp_path / "toc.toml"
    path.write_text(text)
    with pytest.raises(error):
        from_config(path)


def outcome(
    record: dict[str, Any], expression: str, baseline: dict[str, Any] | None = None, **kwargs: Any
) -> tuple[str, float | None]:
    old = None if baseline is None else Run("old.toc.json", baseline)
    found = assemble([Run("new.toc.json", record)], [parse(expression)], old, **kwargs).outcomes
    assert len(found) == 1
    return found[0].status, found[0].bound


def test_each_operator(record: dict[str, Any]) -> None:
    record["codebooks"][0]["after"]["token_agreement"] = 0.5
    for sign, held in ((">=", True), ("<=", True), ("==", True), (">", False), ("<", False)):
        assert outcome(record, f"token_agreement{sign}0.5")[0] == ("passed" if held else "failed")


def test_relative_bounds_use_the_baselines_number(record: dict[str, Any], built: dict[str, Any]) -> None:
    value = built["codebooks"][0]["after"]["distortion"]
    record["codebooks"][0]["after"]["distortion"] = value * 1.04
    assert outcome(record, "distortion <= baseline * 1.05", built) == ("passed", value * 1.05)
    assert outcome(record, "distortion <= baseline * 1.03", built)[0] == "failed"
    assert outcome(record, "distortion <= baseline", built)[0] == "failed"


def test_relative_bound_without_a_baseline(record: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a baseline"):
        outcome(record, "distortion<=baseline")
    assert outcome(record, "distortion<=baseline", first=True)[0] == "skipped"


def test_unknown_number_lists_those_there_are(record: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"called 'token_agreemnt'.*mean token_agreement\?.*stability.*after a prefix: audio\."
    ):
        outcome(record, "token_agreemnt>=0.9")


def test_undefined_number_fails_and_a_number_of_another_codebook_is_skipped(record: dict[str, Any]) -> None:
    record["codebooks"][0]["after"]["min_distance"] = None
    assert outcome(record, "min_distance>0")[0] == "failed"
    other = {**record["codebooks"][0], "id": 1, "key": "other"}
    del other["per_modality"]
    record["codebooks"].append(other)
    report = assemble([Run("r.toc.json", record)], [parse("audio.snr_db>=-1000")])
    assert [o.status for o in report.outcomes] == ["passed", "skipped"]


def test_baseline_of_another_checkpoint_is_an_input_error(record: dict[str, Any], built: dict[str, Any]) -> None:
    record["codebooks"][0] |= {"key": "elsewhere", "id": 7}
    with pytest.raises(InputError, match=r"has no codebook elsewhere \(it has: quantizer\.codebook\)"):
        assemble([Run("new.toc.json", record)], [], Run("old.toc.json", built))


def test_warn_level_fails_the_gate_only_when_asked(record: dict[str, Any]) -> None:
    runs, checks = [Run("r.toc.json", record)], [parse("token_agreement>=1", "warn")]
    lenient, strict = assemble(runs, checks), assemble(runs, checks, fail_on="warn")
    assert (lenient.status, strict.status) == ("warn", "fail")
    lenient.raise_failed()
    with pytest.raises(CheckFailed, match="token_agreement is"):
        strict.raise_failed()


def test_every_codebook_is_checked(record: dict[str, Any]) -> None:
    record["codebooks"].append({**record["codebooks"][0], "id": 1, "key": "second"})
    report = assemble([Run("r.toc.json", record)], [parse("kept_dim==12"), parse("kept_dim>12")])
    assert [(o.codebook, o.status) for o in report.outcomes] == [
        (0, "passed"),
        (0, "failed"),
        (1, "passed"),
        (1, "failed"),
    ]
    assert report.headline == "Do not ship: 2 of 4 checks fail."


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ("token_agreement>=95", r"Write token_agreement >= 95%\?"),
        ("excess_distortion<=2", r"Write excess_distortion <= 2%, or excess_distortion <= 200%\."),
        ("bytes_ratio<=50", r"Write bytes_ratio <= 50%, or bytes_ratio <= 5000%\."),
        ("token_agreement>=baseline-2", r"Write token_agreement >= baseline - 2%"),
        ("token_agreement>=150%", "never holds: token_agreement lies in 0% to 100%"),
        ("token_agreement>1", "never holds"),
        ("token_agreement>=0", "always holds"),
        ("audio.token_agreement<=100%", "always holds"),
        ("token_agreement<=1", "always holds"),
        ("excess_distortion>=-1", r"always holds: excess_distortion lies in -100% to any height"),
        ("dead_codes<0", "never holds"),
        ("dead_codes==-1", "never holds"),
        ("snr_db>=95%", "snr_db is no share"),
        ("distortion<=baseline+5%", r"Or is baseline \* 105% meant\?"),
    ],
)
def test_bounds_that_cannot_be_meant(record: dict[str, Any], check: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        assemble([Run("r.toc.json", record)], [parse(check)], first=True)


@pytest.mark.parametrize(
    "check",
    ["token_agreement>=95%", "token_agreement>=1", "token_agreement>0", "excess_distortion<=200%", "excess_distortion<=1", "snr_db>=95",
     "advantage_over_random_low>=0", "distortion<=baseline*1.5", "distortion<=baseline*150%", "token_agreement>=baseline-1%"],
)  # fmt: skip
def test_bounds_that_can(record: dict[str, Any], check: str) -> None:
    assemble([Run("r.toc.json", record)], [parse(check)], first=True)


@pytest.fixture
def before(built: dict[str, Any]) -> dict[str, Any]:
    """A baseline to change."""
    return copy.deepcopy(built)


def test_a_number_that_the_baseline_lacks_is_an_error(record: dict[str, Any], before: dict[str, Any]) -> None:
    del before["codebooks"][0]["after"]["min_distance"]
    report = assemble([Run("new.toc.json", record)], [parse("min_distance>=baseline*0.9")], Run("old.toc.json", before))
    assert [(o.status, o.reason) for o in report.outcomes] == [("failed", "the baseline does not have this number")]
    with pytest.raises(CheckFailed, match="the baseline does not have this number"):
        report.raise_failed()


def test_every_output_says_where_bounds_and_baseline_come_from(
    record: dict[str, Any], before: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "toc.toml").write_text(
        '[tool.toc.checks]\nstability = ["warn", {min = 0.99}]\nsnr_db = ["error", {min = -100}]\n'
    )
    before["inputs"][0]["sha256"] = "0" * 64
    checks = [parse("token_agreement>=99.99%"), *from_config(tmp_path / "toc.toml")]
    report = assemble([Run("new.toc.json", record)], checks, Run("old.toc.json", before))
    assert report.bounds.startswith("3 bounds (1 from the command line, 2 from ")
    assert report.bounds.endswith("toc.toml [tool.toc.checks]), applied 3 times to 1 codebook.")
    assert report.comparisons == (
        "new.toc.json is compared with old.toc.json, of another checkpoint (model.safetensors 00000000; "
        f"this run: model.safetensors {record['inputs'][0]['sha256'][:8]}).",
    )
    screen = Console(file=io.StringIO(), width=200)
    screen.print(terminal.render(report))
    assert isinstance(screen.file, io.StringIO)
    rendered = {name: drawn(name, report) for name in FORMATS} | {"terminal": screen.file.getvalue()}
    for name, text in rendered.items():
        plain = (
            html.unescape(re.sub("<[^>]*>", "", text))
            if name in ("html", "md")
            else html.unescape(text).replace("%25", "%")
        )
        assert "applied 3 times to 1 codebook" in plain, name
        assert "of another checkpoint" in plain, name
        assert "new.toc.json" in plain, name
        assert "quantizer.codebook" in plain, name


def test_a_baseline_on_other_features_is_refused(record: dict[str, Any], before: dict[str, Any]) -> None:
    new, old = Run("new.toc.json", record), Run("old.toc.json", before)
    before["inputs"][1]["sha256"] = "f" * 64
    with pytest.raises(UsageError, match=r"was measured on other features: feats.h5 ffffffff.*--baseline-any"):
        assemble([new], [], old)
    assert "measured on other features" in assemble([new], [], old, baseline_any=True).comparisons[0]
    before["inputs"][1] = record["inputs"][1]
    before["options"]["modalities"] = ["audio"]
    with pytest.raises(UsageError, match=r"other rows \(modalities differ\)"):
        assemble([new], [], old)


def test_a_baseline_of_another_schema_is_compared_only_when_asked(
    record: dict[str, Any], before: dict[str, Any], save: Callable[..., Path]
) -> None:
    before["schema_version"] = 99
    old, new = save(before, "old.toc.json"), save(record, "new.toc.json")
    checks = ["distortion<=baseline*1.01", "stability>=baseline"]
    with pytest.raises(InputError, match="schema this toc reads"):
        report_runs([new], baseline=old, expressions=checks)
    report = report_runs([new], baseline=old, expressions=checks, baseline_any=True).report
    assert [o.status for o in report.outcomes] == ["passed", "failed"]
    assert "whose schema this toc does not read" in report.comparisons[0]
    before["codebooks"] = [3]
    with pytest.raises(InputError):
        report_runs([new], baseline=save(before, "old.toc.json"), baseline_any=True)


def test_numbers_whose_meaning_changed_since_schema_1_are_not_compared(
    record: dict[str, Any], before: dict[str, Any]
) -> None:
    before["schema_version"] = 1
    for name, metric in (("distortion", "cosine"), ("snr_db", "cosine"), ("perplexity", "euclidean")):
        for one in (record, before):
            one["codebooks"][0] |= {"metric": metric, "levels": 1 if metric == "cosine" else 2}
        report = assemble([Run("new.toc.json", record)], [parse(f"{name}>=baseline*0.1")], Run("old.toc.json", before))
        assert report.outcomes[0].reason == "the baseline does not have this number"
        assert (
            assemble([Run("n", record)], [parse("token_agreement>=baseline")], Run("o", before)).outcomes[0].status
            == "passed"
        )


def test_records_of_one_name_go_by_their_paths(record: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "model.toc.json")
        paths[-1].write_text(json.dumps(record))
    assert [run.run.name for run in report_runs(paths).report.runs] == [str(path) for path in paths]


def test_a_relative_bound_is_shown_as_a_number_and_as_it_was_written() -> None:
    run = {"id": 0, "key": "k"}
    for text, baseline, shown in (
        ("perplexity>=3", None, "perplexity is 2; asked: >= 3"),
        ("perplexity>=baseline*2", {"perplexity": 2.0}, "perplexity is 2; asked: >= 4 (perplexity>=baseline*2)"),
        ("perplexity>=baseline", None, "perplexity is 2; asked: perplexity>=baseline: there is no baseline yet"),
    ):
        assert judge(parse(text), "r", run, {"perplexity": 2.0}, baseline).sentence() == shown


GATE = '\ntoken_agreement = ["error", {min = "95%"}]\n'


@pytest.mark.parametrize(
    "text",
    [f"[tools.toc.checks]{GATE}", f"[tool.toc_cli.checks]{GATE}", f"[tool.TOC.checks]{GATE}", f'[tool."toc.checks"]{GATE}',
     f"[tool.checks]{GATE}", GATE],
)  # fmt: skip
def test_a_misspelt_table_is_told(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toc.toml").write_text(text)
    with pytest.raises(UsageError, match=r"\[tool\.toc\.checks\]"):
        from_config(None)


@pytest.mark.parametrize("name", ["toc.toml", "pyproject.toml"])
def test_settings_that_are_no_file_are_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (lambda path: path.symlink_to("gone"), Path.mkdir):
        make(Path(name))
        with pytest.raises(InputError, match=f"{name} here is no file that can be read"):
            from_config(None)
        Path(name).unlink() if Path(name).is_symlink() else Path(name).rmdir()


def test_other_tables_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(
        "[tool.ruff.lint]\nselect = ['E']\n[tool.tox]\nx = 1\n[tool.uv.sources]\na = 1\n[project]\n"
    )
    assert from_config(None) == []


@pytest.mark.parametrize(
    "check",
    ["token_agreement>=baseline*0", "token_agreement>=baseline*-1", "token_agreement>=baseline-1", "token_agreement>=baseline-100%",
     "token_agreement<=baseline+100%", "distortion>=baseline*0", "distortion>=baseline*-2"],
)  # fmt: skip
def test_a_relative_bound_that_no_value_can_miss(record: dict[str, Any], check: str) -> None:
    with pytest.raises(UsageError, match="always holds"):
        assemble([Run("r.toc.json", record)], [parse(check)], first=True)


@pytest.mark.parametrize(
    ("metric", "sign", "number"), [("token_agreement", ">=0.9", 2.0), ("distortion", "<=3", -5.0), ("bytes", "<=3", -5)]
)
def test_an_impossible_value_fails(record: dict[str, Any], metric: str, sign: str, number: float) -> None:
    record["codebooks"][0]["after"][metric] = number
    found = assemble([Run("r.toc.json", record)], [parse(metric + sign)]).outcomes
    assert [(o.status, o.reason) for o in found] == [
        ("failed", "it cannot have this value: the record is not as it was written")
    ]


def test_a_record_is_not_its_own_baseline(record: dict[str, Any], save: Callable[..., Path], tmp_path: Path) -> None:
    path = save(record)
    with pytest.raises(UsageError, match="is its own baseline"):
        report_runs([path], baseline=path, expressions=["bytes<=baseline"])
    (tmp_path / "link.toc.json").symlink_to(path)
    with pytest.raises(UsageError, match="is its own baseline"):
        report_runs([path], baseline=tmp_path / "link.toc.json")


def test_the_newest_record_is_not_the_baseline(
    record: dict[str, Any], save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new, old = save(record, "new.toc.json"), save(record, "old.toc.json")
    os.utime(new, ns=(0, 0))
    assert [run.run.name for run in report_runs(baseline=old).report.runs] == ["new.toc.json"]
    new.unlink()
    with pytest.raises(UsageError, match="other than the baseline"):
        report_runs(baseline=old)


def test_records_that_do_not_say_their_features_are_not_compared(
    record: dict[str, Any], before: dict[str, Any]
) -> None:
    record["inputs"] = before["inputs"] = []
    with pytest.raises(UsageError, match="does not say which features"):
        assemble([Run("new.toc.json", record)], [], Run("old.toc.json", before))


def test_a_record_without_codebooks_passes_no_gate(record: dict[str, Any], before: dict[str, Any]) -> None:
    before["codebooks"] = []
    with pytest.raises(InputError, match=r"bare\.toc\.json has no codebook, so that no check applies to it"):
        assemble([Run("r.toc.json", record), Run("bare.toc.json", before)], [parse("token_agreement>=0.1")])


def test_a_name_that_stands_twice_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.toc.json"
    path.write_text(json.dumps(record).replace('"dead_codes": ', '"dead_codes": 9, "dead_codes": ', 1))
    with pytest.raises(InputError, match="'dead_codes' twice"):
        read_run(path)


@pytest.mark.parametrize("trait", ["id", "key"])
def test_codebooks_are_told_apart(record: dict[str, Any], save: Callable[..., Path], trait: str) -> None:
    other = {**record["codebooks"][0], "id": 1, "key": "other"}
    record["codebooks"].append({**other, trait: record["codebooks"][0][trait]})
    with pytest.raises(InputError, match=f"Two codebooks have one {trait}"):
        read_run(save(record))


def test_tables_of_other_tools_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.tox.checks]\nstyle = "strict"\n[tool.ty.checks]\nlevel = ["error"]\n'
    )
    assert from_config(None) == []
    (tmp_path / "pyproject.toml").write_text('[tool.tox.checks]\nperplexity = ["error", {min = 3}]\n')
    with pytest.raises(UsageError, match=r"\[tool.tox.checks\], which nothing reads"):
        from_config(None)


def test_a_codebook_compared_by_its_number_is_named(record: dict[str, Any]) -> None:
    old = copy.deepcopy(record)
    old["codebooks"][0]["key"] = "quantizer.old"
    report = assemble([Run("new.toc.json", record)], [parse("perplexity>=baseline*0.9")], Run("old.toc.json", old))
    key = record["codebooks"][0]["key"]
    assert report.comparisons[0].endswith(f"By its number, not its key: {key} with quantizer.old.")
    same = assemble(
        [Run("new.toc.json", record)], [parse("perplexity>=baseline*0.9")], Run("old.toc.json", copy.deepcopy(record))
    )
    assert "number" not in same.comparisons[0]
