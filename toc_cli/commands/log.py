"""`-v` and `--log-level`: what a run does beside its results, as dim lines on stderr."""

from __future__ import annotations

import logging
from collections.abc import Sequence

LEVELS = ("debug", "info", "warning", "error")


def hoist(words: Sequence[str]) -> list[str]:
    """The command line with `-v`, `-vv`, `--verbose` and `--log-level` before the command, so that they may stand anywhere."""
    first: list[str] = []
    rest: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        if word in ("-v", "-vv", "--verbose") or word.startswith("--log-level="):
            first.append(word)
        elif word == "--log-level":
            first += [word, *words[:1]]
            words = words[1:]
        else:
            rest.append(word)
    return first + rest


def listen(level: str) -> None:
    """Show what is logged at `level` and above."""
    from toc_cli.commands.output import Output

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            Output().say(self.format(record))

    handler = Lines()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
