"""A run record, drawn for people and held to bounds for machines."""

from __future__ import annotations

from toc_cli.report.assemble import Report, assemble
from toc_cli.report.reading import Run, read_run
from toc_cli.report.run import report_runs

__all__ = ["Report", "Run", "assemble", "read_run", "report_runs"]
