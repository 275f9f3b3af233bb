"""Where the shared test material lies, and one thread-count for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, name: str) -> Path | None:
    """The folder of `variable`, else `../shared/<name>` beside the checkout; None where neither stands."""
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / name)
    return folder if folder.is_dir() else None


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
