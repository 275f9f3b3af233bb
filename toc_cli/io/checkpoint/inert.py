"""An unpickler that can run nothing: tensors are rebuilt, every other class or function becomes an empty stand-in.

It reads checkpoints whose only obstacle is a harmless foreign object (an argparse.Namespace, an old Lightning callback, a
numpy scalar). `torch.load(weights_only=False, pickle_module=InertPickle())` asks it for each global of the file.
"""

from __future__ import annotations

import collections
import pickle
import types
from typing import Any

import torch

PROGRAM_MODULES = {
    "__builtin__", "_io", "_posixsubprocess", "_thread", "asyncio", "atexit", "bdb", "builtins", "cgitb", "code", "codeop",
    "commands", "ctypes", "distutils", "ensurepip", "fileinput", "ftplib", "functools", "gc", "http", "idlelib", "imp",
    "importlib", "inspect", "io", "ipykernel", "IPython", "linecache", "marshal", "mmap", "multiprocessing", "nt", "operator",
    "os", "pdb", "pickle", "pip", "pkgutil", "platform", "posix", "profile", "pty", "pydoc", "requests", "runpy", "shelve",
    "shlex", "shutil", "signal", "site", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys",
    "tarfile", "tempfile", "threading", "timeit", "trace", "types", "urllib", "uuid", "venv", "webbrowser", "zipimport",
}  # fmt: skip
"""Modules from which no checkpoint needs anything but the names below: a file that asks for more wants to run something."""

HARMLESS = {
    *(("builtins", name) for name in ("set", "frozenset", "slice", "complex", "bytearray", "object", "range", "dict", "list")),
    *(("__builtin__", name) for name in ("set", "frozenset", "slice", "complex", "bytearray", "object", "xrange", "dict", "list")),
    ("functools", "partial"),
    ("types", "SimpleNamespace"),
    ("uuid", "UUID"),
}  # fmt: skip


class Inert(dict):  # type: ignore[type-arg]
    """Stands for an object of a foreign class: keeps the items of a dict subclass, ignores arguments and state."""

    origin = ""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __call__(self, *args: object) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Items of a list subclass are dropped."""

    def extend(self, items: object) -> None:
        """Items of a list subclass are dropped."""

    def add(self, item: object) -> None:
        """Items of a set subclass are dropped."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class _Rebuild:
    """A torch function behind a wall: it can be called, and its attributes cannot be set by the file."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("the file sets attributes of a function")

    __setstate__ = None


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> torch.Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: torch.Tensor, *_: object) -> torch.Tensor:
    return data


ALLOWED = {
    ("torch._utils", "_rebuild_tensor"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Rebuild(_parameter),
    ("torch", "Size"): _Rebuild(tuple),
    ("torch", "device"): _Rebuild(lambda *parts: str(parts)),
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class InertPickle(types.ModuleType):
    """What torch.load takes for `pickle_module`. `foreign` collects the globals that were replaced, in file order."""

    def __init__(self) -> None:
        super().__init__("inert")
        foreign: dict[tuple[str, str], type[Inert]] = {}
        self.foreign = foreign

        # The pure-Python unpickler keeps its memo in a dict; the C one allocates as much as a hostile index asks for.
        class Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) in ALLOWED:
                    return ALLOWED[module, name]
                if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                    return getattr(torch, name)
                return foreign.setdefault((module, name), type("Inert", (Inert,), {"origin": f"{module}.{name}"}))

        self.Unpickler = Unpickler

    def load(self, file: Any, **options: Any) -> Any:
        """`pickle.load`, inert: torch reads the parts of a legacy file with it."""
        return self.Unpickler(file, **options).load()

    @property
    def names(self) -> list[str]:
        """The replaced globals, as `module.name`."""
        return [f"{module}.{name}" for module, name in self.foreign]

    @property
    def programs(self) -> list[str]:
        """The replaced globals that no checkpoint needs: calls into the interpreter or the system."""
        return [
            f"{module}.{name}"
            for module, name in self.foreign
            if module.partition(".")[0] in PROGRAM_MODULES and (module, name) not in HARMLESS
        ]
