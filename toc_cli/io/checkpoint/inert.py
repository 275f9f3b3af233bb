"""An unpickler that can run nothing: tensors are rebuilt, every other class or function becomes an empty stand-in.

It reads checkpoints whose only obstacle is a harmless foreign object (an argparse.Namespace, an old Lightning callback,
a numpy scalar). `torch.load(weights_only=False, pickle_module=InertPickle())` asks it for each global of the file.
"""

from __future__ import annotations

import collections
import pickle
import types
from typing import Any

import torch

PROGRAM_MODULES = {
    "_posixsubprocess", "asyncio", "bdb", "cProfile", "code", "codeop", "commands", "ctypes", "distutils", "ensurepip",
    "ftplib", "http", "imp", "importlib", "marshal", "nt", "os", "pdb", "pickle", "pip", "posix", "profile", "pty", "pydoc",
    "requests", "runpy", "shutil", "signal", "site", "smtplib", "socket", "socketserver", "sqlite3", "subprocess", "sys",
    "tarfile", "timeit", "trace", "urllib", "venv", "webbrowser", "zipimport",
}  # fmt: skip
"""Modules that no checkpoint needs: a file that asks for one of them wants to run something."""

PROGRAM_BUILTINS = {
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "exit", "file", "getattr",
    "globals", "help", "input", "locals", "open", "print", "quit", "raw_input", "reload", "setattr", "vars",
}  # fmt: skip


class Inert(dict):
    """Stands for an object of a foreign class: keeps the items of a dict subclass, ignores arguments and state."""

    dump_patches = False  # torch's legacy reader asks module classes for it before it would write a patch file

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
    _function: Any

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
        class Unpickler(pickle._Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) in ALLOWED:
                    return ALLOWED[module, name]
                if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                    return getattr(torch, name)
                return foreign.setdefault((module, name), type("Inert", (Inert,), {}))

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
            if module.partition(".")[0] in PROGRAM_MODULES
            or (module in ("builtins", "__builtin__") and name in PROGRAM_BUILTINS)
        ]
