"""`--report FILE.html` of the commands that make a record: its page, refused early and written last."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toc_cli.errors import UsageError, missing_extra
from toc_cli.io.atomic import atomic_file, check_target


def refuse_page(page: Path | None, *, force: bool, inputs: Iterable[Path]) -> None:
    """UsageError, before any work, for a page that cannot be meant or drawn."""
    if page is None:
        return
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report {page} is no page.", "Name it FILE.html; toc report writes the other formats.")
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise missing_extra(name, "report")
    check_target(page, force=force, inputs=inputs)


def write_page(page: Path | None, name: str, record: dict[str, Any]) -> None:
    """The record's page; nothing where none is wanted."""
    if page is None:
        return
    from toc_cli.report.assembly import assemble
    from toc_cli.report.html import render
    from toc_cli.report.reading import Run

    text = render(assemble([Run(name, record)]))
    with atomic_file(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
