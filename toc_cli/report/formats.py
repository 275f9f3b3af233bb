"""The formats of a report: a row each, and the module that draws it, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toc_cli.report.assembly import Report

FORMATS = {
    "html": "toc_cli.report.html:render",
    "md": "toc_cli.report.markdown:render",
    "junit": "toc_cli.report.junit:render",
    "sarif": "toc_cli.report.sarif:render",
    "json": "toc_cli.report.machine:render",
    "github": "toc_cli.report.github:render",
}
"""`--format` -> `module:function`, from a `Report` to text."""


def drawn(kind: str, report: Report) -> str:
    """The report in one of the formats."""
    module, _, function = FORMATS[kind].partition(":")
    text: str = getattr(import_module(module), function)(report)
    return text
