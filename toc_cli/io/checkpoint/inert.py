"""An unpickler that can run nothing: arrays become places in the file, every other class or function an empty stand-in.

It reads what torch, joblib, pickle and numpy write. The globals of the file are never imported; they are looked up in the
tables of `rebuild`, and what is not there is a new class that ignores its arguments and its state.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.rebuild import (
    WEIGHTS_ONLY,
    Estimator,
    Inert,
    JoblibArray,
    PickledArray,
    PickledType,
    array_of,
    checked_key,
    named_type,
)
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.checkpoint.strided import Storage

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

OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names of Python 2."""
STEP_LIMIT = 1 << 27
"""Bytes of a pickle outside of its arrays: about a million tensors."""
FRAME_LIMIT = 1 << 20
"""Bytes of one frame; Python writes 64 KiB, and what is longer outside of frames."""
BLOB = 1 << 16
"""Bytes from which a read is taken for one text or one array, not for steps of the pickle."""


class Bounded:
    """A stream that never gives, or allocates, more than it has. EOFError at its end, InputError past `STEP_LIMIT`."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left, self._steps = file, size, STEP_LIMIT
        self.at = 0

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        self.at += len(data)
        if len(data) < BLOB:
            self.count(len(data))
        return data

    def count(self, steps: int) -> None:
        """Count bytes that are steps of the pickle."""
        self._steps -= steps
        if self._steps < 0:
            raise InputError("The pickle is longer than a checkpoint needs.")

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        if count > self._left:
            raise EOFError("the pickle ends early")
        data = self._took(self._file.read(count))
        if len(data) < count:
            raise EOFError("the pickle ends early")
        return data

    def readline(self) -> bytes:
        """A line, of at most `BLOB` bytes."""
        return self._took(self._file.readline(min(BLOB, self._left)))

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer that is no longer than what is left."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(len(view))
        return len(view)

    def skip(self, count: int) -> None:
        """Pass over bytes of an array."""
        if count > self._left:
            raise EOFError("an array ends early")
        self._left -= count
        self.at += count
        while count:
            got = len(self._file.read(min(count, 1 << 20)))
            if not got:
                raise EOFError("an array ends early")
            count -= got


class InertUnpickler(pickle._Unpickler):
    """One pickle of a stream. The pure-Python unpickler: its memo is a dict, where the C one allocates a hostile index."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(
        self,
        file: Bounded,
        known: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None = None,
        placed: Callable[[int], Callable[[int, int], bytearray]] | None = None,
    ) -> None:
        """`known` are the globals that are rebuilt; `persistent` resolves torch's storages; `placed` gives the reader of
        the bytes that stand at an offset of the stream (joblib)."""
        super().__init__(file)
        self._source, self._known, self._persistent, self._placed = file, known, persistent, placed
        self.foreign: dict[tuple[str, str], Any] = {}
        """The globals that weights alone do not need, in file order."""

    def find_class(self, module: str, name: str) -> Any:
        """Never imports: what is not known becomes a new class without behaviour."""
        place = OLD_MODULES.get(module, module), name
        found = WEIGHTS_ONLY.get(place, named_type(*place))
        if found is not None:
            return found
        if (module, name) not in self.foreign:
            stand_in = type("Inert", (Inert,), {})
            if place[0].partition(".")[0] == "sklearn":
                stand_in = type("Estimator", (Estimator,), {"kind": f"{module}.{name}"})
            self.foreign[module, name] = self._known.get(place, stand_in)
        return self.foreign[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A storage of a torch file."""
        if self._persistent is None:
            raise pickle.UnpicklingError("a persistent id outside of a torch file")
        return self._persistent(pid)

    def get_extension(self, code: int) -> None:
        """The registry of this process is no part of the file."""
        raise pickle.UnpicklingError("an extension code")

    # Keys are checked before they are hashed: the hash of a tuple in a tuple in … runs out of C stack.

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][checked_key(key)] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        table = self.stack[-1]
        if not isinstance(table, dict):
            raise pickle.UnpicklingError("items of what is no dictionary")
        for i in range(0, len(items), 2):
            table[checked_key(items[i])] = items[i + 1]

    def _load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({checked_key(items[i]): items[i + 1] for i in range(0, len(items), 2)})

    def _load_additems(self) -> None:
        self.pop_mark()  # type: ignore[attr-defined]

    def _load_frozenset(self) -> None:
        self.pop_mark()  # type: ignore[attr-defined]
        self.append(Inert())

    def _load_frame(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > FRAME_LIMIT:
            raise pickle.UnpicklingError("a frame of too many bytes")
        self._source.count(size if size >= BLOB else 0)
        self._unframer.load_frame(size)  # type: ignore[attr-defined]

    def _load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def _load_build(self) -> None:
        """As joblib does: what follows the wrapper of an array are its numbers."""
        plain: Callable[[Any], None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]
        plain(self)
        if isinstance(self.stack[-1], JoblibArray):
            self.stack[-1] = self._joblib_array(self.stack[-1].state)

    def _joblib_array(self, state: Mapping[Any, Any]) -> Any:
        """The array whose numbers follow; an array of objects is the object of a pickle of its own."""
        found, kind = PickledArray(), state.get("dtype")
        if self._placed is None or not isinstance(kind, PickledType):
            raise pickle.UnpicklingError("an array outside of a joblib file")
        if kind.name is None:
            nested = InertUnpickler(self._source, self._known, None, self._placed)
            nested.foreign = self.foreign
            return nested.load()
        if state.get("numpy_array_alignment_bytes") is not None:
            self._source.skip(self._source.read(1)[0])
        shape = state.get("shape")
        if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
            raise pickle.UnpicklingError("an array of impossible shape")
        nbytes = math.prod(shape) * BYTES[kind.name]
        storage = Storage(kind.name, nbytes, self._placed(self._source.at), f"at {self._source.at}", kind.swapped)
        self._source.skip(nbytes)
        found.array = array_of(storage, shape, state.get("order") == "F")
        return found

    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems
    dispatch[pickle.DICT[0]] = _load_dict
    dispatch[pickle.ADDITEMS[0]] = _load_additems
    dispatch[pickle.FROZENSET[0]] = _load_frozenset
    dispatch[pickle.FRAME[0]] = _load_frame
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8
    dispatch[pickle.BUILD[0]] = _load_build

    @property
    def names(self) -> list[str]:
        """The foreign globals, as `module.name`."""
        return [f"{module}.{name}" for module, name in self.foreign]

    @property
    def programs(self) -> list[str]:
        """The foreign globals that no checkpoint needs: calls into the interpreter or the system."""
        return [
            f"{module}.{name}"
            for module, name in self.foreign
            if module.partition(".")[0] in PROGRAM_MODULES
            or (OLD_MODULES.get(module, module) == "builtins" and name in PROGRAM_BUILTINS)
        ]
