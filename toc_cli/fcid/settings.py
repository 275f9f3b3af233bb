"""Settings files: frozen dataclasses from and to TOML (or YAML), with errors that name the field."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from toc_cli.errors import InputError, UsageError, missing_extra
from toc_cli.io.names import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = TypeVar("Settings")
SIZE_LIMIT = 1 << 22
"""Bytes of a settings file; real ones have about two thousand."""


def read_settings(path: Path) -> dict[str, Any]:
    """The tables of a `.toml`, `.yaml` or `.yml` file."""
    shown = printable(path.name)
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{shown} has {path.stat().st_size:,} bytes, more than settings need.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The settings {printable(path)} can't be read: {printable(reason)}.") from error
    if path.suffix in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError as error:
            raise missing_extra("PyYAML", "yaml") from error
        try:
            tables = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
            raise InputError(f"{shown} is not YAML: {_reason(error)}.") from error
    else:
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{shown} is not TOML: {_reason(error)}.") from error
    if not isinstance(tables, dict):
        raise InputError(f"{shown} holds no tables.", "It should look like: [train] and below it epochs = 60.")
    return tables


def _reason(error: Exception) -> str:
    """Why a parser gave up, on one line."""
    return "it nests too deep" if isinstance(error, RecursionError) else printable(" ".join(str(error).split()))


def from_table(kind: type[Settings], table: Mapping[str, Any], base: Settings, where: str) -> Settings:
    """`base`, a flat dataclass of the type `kind`, with the values of `table` put in; `where` is the table's name in
    errors."""
    if not isinstance(table, Mapping):
        raise UsageError(
            f"[{where}] is {shown_value(table)}, not a table.", f"Write [{where}] and its settings below it."
        )
    hints = get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in hints:
            close = difflib.get_close_matches(str(name)[:100], hints, 1)
            raise UsageError(
                f"There is no setting {where}.{printable(name, 40)}.",
                f"Did you mean {where}.{close[0]}?" if close else "",
            )
        values[name] = _value(hints[name], value, f"{where}.{name}")
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`: a choice, a tuple, a number (a whole one may stand for a float), a flag or a text."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where} is {shown_value(value)}.", f"It can be: {', '.join(map(str, get_args(hint)))}.")
        return value
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(get_args(hint)[0], item, where) for item in value)
    if isinstance(value, int) and value.bit_length() > 63:
        raise UsageError(f"{where} is a number of {value.bit_length():,} bits.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = get_origin(hint) or hint
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UsageError(f"{where} is {shown_value(value)}; it must be of type {plain.__name__}.")
    return value


def shown_value(value: object) -> str:
    """A value of a settings file in a sentence: its start, on one line."""
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a number of {value.bit_length():,} bits"
    return printable(repr(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__, 60)


def to_table(settings: Any) -> dict[str, Any]:
    """The fields of a flat dataclass as a table; tuples become lists, as TOML has them."""
    values = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def flatten(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    flat = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{where}{name}."))
        else:
            flat[f"{where}{name}"] = value
    return flat


def to_toml(table: Mapping[str, Any], where: str = "") -> str:
    """Nested tables as TOML; strings are written as JSON strings, which TOML reads alike."""
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(name)} = {_toml(value)}" for name, value in plain.items()]
    text = f"[{where}]\n" * bool(where and lines) + "".join(line + "\n" for line in lines)
    for name, value in table.items():
        if isinstance(value, Mapping):
            inner = to_toml(value, f"{where}.{_key(name)}" if where else _key(name))
            text += ("\n" if text and inner else "") + inner
    return text


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float) and not value.is_integer() and abs(value) < float("inf"):
        return repr(value)
    return repr(value) if isinstance(value, float) else json.dumps(value)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = ()
) -> dict[str, tuple[Any, Any]]:
    """Fields (`train.lr`) whose values differ between two tables, as (old, new); None is absent."""
    a, b = flatten(old), flatten(new)
    return {
        name: (a.get(name), b.get(name))
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name) and name not in ignore
    }


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` put in, table by table."""
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        if isinstance(value, Mapping) and name in merged and not isinstance(old, Mapping):
            raise UsageError(
                f"[{printable(name, 40)}] is {shown_value(old)}, not a table.",
                f"Write [{printable(name, 40)}] and its settings below it.",
            )
        merged[name] = merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


def assignment(text: str) -> dict[str, Any]:
    """`train.lr=0.01` as `{"train": {"lr": 0.01}}`: the value as TOML reads it, or else as plain text."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"{text!r} is no setting.", "Write it as table.name=value: --set model.width=64.")
    try:
        table: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table = value.strip()
    for key in reversed(keys):
        table = {key: table}
    return dict(table)
