"""The bundled data, and the road that `toc demo` walks on it: a tokenizer of pictures made smaller, then FCID's codes from sight
to sound, before and after."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toc_cli.demo import avdigits, digits
from toc_cli.demo.choice import DemoChoice
from toc_cli.errors import UsageError
from toc_cli.fcid.evaluation import Progress
from toc_cli.fcid.trainer import Watcher
from toc_cli.io.atomic import atomic_file
from toc_cli.report.assembly import assemble
from toc_cli.report.html import render
from toc_cli.report.reading import Run

CHECKPOINT, FEATURES, AVDIGITS = digits.CHECKPOINT, digits.FEATURES, avdigits.DATA
COMMANDS = (
    "toc inspect MODEL",
    "toc capture MODEL PHOTOS_OR_SOUND -o feats.h5",
    "toc optimize MODEL --features feats.h5 --criterion auto --keep auto --max-distortion 0.01",
)
"""The same on a model of one's own."""


def run_demo(
    folder: Path, choice: DemoChoice, *, progress: Progress, watcher: Watcher | None = None
) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Walk both roads in `folder`; a `watcher` looks on while FCID is trained anew.

    Returns the run records by name, the digits' first, and the files written. UsageError if the folder has something in it and
    not `choice.force`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not choice.force:
        raise UsageError(f"{folder} exists and is not empty.", "--force writes into it; -o names another.")
    records, files = digits.walk(folder, choice, lambda title, total: progress(title, total, "rows"))
    more, others = avdigits.walk(folder / "avdigits", choice, progress, watcher)
    records |= more
    return records, [*files, *others, *_page(folder, records)]


def _page(folder: Path, records: dict[str, dict[str, Any]]) -> list[Path]:
    """The report as a page, where the extra `report` is installed."""
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        return []
    page = folder / "report.html"
    with atomic_file(page) as temporary:
        runs = [Run(name, record) for name, record in records.items()]
        temporary.write_text(render(assemble(runs)), encoding="utf-8")
    return [page]
