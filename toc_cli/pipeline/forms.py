"""The one sentence for a form that a codebook cannot be written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toc_cli.errors import UsageError
from toc_cli.io.families.base import Codebook, Mode
from toc_cli.io.names import printable


def refuse_forms(book: Codebook, reasons: Mapping[Mode, str], modes: Sequence[Mode], flag: str = "") -> None:
    """UsageError for the first of `modes` with a reason against it, and the forms that are possible; `flag` is what asks for it."""
    for mode in modes:
        if reasons[mode]:
            fine = [mode for mode, reason in reasons.items() if not reason]
            asked = f" with {flag}" if flag else ""
            raise UsageError(
                f"--emit {mode} is not possible for {printable(book.shown)}{asked}: {reasons[mode]}.",
                f"Possible here: {', '.join(fine)}.",
            )
