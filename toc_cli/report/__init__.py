"""A run record, drawn for people and held to bounds for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toc_cli.lazy import names_from

if TYPE_CHECKING:
    from toc_cli.report.assembly import Report, assemble
    from toc_cli.report.reading import Run, read_run
    from toc_cli.report.run import report_runs

__all__ = ["Report", "Run", "assemble", "read_run", "report_runs"]

__getattr__ = names_from(
    __name__,
    {"Report": "assembly", "Run": "reading", "assemble": "assembly", "read_run": "reading", "report_runs": "run"},
)
