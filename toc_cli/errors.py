"""Every error a user can meet: what is wrong with the value and the shape, then the flag or the command that helps."""

from __future__ import annotations


class TocError(Exception):
    """A sentence for the user, an optional way out, and the exit code of the contract."""

    exit_code = 4

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what} {hint}".strip())
        self.what = what
        self.hint = hint


class CheckFailed(TocError):
    """A gate's bound does not hold (exit 1)."""

    exit_code = 1


class UsageError(TocError):
    """A flag or a value that cannot be meant (exit 2)."""

    exit_code = 2


class InputError(TocError):
    """A file or an array that cannot be used (exit 3)."""

    exit_code = 3


class OutputError(TocError):
    """Writing failed; nothing stands under the final name (exit 4)."""

    exit_code = 4


def missing_extra(package: str, extra: str) -> UsageError:
    """The error for an optional library that is not installed."""
    return UsageError(f"This needs {package}, which is not installed.", f"pip install 'toc-cli[{extra}]'")
