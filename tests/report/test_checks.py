"""The gate: grammar, TOML, relative bounds, and what counts as failing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toc_cli.errors import CheckFailed, InputError, UsageError
from toc_cli.report import Run, assemble
from toc_cli.report.checks import Bound, from_config, parse, parse_bound

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
    "text", ["", "token_agreement", ">=1", "a>=b", "a=1", "a>=1e", "a>=baseline/2", "a >= nan", "a>=1 >=2e"]
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
    Path("toc.toml").write_text('[tool.toc.checks]\nkept_dim = ["warn", {max = 8}]\n')
    assert [c.metric for c in from_config(None)] == ["kept_dim"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[tool.toc.checks]\na = ["error"]', UsageError),
        ('[tool.toc.checks]\na = ["fatal", {min = 1}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {least = 1}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = true}]', UsageError),
        ('[tool.toc.checks]\na = ["error", {min = "x"}]', UsageError),
        ("[checks]\na = 1", UsageError),
        ("tool = 3", UsageError),
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
    assert outcome(record, "min_distance>=0")[0] == "failed"
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
    runs, checks = [Run("r.toc.json", record)], [parse("token_agreement>1", "warn")]
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
