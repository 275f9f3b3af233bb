"""What `toc train-fcid` shows on stderr while it runs: a bar, the loss terms, the codebooks; off a terminal, epochs as lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from toc_cli.commands.output import Output
from toc_cli.io.names import printable

if TYPE_CHECKING:
    from toc_cli.fcid.trainer import StepReport, Summary, Watcher

SMOOTHING = 0.95  # of the time of a step, for rate and remaining time


class TrainingView:
    """Draws the last `StepReport`; `live` is None where nothing may move."""

    def __init__(self, sink: Output, live: Live | None) -> None:
        self.sink, self.live = sink, live
        self.seconds = 0.0  # a step takes, smoothed
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(*columns)
        self.task = self.bar.add_task("", epoch=0, rate="")
        self.last: StepReport | None = None

    def on_step(self, report: StepReport) -> None:
        self.seconds = SMOOTHING * self.seconds + (1 - SMOOTHING) * report.seconds if self.seconds else report.seconds
        self.last = report
        if self.live:
            self.bar.update(
                self.task,
                total=report.total_steps,
                completed=report.step,
                epoch=report.epoch + 1,
                rate=self._rate(report),
            )
            self.live.update(
                Group(self.bar, values_table({"loss": report.loss, **report.terms}), values_table(report.stats))
            )

    def on_validation(self, record: dict[str, Any]) -> None:
        codes = {name: value for name, value in (self.last.stats if self.last else {}).items() if "codes" in name}
        used = ", ".join(f"{name} {value:.0f}" for name, value in codes.items())
        rate = self._rate(self.last) if self.last else ""
        self.sink.say(f"epoch {record['epoch']}: validation loss {record['loss']:.4f}; {used}; {rate}")

    def _rate(self, report: StepReport) -> str:
        left = round(self.seconds * (report.total_steps - report.step))
        rate = report.clips / max(self.seconds, 1e-9)
        return f"{rate:,.0f} clips/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"


def values_table(values: dict[str, float], across: int = 3) -> Table:
    """Named numbers, `across` beside each other."""
    table = Table.grid(padding=(0, 1))
    for _ in range(across):
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, min_width=8, style="bold")
    cells = [(name, f"{value:.4g}") for name, value in values.items()]
    for start in range(0, len(cells), across):
        table.add_row(*(cell for pair in cells[start : start + across] for cell in pair))
    return table


def summary_table(summary: Summary, folder: Path) -> Table:
    """How a run ended: where its model lies, which step it is of, and its validation loss."""
    table = Table.grid(padding=(0, 2))
    table.add_row("model", Text(printable(folder / "model.safetensors")))
    table.add_row("kept from", f"step {summary.best_step} of {summary.steps}")
    if summary.validation:
        table.add_row("validation loss", f"{summary.validation['loss']:.4f}")
    return table


@contextmanager
def watching(sink: Output) -> Iterator[Watcher]:
    """A `Watcher` that shows a run on stderr: live on a terminal, epochs elsewhere, warnings alone under `--quiet`."""
    from toc_cli.fcid.trainer import Watcher

    if sink.quiet or not sink.err.is_terminal:
        view = TrainingView(sink, None)
        yield Watcher(view.on_step, view.on_validation, sink.warn)
        return
    with Live(console=sink.err, transient=True, refresh_per_second=4) as live:
        view = TrainingView(sink, live)
        yield Watcher(view.on_step, view.on_validation, sink.warn)
