"""What pruning does to what the model puts out, as one table and a row of samples that every format shows alike."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toc_cli.report.evaluation import Line, Sheet
from toc_cli.report.metrics import METRICS
from toc_cli.report.tables import Cell
from toc_cli.report.words import interval, number
from toc_cli.report.words import name as shown

MEASURES = ("psnr_db", "ssim", "si_sdr_db", "log_mel_db")
MIME = {"image": ("image/png", b"\x89PNG\r\n\x1a\n"), "sound": ("audio/flac", b"fLaC")}
MOST_SAMPLES = 8


@dataclass(frozen=True)
class Sample:
    """One file before and after: captions and addresses of what can be seen or heard."""

    name: str
    sides: tuple[tuple[str, str], ...]


def sheet(record: Mapping[str, Any]) -> Sheet | None:
    """The table; None where no data was decoded."""
    found = record.get("outcome")
    if not found:
        return None
    modes = list(found["forms"])
    rows = [
        Line(
            "Change of the output",
            (Cell("–"), *(_cell(found["forms"][m].get("output_snr_db"), "output_snr_db") for m in modes)),
        )
    ]
    for measure in MEASURES:
        if measure in found["before"]:
            cells = [_cell(found["before"][measure], measure)]
            for mode in modes:
                form = found["forms"][mode]
                changed = form.get(f"{measure}_change") or {}
                text = number(form[measure]["value"], METRICS[measure].unit)
                bounds = interval(changed.get("ci95"), METRICS[f"{measure}_change"].unit)
                cells.append(Cell(text, f"change {_signed(changed.get('value'), measure)} {bounds}".rstrip()))
            rows.append(Line(METRICS[measure].label, tuple(cells)))
    codec = f"{shown(found['model'], 60)} ({shown(found['library'], 60)})"
    text = (
        f"{found['files']:,} files of {shown(found['data'])} through {codec}, decoded before and after. Change of the output: "
        "signal to noise of after against before, higher is less change. The others compare with the data."
    )
    head = ("", "before", *(shown(mode, 20) for mode in modes))
    return Sheet("What comes out", text, head, tuple(rows))


def _cell(value: Mapping[str, Any] | None, name: str) -> Cell:
    if value is None:
        return Cell("–")
    unit = METRICS[name].unit
    return Cell(number(value["value"], unit), interval(value["ci95"], unit))


def _signed(value: float | None, measure: str) -> str:
    text = number(value, METRICS[f"{measure}_change"].unit)
    return f"+{text}" if value is not None and value > 0 else text


def samples(record: Mapping[str, Any]) -> list[Sample]:
    """The pictures or sounds that the record keeps, as data addresses; anything else in their place is left out."""
    found = record.get("outcome") or {}
    mime, magic = MIME.get(found.get("kind", ""), ("", b""))
    kept = []
    for sample in (found.get("samples") or ())[:MOST_SAMPLES]:
        sides = []
        for caption in ("input", "before", *found["forms"]):
            try:
                data = base64.b64decode(sample.get(caption, ""), validate=True)
            except (binascii.Error, ValueError, TypeError):
                continue
            if mime and data.startswith(magic):
                sides.append((shown(caption, 20), f"data:{mime};base64,{base64.b64encode(data).decode()}"))
        if sides:
            kept.append(Sample(shown(sample.get("name", ""), 60), tuple(sides)))
    return kept


def render(record: Mapping[str, Any]) -> list[RenderableType]:
    """The table in a terminal."""
    found = sheet(record)
    if found is None:
        return []
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, column in enumerate(found.head):
        table.add_column(Text(column), justify="right" if index else "left")
    for line in found.rows:
        table.add_row(Text(line.label), *(Text(cell.text) for cell in line.cells))
    return [Text(f"{found.title}: {found.text}", style="dim"), Padding(table, (0, 0, 1, 0))]
