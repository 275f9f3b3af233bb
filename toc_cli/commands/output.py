"""The one sink: results to stdout, everything else to stderr, no ANSI and no live bars off a terminal.

What goes to a terminal goes through `Door`, whoever drew it: a name out of a file cannot move the cursor there.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from toc_cli.errors import OutputError, TocError
from toc_cli.io.names import escaped, printable

Advance = Callable[[int], None]


class Door(Console):
    """A console whose text holds no control, ANSI or bidirectional characters but line ends; its own controls pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text, "\n"), segment.style)


def complain(error: TocError) -> None:
    """One or two lines on stderr: what is wrong, then what helps."""
    console = Door(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(printable(error.what, limit=2000), style="not bold default"))
    if error.hint:
        console.print(Text(printable(error.hint, limit=4000), style="dim"))


@contextmanager
def stdout_errors() -> Iterator[None]:
    """OutputError where stdout takes no more; a reader that went away is told apart from a device that is full."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"Standard output could not be written: {error.strerror or error}.",
            "Files that were named before it are whole.",
        ) from error


class Output:
    """Where a command's words go. `--json` prints the data instead of the table; `--quiet` silences all but results and errors."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Door(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.err = Door(stderr=True, highlight=False)

    def result(self, data: Any, *renderables: RenderableType) -> None:
        """The command's result: `data` as JSON under `--json`, else the tables (none under `--quiet`)."""
        if self.as_json:
            self.text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")
        elif not self.quiet:
            with stdout_errors():
                for renderable in renderables:
                    self.out.print(renderable)

    def text(self, text: str) -> None:
        """A report or JSON on stdout as it is, but for characters that a terminal would obey."""
        with stdout_errors():
            sys.stdout.write("\n".join(escaped(line, "\t") for line in text.split("\n")))

    def say(self, text: str) -> None:
        """A plain word on stderr."""
        if not self.quiet:
            self.err.print(Text(printable(text, limit=4000), style="dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning on stderr; also under `--quiet`."""
        self.err.print(Text("warning: ", style="bold yellow") + Text(printable(text, limit=4000)), soft_wrap=True)

    @contextmanager
    def progress(self, title: str, total: int, unit: str = "rows") -> Iterator[Advance]:
        """A bar with rate and remaining time on stderr, for `total` units; silent off a terminal and under `--quiet`.

        `-v` logs what was done and how long it took.
        """
        began = time.perf_counter()
        with self._bar(title, total, unit) as advance:
            yield advance
        logging.getLogger("toc").info("%s: %s %s in %.2f s", title, f"{total:,}", unit, time.perf_counter() - began)

    @contextmanager
    def _bar(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        if self.quiet or not self.err.is_terminal:
            yield lambda count: None
            return
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed or 0:,.0f} {unit}/s", style="cyan")

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            Rate(),
        )
        with Progress(*columns, TimeRemainingColumn(), console=self.err, transient=True) as bar:
            task = bar.add_task(printable(title, limit=60), total=total)
            yield lambda count: bar.advance(task, count)
