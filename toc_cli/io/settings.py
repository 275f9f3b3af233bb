"""The project's own settings: `[tool.toc.…]` of `toc.toml` or `pyproject.toml`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.names import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILES = ("toc.toml", "pyproject.toml")
TABLES = ("checks", "optimize")
"""The tables under [tool.toc] that something reads."""
MOST_BYTES = 4 * 2**20


def standing() -> list[Path]:
    """Those of `CONFIG_FILES` that are here; InputError for a name that is no file (a folder, a link to nothing)."""
    found = [Path(name) for name in CONFIG_FILES if os.path.lexists(name)]
    for path in found:
        if not path.is_file():
            raise InputError(f"{path} here is no file that can be read.", "Mend or remove it: settings may be meant.")
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as its table; InputError where it cannot be read as one."""
    where = printable(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{where} has {path.stat().st_size:,} bytes; settings have at most {MOST_BYTES:,}.")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply.") from error
    except ValueError as error:  # not TOML, not UTF-8, or an integer of thousands of digits
        raise InputError(f"{where} is not TOML: {printable(error)}.") from error
