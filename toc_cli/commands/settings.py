"""`[tool.toc.optimize]` of `toc.toml` or `pyproject.toml` here: defaults for flags that the command line leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import typer

from toc_cli.errors import UsageError
from toc_cli.io.names import printable
from toc_cli.io.settings import read_toml, standing

NEVER = {"checkpoint", "features", "output", "force", "dry_run", "help"}
"""What one run is about is said on its command line."""


def defaults(parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The file and its defaults by parameter name, of `toc.toml` before `pyproject.toml`; UsageError for a name that is no flag.

    `parameters` are those of the command, by name.
    """
    for path in standing():
        name = str(path)
        table: Any = read_toml(path)
        for part in ("tool", "toc", "optimize"):
            table = table.get(part) if isinstance(table, Mapping) else None
        if table is None:
            continue
        if not isinstance(table, Mapping):
            raise UsageError(f"{name}: tool.toc.optimize is no table.", "Write lines such as keep = 0.5 under it.")
        return name, dict(_default(name, str(key), value, parameters) for key, value in table.items())
    return "", {}


def _default(file: str, key: str, value: Any, parameters: Mapping[str, Any]) -> tuple[str, Any]:
    known = {name.replace("_", "-") for name in parameters if name not in NEVER}
    flag = key.replace("_", "-")
    if flag not in known:
        close = get_close_matches(flag, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(sorted(known))}."
        raise UsageError(
            f"{file}: [tool.toc.optimize] sets {printable(key, 60)!r}, which is no default that it can set.", hint
        )
    if isinstance(value, Mapping):
        raise UsageError(f"{file}: {flag} in [tool.toc.optimize] is a table.", "Give it a value.")
    parameter = parameters[flag.replace("-", "_")]
    several = bool(getattr(parameter, "multiple", False))
    if isinstance(value, list) and not several:
        value = ",".join(map(str, value))
    if isinstance(value, bool) != bool(getattr(parameter, "is_flag", False)):
        raise UsageError(
            f"{file}: {flag} = {printable(value, 60)} in [tool.toc.optimize] cannot be meant.",
            f"See --{flag} in toc optimize --help.",
        )
    if not isinstance(value, bool):
        value = [str(part) for part in value] if isinstance(value, list) else str(value)
    return flag.replace("-", "_"), [value] if several and not isinstance(value, list) else value


def used(context: typer.Context) -> str | None:
    """`toc.toml: criterion, keep`: the file and the flags whose value it set, for the record; None where it set none."""
    set_there = [name for name in context.params if source_of(context, name) == "DEFAULT_MAP"]
    return f"{context.find_root().obj}: {', '.join(sorted(set_there))}" if set_there else None


def source_of(context: typer.Context, name: str) -> str:
    """Where the value of a parameter comes from: `COMMANDLINE`, `DEFAULT_MAP` (the settings), `DEFAULT`."""
    return getattr(context.get_parameter_source(name), "name", "")
