"""Names that come out of a file are data: they are shown escaped, never as the terminal would obey them."""

from __future__ import annotations

import unicodedata

UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that can move the cursor, colour, reorder or hide text."""


def printable(name: object, limit: int = 200) -> str:
    """`name` on one line, with control, ANSI and bidirectional characters as escapes, cut to `limit` characters."""
    text = str(name)
    return escaped(text[:limit]) + ("…" if len(text) > limit else "")


def escaped(text: str, allowed: str = "") -> str:
    """`text` with every unsafe character but those `allowed` as an escape."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if c not in allowed and unicodedata.category(c) in UNSAFE else c
        for c in text
    )
