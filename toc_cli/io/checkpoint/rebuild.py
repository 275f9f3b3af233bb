"""What a pickle may rebuild: arrays of torch, numpy and joblib as places in the file, estimators of scikit-learn as tables.

Everything here is ours: no function or class of those libraries is imported or called.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.checkpoint.strided import Storage, Strided, column_major, held_bytes, row_major, strided

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8", "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32",
}  # fmt: skip
"""Storage classes of torch, and the type of their numbers."""


class TypeName(str):
    """The name of a type of numbers, where the pickle holds the type itself."""

    __slots__ = ()


class StorageKind(str):
    """The name of the type of a storage class."""

    __slots__ = ()


class Inert(dict):
    """Stands for an object of a foreign class: keeps the items of a dict subclass, ignores arguments and state."""

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

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class Table(Inert):
    """An OrderedDict or Counter: its items are kept."""

    def __init__(self, pairs: object = (), *rest: object) -> None:
        super().__init__()
        items = pairs.items() if isinstance(pairs, dict) else pairs if isinstance(pairs, (list, tuple)) else ()
        for key, value in items:
            self[checked_key(key)] = value


class Estimator(Inert):
    """An object of scikit-learn as the table of its attributes; `kind` is its class."""

    kind = ""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


def checked_key(key: object) -> Any:
    """A dictionary key that is safe to hash and to show. UnpicklingError for any other."""
    if isinstance(key, int) and not -(1 << 63) <= key < 1 << 64:
        raise pickle.UnpicklingError("a dictionary key of too many digits")
    if isinstance(key, (str, int, float, bytes, type(None), Inert, type)):
        return key
    if isinstance(key, tuple) and len(key) <= 16 and not any(isinstance(part, tuple) for part in key):
        return tuple(checked_key(part) for part in key)
    raise pickle.UnpicklingError("a dictionary key of an unusual kind")


class Rebuild:
    """A function behind a wall: it can be called, and its attributes cannot be set by the file."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("the file sets attributes of a function")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("the file sets attributes of a function")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """A tensor; the third of `rest` is the type where the storage is untyped (`_rebuild_tensor_v3`)."""
    if not isinstance(storage, Storage):
        return Inert()
    named = rest[2] if len(rest) > 2 and isinstance(rest[2], TypeName) else None
    stored = str(named) if named else storage.stored
    return strided(storage, stored, offset, size, stride) if stored in BYTES else Inert()


def _of_type(function: Any, kind: Any, args: Any, state: Any = None) -> Any:
    return function(*args) if isinstance(function, Rebuild) else Inert()


class PickledType:
    """A numpy dtype: `f4`, then its byte order by its state. `name` is None for text, records and objects."""

    code = ""
    swapped = False

    def __init__(self, code: Any = "", *rest: Any) -> None:
        self.code = code.decode("latin-1") if isinstance(code, bytes) else str(code)[:16]
        self.swapped = self.code.startswith(">")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.swapped = state[1] in (">", b">")

    @property
    def name(self) -> str | None:
        """Our name of the type."""
        code = self.code.lstrip("<>=|")
        return CODES.get(code, code if code in BYTES else None)


CODES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8",
    "u2": "uint16", "u4": "uint32", "u8": "uint64", "b1": "bool", "c8": "complex64", "c16": "complex128", "?": "bool",
}  # fmt: skip
"""numpy's short names of types."""


class PickledArray:
    """A numpy array: its numbers, or the objects of an array of objects, known once its state is set."""

    array: Strided | None = None
    objects: object = None

    def __init__(self, *args: object) -> None:
        """Arguments of `numpy.ndarray` are those of an empty array."""

    def __setstate__(self, state: Any) -> None:
        """(version, shape, dtype, is Fortran, bytes or list): the state of `numpy.ndarray`."""
        _, shape, kind, fortran, data = state if len(state) == 5 else (0, *state)
        self.fill(kind, shape, bool(fortran), data)

    def fill(self, kind: Any, shape: Any, fortran: bool, data: Any) -> None:
        """Set what the array holds. ValueError where the shape does not fit the bytes."""
        if isinstance(data, list):
            self.objects = data[0] if shape == () and len(data) == 1 else data
            return
        if isinstance(data, str):
            data = data.encode("latin-1")
        if not isinstance(data, (bytes, bytearray)) or not isinstance(kind, PickledType):
            raise ValueError("an array without data")
        if kind.name is not None:
            storage = Storage(kind.name, len(data), held_bytes(data), f"array {id(self)}", kind.swapped)
            self.array = array_of(storage, shape, fortran)


def array_of(storage: Storage, shape: Any, fortran: bool) -> Strided:
    """An array that fills its storage. ValueError where it does not."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise ValueError("an array of impossible shape")
    if math.prod(shape) * BYTES[storage.stored] != storage.nbytes:
        raise ValueError(f"an array of shape {shape} does not fill its {storage.nbytes:,} bytes")
    return strided(storage, storage.stored, 0, shape, column_major(shape) if fortran else row_major(shape))


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any = "C", *rest: Any) -> PickledArray:
    found = PickledArray()
    found.fill(kind, shape, order in ("F", b"F"), bytes(data) if isinstance(data, (bytes, bytearray)) else None)
    return found


def _scalar(kind: Any, data: Any = b"") -> Any:
    """A numpy number as Python's."""
    if isinstance(data, str):
        data = data.encode("latin-1")
    code = {"float64": "d", "float32": "f", "float16": "e", "bool": "?", "int64": "q", "int32": "i", "int16": "h",
            "int8": "b", "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B"}.get(getattr(kind, "name", None) or "")  # fmt: skip
    if code is None or not isinstance(data, bytes):
        return Inert()
    return struct.unpack((">" if kind.swapped else "<") + code, data)[0]


def _encode(text: Any, *rest: Any) -> bytes:
    """How protocols 0 to 2 spell bytes."""
    if not isinstance(text, str):
        raise ValueError("bytes that are no text")
    return text.encode("latin-1")


def _bytes(data: Any = b"", *rest: Any) -> Any:
    return _encode(data) if isinstance(data, str) else bytes(data) if isinstance(data, (bytes, bytearray)) else Inert()


def _instance(kind: Any, *rest: Any) -> Any:
    """`copyreg._reconstructor`: how protocols 0 and 1 spell an object."""
    return kind() if isinstance(kind, type) and issubclass(kind, (Inert, PickledArray)) else Inert()


def _opaque(*args: object) -> Inert:
    return Inert()


class JoblibArray:
    """The place in a joblib file where the numbers of an array follow."""

    state: Mapping[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


WEIGHTS_ONLY: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Table,
    ("collections", "Counter"): Table,
    ("torch", "Size"): Rebuild(lambda parts=(): tuple(parts)),
    ("torch", "Tensor"): Rebuild(_opaque),
    ("torch", "device"): Rebuild(lambda *parts: str(parts)),
    ("torch.nn.parameter", "Parameter"): Rebuild(lambda data=None, *rest: data),
    ("torch.serialization", "_get_layout"): Rebuild(_opaque),
    ("torch._tensor", "_rebuild_from_type_v2"): Rebuild(_of_type),
    ("torch._utils", "_rebuild_tensor"): Rebuild(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Rebuild(lambda *args: _tensor(*args[:4])),
    ("torch._utils", "_rebuild_tensor_v3"): Rebuild(_tensor),
    ("torch._utils", "_rebuild_parameter"): Rebuild(lambda data=None, *rest: data),
    ("torch._utils", "_rebuild_parameter_with_state"): Rebuild(lambda data=None, *rest: data),
    **{("torch._utils", name): Rebuild(_opaque) for name in (
        "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor",
        "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor",
    )},
    **{("torch", name): Rebuild(_opaque) for name in (
        "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "per_tensor_affine", "per_tensor_symmetric",
        "per_channel_affine", "per_channel_symmetric", "per_channel_affine_float_qparams",
    )},
    ("_codecs", "encode"): Rebuild(_encode),
    ("builtins", "bytearray"): Rebuild(_bytes),
    ("builtins", "set"): Rebuild(_opaque),
    ("builtins", "complex"): Rebuild(_opaque),
}  # fmt: skip
"""What `torch.load(weights_only=True)` takes as well: a torch file with nothing else can be written back."""

ARRAYS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Rebuild(lambda *args: PickledArray()) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Rebuild(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Rebuild(_frombuffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledType,
    ("copyreg", "_reconstructor"): Rebuild(_instance),
    ("builtins", "bytes"): Rebuild(_bytes),
}  # fmt: skip
"""numpy's own reconstruction."""

JOBLIB: dict[tuple[str, str], Any] = {("joblib.numpy_pickle", "NumpyArrayWrapper"): JoblibArray}


def named_type(module: str, name: str) -> Any:
    """A storage class or a type of numbers of torch; None for anything else."""
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
        return StorageKind(STORAGES[name])
    return TypeName(name) if module == "torch" and name in BYTES else None
