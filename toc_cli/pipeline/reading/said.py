"""What is said of how a checkpoint and its features are read: by flags, or by what was found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from toc_cli.io.names import printable

FLAGS = {"codebook": "--codebook", "layout": "--layout", "metric": "--metric", "stack": "--stack", "rows": "--rows",
         "table": "--table", "scale": "--scale", "space": "--space", "channel_axis": "--channel-axis"}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A reading as far as it is said; None (or auto) leaves a choice to the file."""

    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of `detect`."""
    space: str = "auto"
    channel_axis: int | None = None

    def changed(self, **choices: Any) -> Said:
        """The same with other choices."""
        own = {name: choices.pop(name) for name in ("space", "channel_axis") if name in choices}
        return replace(self, checkpoint={**self.checkpoint, **choices}, **own)

    def get(self, name: str) -> Any:
        """A choice by its name."""
        return getattr(self, name) if name in ("space", "channel_axis") else self.checkpoint.get(name)

    def flags(self, before: Said) -> str:
        """The flags that make this reading of another."""
        words = []
        for name, flag in FLAGS.items():
            value = self.get(name)
            if value != before.get(name) and value is not None:
                each = [value] if isinstance(value, str | int) else list(value)
                words += [f"{flag} {_quoted(str(one))}" for one in each]
        return " ".join(words)


def _quoted(text: str) -> str:
    shown = printable(text, 120)
    return f"'{shown}'" if any(mark in shown for mark in " ()*?,[]") else shown
