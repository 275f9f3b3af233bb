"""A run record, drawn for people and held to bounds for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toc_cli.report.assembly import Report, assemble
    from toc_cli.report.reading import Run, read_run
    from toc_cli.report.run import report_runs

__all__ = ["Report", "Run", "assemble", "read_run", "report_runs"]

_ROOMS = {"Report": "assembly", "Run": "reading", "assemble": "assembly", "read_run": "reading", "report_runs": "run"}


def __getattr__(name: str) -> Any:
    """Import a room when its name is first asked for: the formats' names are known without it."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
