"""Where the shared test material lies, and one thread-count for the whole suite."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # a busy machine is no fault of what is tested

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # started in a shell's background: programs under test would inherit it

ROOT = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, name: str) -> Path | None:
    """The folder of `variable`, else `../shared/<name>` beside the checkout; None where neither stands."""
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / name)
    return folder if folder.is_dir() else None


def fixture_entries(folder: Path | None) -> list[dict[str, Any]]:
    """The entries of a collection's manifest; pickles of k-means, refused when it was written, are read since,
    and numbered tables of no known family ask how they stack.
    """
    entries = json.loads((folder / "manifest.json").read_text())["fixtures"] if folder else []
    table = {"key": "cluster_centers_", "levels": 1, "level": 0, "heads": 1, "head": 0, "num_codes": 32, "dim": 16,
             "metric": "euclidean", "dtype": "float32", "stored_shape": [32, 16]}  # fmt: skip
    since = {"containers/codebooks.npz": {"expect": "refuse"}}
    since |= {e["path"]: {"expect": "ok-inert", "codebooks": [table]} for e in entries if "joblib" in e["kind"]}
    return [{**entry, **since.get(entry["path"], {})} for entry in entries]


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    folder = shared_folder("TOC_GOLDEN", "golden")
    if folder is None:
        pytest.skip("golden data is not here: set TOC_GOLDEN to its folder")
    return folder


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    folder = shared_folder("TOC_FIXTURES", "fixtures")
    if folder is None:
        pytest.skip("checkpoint fixtures are not here: set TOC_FIXTURES to their folder")
    return folder
