"""Recording what reaches a quantiser of a running model, streamed to HDF5 as the features of `toc optimize`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io import model_tokens
from toc_cli.io.atomic import beside, check_target, publish, sha256, write_errors
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.names import printable
from toc_cli.io.stamps import Side, Stamps

CHUNK_BYTES = 1 << 20
TOKENS = ".tokens"
"""What the name of a dataset of tokens adds to that of its features."""
ARGUMENT_HINT = "Say which argument of its forward holds them: capture(..., argument=1) or argument='hidden_states'."


@dataclass
class _Pending:
    """The last batch of features, until its tokens are known."""

    shape: tuple[int, ...]
    flattened: bool


class Recorder:
    """The open file of a capture. `rows` counts the recorded batch entries by dataset."""

    def __init__(self, path: Path, temporary: Path, dtype: str, channel_axis: int | None) -> None:
        self.rows: dict[str, int] = {}
        self.axes: dict[str, int] = {}
        """The channel axis of each dataset, where it is known."""
        self._path, self._dtype, self._channel_axis = path, np.dtype(dtype), channel_axis
        self._pending: dict[str, _Pending] = {}
        with write_errors(path):
            self._file = NewHdf5(temporary)

    def add(self, name: str, value: object) -> None:
        """Append a batch (N, …) to dataset `name`; with a channel axis, its rows (N * …, W). InputError if it misfits."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim == 0:
            what = f"What reaches {printable(name)} is {_described(value)}, not a tensor of features."
            raise InputError(what, ARGUMENT_HINT)
        value = value.detach()
        self._pending[name] = _Pending(tuple(value.shape), self._channel_axis is not None)
        if self._channel_axis is not None:
            value = value.movedim(self._channel_axis, -1).flatten(0, -2)
            self.axes[name] = 1
        self._append(name, self._rounded(name, value), self._dtype)

    def _rounded(self, name: str, value: torch.Tensor) -> np.ndarray:
        """The values in the file's type, rounded once: float64 must not pass through float32, and old HDF5 rounds on its own."""
        exact = value if value.dtype == torch.float64 else value.to(torch.float32)  # numpy has no bfloat16
        try:
            with np.errstate(over="raise"):
                return exact.cpu().numpy().astype(self._dtype, copy=False)
        except FloatingPointError:
            raise InputError(
                f"{printable(name)} reaches {float(exact.abs().max()):.3g}, which {self._dtype} cannot hold.",
                "Record it with dtype='float32' or 'float64'.",
            ) from None

    def add_tokens(self, name: str, returned: object, module: torch.nn.Module, method: str, asked: bool) -> None:
        """Append the model's own choice for the last batch of `name` to `name.tokens`. InputError where tokens were asked for and
        are not there, or could be read in two ways."""
        pending = self._pending.pop(name, None)
        if pending is None:
            return
        ways = model_tokens.found_in(returned, pending.shape, self._channel_axis, module, method)
        if len(ways) != 1:
            if asked or ways:
                found = "in several ways" if ways else "not"
                raise InputError(
                    f"The tokens that {type(module).__name__} gives lie {found} like the features {pending.shape} of "
                    f"{printable(name)}.",
                    "Give channel_axis, or tokens=False to leave them out.",
                )
            return
        (way,) = ways
        lead = len(pending.shape) - 1
        tokens = model_tokens.padded(way.tokens, lead, module)
        if pending.flattened:
            tokens = tokens.flatten(0, lead - 1) if lead else tokens
        else:
            self.axes[name] = way.channel_axis
        self._append(f"{name}{TOKENS}", tokens.cpu().numpy().astype(np.int32), np.dtype(np.int32))

    def _append(self, name: str, batch: np.ndarray, dtype: np.dtype) -> None:
        with write_errors(self._path):
            dataset = self._file.root.get(name) or self._create(name, batch, dtype)
            if dataset.shape[1:] != batch.shape[1:]:
                raise InputError(
                    f"{printable(name)} got {batch.shape[1:]} after {dataset.shape[1:]} per batch entry.",
                    "Lengths that vary are recorded as rows: capture(..., channel_axis=-1), or 1 for (N, C, T).",
                )
            start = len(dataset)
            dataset.resize(start + len(batch), axis=0)
            dataset[start:] = batch
            self._file.check()
        self.rows[name] = start + len(batch)

    def _create(self, name: str, batch: np.ndarray, dtype: np.dtype) -> h5py.Dataset:
        item = max(int(np.prod(batch.shape[1:])) * dtype.itemsize, 1)
        return self._file.root.create_dataset(
            name, (0, *batch.shape[1:]), dtype, maxshape=(None, *batch.shape[1:]),
            chunks=(max(CHUNK_BYTES // item, 1), *(max(n, 1) for n in batch.shape[1:])),
        )  # fmt: skip

    def finish(self, names: Mapping[str, Stamps]) -> None:
        """Stamp the datasets. InputError where features or their tokens are missing."""
        missed = [name for name in names if not self.rows.get(name)]
        if missed:
            raise InputError(
                f"Nothing reached {', '.join(printable(name) for name in missed)} in this block; no file is written.",
                "Run the model inside the block; if it never calls this module itself, capture its encoder with output=True.",
            )
        for name, stamps in names.items():
            tokens = self.rows.get(f"{name}{TOKENS}")
            if tokens not in (None, self.rows[name]):
                raise InputError(
                    f"{printable(name)} got {self.rows[name]} batch entries and tokens for {tokens} of them.",
                    "Call the quantiser once after each batch, or give tokens=False.",
                )
            replace(stamps, channel_axis=self.axes.get(name)).write(self._file.root[name].attrs)

    def close(self) -> None:
        """Close the file. OutputError if what was written does not reach the disk."""
        with write_errors(self._path):
            self._file.close()
            self._file.check()

    def abandon(self) -> None:
        """Close the file if it is still open, whatever its state: it is about to be removed."""
        with suppress(OSError, RuntimeError):
            self._file.close()


@contextmanager
def capture(
    module: torch.nn.Module | Mapping[str, torch.nn.Module],
    path: str | Path,
    *,
    argument: int | str = 0,
    output: bool = False,
    tokens: torch.nn.Module | Mapping[str, torch.nn.Module] | bool | None = None,
    channel_axis: int | None = None,
    model: torch.nn.Module | None = None,
    checkpoint: str | Path | None = None,
    dtype: str = "float32",
    force: bool = False,
) -> Iterator[Recorder]:
    """Record what reaches `module` while the block runs: `with capture(model.quantizer, "feats.h5"): model(batch)`.

    Each call of the module (its forward, or its `encode`, as EnCodec and Mimi call theirs) appends argument `argument`, (N, …), to
    dataset `features`; a mapping records several modules, each under its name. `output=True` records what the module returns: of
    an encoder, its first tensor. The axes stay as they are; with `channel_axis` the others are flattened to rows.

    The tokens that a quantiser returns are recorded beside its features as `features.tokens`, and `toc` holds its own against
    them; with `output=True` name the quantiser that chooses them: `tokens=model.quantizer`. `tokens=True` asks for them (InputError
    where there are none), `tokens=False` leaves them out. `model` and `checkpoint` (the file or folder its weights were loaded
    from) are noted with the features, and so is the side of the projection on which they stand.

    The file appears when the block ends, and not at all if it fails or if nothing was recorded (InputError).
    UsageError where `path` exists and `force` is not set.
    """
    path = Path(path)
    if dtype not in ("float16", "float32", "float64"):
        raise UsageError(f"dtype {dtype!r} is none of float16, float32 and float64.")
    check_target(path, force=force)
    modules = {"features": module} if isinstance(module, torch.nn.Module) else dict(module)
    judges = _judges(modules, output, tokens)
    stamps = _stamps(modules, output, model, checkpoint)
    temporary = beside(path)
    recorder = Recorder(path, temporary, dtype, channel_axis)
    try:
        with ExitStack() as watches:
            for name, part in modules.items():
                _watch(watches, name, part, argument, output, recorder)
            for name, judge in judges.items():
                _judge(watches, name, judge, tokens is not None, recorder)
            yield recorder
        recorder.finish(stamps)
        recorder.close()
        publish(temporary, path)
    finally:
        recorder.abandon()
        temporary.unlink(missing_ok=True)


def _judges(
    modules: Mapping[str, torch.nn.Module],
    output: bool,
    tokens: torch.nn.Module | Mapping[str, torch.nn.Module] | bool | None,
) -> dict[str, torch.nn.Module]:
    """Per dataset the quantiser whose output holds its tokens. UsageError where that cannot be meant."""
    if tokens is False or (tokens is None and output):
        return {}
    if tokens is None or tokens is True:
        if output:
            raise UsageError(
                "What a module returns has no tokens of its own.", "Name the quantiser: tokens=model.quantizer."
            )
        return dict(modules)
    if isinstance(tokens, torch.nn.Module):
        if len(modules) > 1:
            raise UsageError("One quantiser for several modules.", "Give tokens= as a mapping of the same names.")
        return dict.fromkeys(modules, tokens)
    if set(tokens) - set(modules):
        raise UsageError(f"tokens= names {', '.join(sorted(set(tokens) - set(modules)))}, which is not recorded.")
    return dict(tokens)


def _stamps(
    modules: Mapping[str, torch.nn.Module], output: bool, model: torch.nn.Module | None, checkpoint: str | Path | None
) -> dict[str, Stamps]:
    """What is known of each dataset before the model runs."""
    hashes = (
        {file.name: sha256(file) for file in open_checkpoint(Path(checkpoint)).files} if checkpoint is not None else {}
    )
    found = {}
    for name, part in modules.items():
        owner = model or part
        inside = next((at for at, one in owner.named_modules() if one is part and at), "")
        library = type(owner).__module__.partition(".")[0]
        side: Side = "encoder" if output or model_tokens.projects(part) else "codebook"
        found[name] = Stamps(
            model=f"{type(owner).__module__}.{type(owner).__qualname__}",
            module=inside or type(part).__qualname__,
            side=side,
            library=f"{library} {version(library)}".strip(),
            checkpoint=hashes,
        )
    return found


def version(library: str) -> str:
    """Version of the installed distribution of a package; "" where it has none."""
    for name in (library, library.replace("_", "-"), *metadata.packages_distributions().get(library, ())):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""


def _watch(
    watches: ExitStack, name: str, module: torch.nn.Module, argument: int | str, output: bool, recorder: Recorder
) -> None:
    """Record the argument (or the output) of every outermost call of a module's forward or `encode`."""

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        by_place = (*args, *kwargs.values())
        if isinstance(argument, str):
            recorder.add(name, kwargs.get(argument))
        else:
            recorder.add(name, by_place[argument] if argument < len(by_place) else None)

    def after(_: torch.nn.Module, args: tuple[Any, ...], returned: object) -> None:
        found = model_tokens.features_of(returned)
        recorder.add(name, returned if found is None else found)

    if output:
        watches.callback(module.register_forward_hook(after).remove)
    else:
        _around(watches, module, enter=before)


def _judge(watches: ExitStack, name: str, module: torch.nn.Module, asked: bool, recorder: Recorder) -> None:
    """Record the tokens of every outermost call of a quantiser."""
    _around(watches, module, leave=lambda returned, method: recorder.add_tokens(name, returned, module, method, asked))


def _around(
    watches: ExitStack,
    module: torch.nn.Module,
    enter: Callable[[torch.nn.Module, tuple[Any, ...], Mapping[str, Any]], None] | None = None,
    leave: Callable[[object, str], None] | None = None,
) -> None:
    """Call `enter` before and `leave` after the outermost of the calls of a module's forward and `encode`."""
    depth = 0

    def wrapped(method: str, call: Callable[..., object]) -> Callable[..., object]:
        @wraps(call)
        def around(*args: Any, **kwargs: Any) -> object:
            nonlocal depth
            if depth == 0 and enter is not None:
                enter(module, args, kwargs)
            depth += 1
            try:
                returned = call(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0 and leave is not None:
                leave(returned, method)
            return returned

        return around

    for method in ("forward", "encode"):
        call = getattr(module, method, None)
        if callable(call):
            own = module.__dict__.get(method)
            module.__dict__[method] = wrapped(method, call)
            watches.callback(_restore, module, method, own)


def _restore(module: torch.nn.Module, method: str, own: object) -> None:
    if own is None:
        module.__dict__.pop(method, None)
    else:
        module.__dict__[method] = own


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
