"""A stream that cannot say every character (cp1252, ASCII, LC_ALL=C) gets the nearest ASCII, never an error."""

from __future__ import annotations

import codecs
import os
from typing import TextIO

LOOKALIKE = {
    "✓": "+", "✗": "x", "✕": "x", "−": "-", "–": "-", "—": "-", "·": "-", "…": "...", "→": "->", "×": "x", "≥": ">=", "≤": "<=",
    "≈": "~", "±": "+-", "²": "2", "µ": "u", "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ", "█": "#",
}  # fmt: skip
HANDLER = "toc.lookalike"


def lookalike(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: ASCII that looks alike, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    return "".join(LOOKALIKE.get(c) or c.encode("unicode_escape").decode() for c in wrong), error.end


def soften(*streams: TextIO) -> None:
    """Have the streams never fail for want of a character; plain ASCII where the locale is set to C."""
    codecs.register_error(HANDLER, lookalike)
    plain = os.environ.get("LC_ALL") in ("C", "POSIX") and not {"PYTHONIOENCODING", "PYTHONUTF8"} & os.environ.keys()
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER, **({"encoding": "ascii"} if plain else {}))
