"""Names of a package that are imported when they are first asked for (PEP 562): what reads headers alone loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_from(package: str, rooms: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: each name from the module that `rooms` gives, relative to it. AttributeError for others."""

    def found(name: str) -> Any:
        if name not in rooms:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{rooms[name]}"), name)

    return found
