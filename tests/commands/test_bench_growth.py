"""`toc bench growth`: the exponent that fits, and one axis through the command."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from cli import toc
from toc_cli.bench import features
from toc_cli.bench.growth import AXES, exponent, measure_growth
from toc_cli.bench.processes import BenchFailed, run_python
from toc_cli.errors import UsageError

SIZES = np.array([1000.0, 2000, 4000, 8000])


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("start", [0.0, 2.0])
def test_the_exponent_of_what_grows_beside_a_start(p: float, start: float) -> None:
    costs = start + 10 * (SIZES / SIZES[-1]) ** p
    assert exponent(SIZES.tolist(), costs.tolist()) == pytest.approx(p, abs=0.01)
    noisy = costs * (1 + 0.02 * np.random.default_rng(0).standard_normal(4))
    reference, _ = curve_fit(
        lambda n, a, b, q: a + b * (n / SIZES[-1]) ** q, SIZES, noisy, p0=[1, 10, 1], sigma=noisy,
        bounds=([0, 0, 0.05], [np.inf, np.inf, 3]), max_nfev=10_000,
    )  # fmt: skip
    assert exponent(SIZES.tolist(), noisy.tolist()) == pytest.approx(reference[2], abs=0.02)


def test_what_hardly_grows_has_none() -> None:
    assert exponent(SIZES.tolist(), [2.0, 2.1, 2.2, 2.6]) is None


def test_an_axis_in_processes_of_its_own() -> None:
    rows = measure_growth(["tensors"], shrink=1000)
    assert [row["size"] for row in rows] == [size // 1000 for size in AXES["tensors"].sizes]
    for row in rows:
        assert 0 < row["floor_seconds"] < row["cpu_seconds"]
        assert 10 << 20 < row["peak_bytes"] < 200 << 20  # its own, not that of the process that started it
    with pytest.raises(UsageError, match="no axis 'tensor'"):
        measure_growth(["tensor"])


def test_a_program_that_fails_is_told() -> None:
    with pytest.raises(BenchFailed, match=r"ended with 1: .*no such thing"):
        run_python("raise SystemExit('no such thing')")


def test_the_command_names_the_axes() -> None:
    done = toc("bench", "growth", "--axis", "hights")
    assert done.code == 2
    assert all(name in done.err for name in AXES)


def test_what_a_stored_form_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "gzip, one chunk"
    monkeypatch.setattr(features, "STORED", {name: features.STORED[name]})
    plain, gzip = features.measure_reading(2000)
    assert (plain["features"], gzip["features"]) == ("contiguous", name)
    assert gzip["ratio"] == pytest.approx(gzip["cpu_seconds"] / (gzip["decode_seconds"] + plain["cpu_seconds"]))
    monkeypatch.setattr(features, "MEASURED", {"both": features.MEASURED["both"]})
    [row] = features.measure_measuring(600)
    assert row["bound"] is None
    assert row["cpu_seconds"] > 0
