"""Records that several test files read, built once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from report.run_records import build_record

Save = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="session")
def built() -> dict[str, Any]:
    return build_record()


@pytest.fixture
def record(built: dict[str, Any]) -> dict[str, Any]:
    """A record of one codebook and two modalities; a fresh copy to change."""
    return copy.deepcopy(built)


@pytest.fixture(scope="session")
def deep_record() -> dict[str, Any]:
    """Three residual levels, three modalities, dead dimensions."""
    return build_record(
        levels=3, modalities=("audio", "video", "text"), dead=2, codes=32, dim=16, rows=300, sweep=False
    )


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(record: dict[str, Any], name: str = "model.toc.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
        return path

    return write
