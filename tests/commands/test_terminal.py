"""What a file calls itself reaches a terminal as text: every sink of the program is walked with names that would move the cursor."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from cli import make_checkpoint, make_features, toc
from report.run_records import build_record
from toc_cli.commands import output, run, tables
from toc_cli.commands.output import Output
from toc_cli.errors import InputError
from toc_cli.report import terminal
from toc_cli.report.assembly import assemble
from toc_cli.report.reading import Run

ROOM = Path(output.__file__).resolve().parent.parent
HOSTILE = (
    "\x1b]0;owned\x07", "\x1b]8;;http://evil\x1b\\click", "\x1b[2J", "\x9b2J", "\x07", "\r",
    "\u202egnp.exe", "[bold red]x[/]", "\ud800", "\x7f",
)  # fmt: skip
OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and cursor moves that rich writes for itself; clearing the screen is none of them."""


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def screen() -> Iterator[Terminal]:
    """stdout and stderr as one terminal."""
    both = Terminal()
    colours = mock.patch.dict(os.environ, {"TERM": "xterm-256color"})
    with colours, contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
        os.environ.pop("NO_COLOR", None)
        yield both


def progress(name: str) -> None:
    with Output().progress(f"comparing on {name}", 10) as advance:
        advance(5)


def careless_bar(name: str) -> None:
    with Progress(TextColumn("{task.description}", markup=False), console=Output().err) as bar:
        bar.add_task(name, total=1)


def careless_table(name: str) -> None:
    table = Table(title=Text(name))
    table.add_column(Text(name))
    table.add_row(Text(name))
    Output().result({}, table, Text(name))


def inspected(name: str) -> None:
    book = {
        "id": 0, "key": name, "family": name, "evidence": name, "metric": name, "dtype": name, "residual": False, "projection": None,
        "ema_twins": [name], "neighbours": [name], "copies": [name], "emit": {"codebook": "", "sliced": name}, "levels": 1, "heads": 1,
        "num_codes": [4], "dim": 4, "reading": {"evidence": name, "why": name, "doubts": [name]},
    }  # fmt: skip
    found = {"path": name, "container": name, "tensors": 1, "codebooks": [book]}
    Output().result(found, *tables.inspect_tables(found))


def quantised(name: str) -> None:
    row = {
        "name": name,
        "shape": [1],
        "dtype": name,
        "rows": 1,
        "used_codes": 1,
        "codes": 1,
        "perplexity": 1.0,
        "tuples": None,
    }
    each = {"head": 0, "used_codes": 1, "codes": 1, "perplexity": 1.0, "entropy_bits": 0.0, "bits_per_token": 0.0}
    row["tables"] = [{"level": level, **each} for level in range(2)]
    Output().result({}, tables.tokens_table({"output": name, "datasets": [row]}))


def reported(name: str) -> None:
    made = build_record()
    made["codebooks"][0] |= {"key": name, "family": name}
    made["warnings"] = []
    Output().result({}, terminal.render(assemble([Run(name, made)])))


SINKS: dict[str, Callable[[str], None]] = {
    "complain": lambda name: output.complain(InputError(name, name)),
    "say": lambda name: Output().say(name),
    "warn": lambda name: Output().warn(name),
    "text": lambda name: Output().text(name),
    "json": lambda name: Output(as_json=True).result({"name": name}),
    "progress": progress,
    "careless bar": careless_bar,
    "careless table": careless_table,
    "inspect": inspected,
    "quantize": quantised,
    "report": reported,
}


@pytest.mark.parametrize("sink", SINKS)
def test_no_name_reaches_a_terminal_as_anything_but_text(sink: str) -> None:
    with screen() as both:
        for name in HOSTILE:
            SINKS[sink](f"model{name}.h5")
    shown = both.getvalue()
    assert "model" in shown
    left = OWN.sub("", shown.replace("\x1b[2K", "").replace("\r", "") if "bar" in sink or sink == "progress" else shown)
    assert not [c for c in left if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c in "\u202e\ud800"]
    assert "\x1b[2J" not in shown


def test_consoles_and_streams_are_opened_behind_the_door_only() -> None:
    opened = re.compile(r"\bConsole\(|\bprint\(|sys\.std(out|err)\b|typer\.echo\(")
    found = {
        str(path.relative_to(ROOM))
        for path in ROOM.rglob("*.py")
        if any(
            opened.search(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if "console.print(" not in line
        )
    }
    measured = {
        "fcid/bench.py",
        "bench/features.py",
        "bench/growth.py",
    }  # programs of processes whose output is read, not shown
    assert found <= {"commands/output.py", "commands/__init__.py"} | measured


def test_a_run_on_hostile_names_draws_only_text(tmp_path: Path) -> None:
    """The whole program on a terminal, progress bars included."""
    make_checkpoint(tmp_path / "model.safetensors")
    rows = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    make_features(tmp_path / "feats.h5", **{"\x1b]0;owned\x07\x1b[2Jx": rows})
    words = ["toc", "optimize", str(tmp_path / "model.safetensors"), "--features", str(tmp_path / "feats.h5")]
    with screen() as both, mock.patch("sys.argv", words):
        code = run()
    shown = both.getvalue()
    assert code == 0, shown
    assert "owned" in shown
    assert not [bad for bad in ("\x1b]0;", "\x1b[2J", "\x07") if bad in shown]


def test_names_in_errors_are_text(tmp_path: Path) -> None:
    done = toc("inspect", tmp_path / "no\x1b[2J\x07such.h5")
    assert done.code == 3
    assert "\x1b" not in done.err
    assert "\x07" not in done.err
