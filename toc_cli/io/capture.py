"""Recording what reaches a quantiser of a running model, streamed to HDF5 as the features of `toc optimize`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.atomic import beside, check_target, publish, write_errors
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.names import printable

CHUNK_BYTES = 1 << 20
ARGUMENT_HINT = "Say which argument of its forward holds them: capture(..., argument=1) or argument='hidden_states'."


class Recorder:
    """The open file of a capture. `rows` counts the recorded batch entries by dataset."""

    def __init__(self, path: Path, temporary: Path, dtype: str, channel_axis: int | None) -> None:
        self.rows: dict[str, int] = {}
        self._path, self._dtype, self._channel_axis = path, np.dtype(dtype), channel_axis
        with write_errors(path):
            self._file = NewHdf5(temporary)

    def add(self, name: str, value: object) -> None:
        """Append a batch (N, …) to dataset `name`; with a channel axis, its rows (N * …, W). InputError if it misfits."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim == 0:
            what = f"What reaches {printable(name)} is {_described(value)}, not a tensor of features."
            raise InputError(what, ARGUMENT_HINT)
        value = value.detach()
        if self._channel_axis is not None:
            value = value.movedim(self._channel_axis, -1).flatten(0, -2)
        batch = value.to(torch.float64 if self._dtype.itemsize == 8 else torch.float32).cpu().numpy()
        with write_errors(self._path):
            dataset = self._file.root.get(name) or self._create(name, batch)
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

    def _create(self, name: str, batch: np.ndarray) -> h5py.Dataset:
        item = max(int(np.prod(batch.shape[1:])) * self._dtype.itemsize, 1)
        return self._file.root.create_dataset(
            name, (0, *batch.shape[1:]), self._dtype, maxshape=(None, *batch.shape[1:]),
            chunks=(max(CHUNK_BYTES // item, 1), *(max(n, 1) for n in batch.shape[1:])),
        )  # fmt: skip

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
    channel_axis: int | None = None,
    dtype: str = "float32",
    force: bool = False,
) -> Iterator[Recorder]:
    """Record what reaches `module` while the block runs: `with capture(model.quantizer, "feats.h5"): model(batch)`.

    Each call of the module appends argument `argument` of its forward, (N, …), to dataset `features`; a mapping records
    several modules, each under its name. Where a model uses its quantiser without calling it (EnCodec, Mimi), record what
    its encoder returns: `output=True`. The axes stay as they are; with `channel_axis` the others are flattened to rows.
    The file appears when the block ends, and not at all if it fails or if nothing was recorded (InputError).
    UsageError where `path` exists and `force` is not set.
    """
    path = Path(path)
    if dtype not in ("float16", "float32", "float64"):
        raise UsageError(f"dtype {dtype!r} is none of float16, float32 and float64.")
    check_target(path, force=force)
    modules = {"features": module} if isinstance(module, torch.nn.Module) else dict(module)
    temporary = beside(path)
    recorder = Recorder(path, temporary, dtype, channel_axis)
    try:
        handles = [_watch(name, part, argument, output, recorder) for name, part in modules.items()]
        try:
            yield recorder
        finally:
            for handle in handles:
                handle.remove()
        missed = [name for name in modules if not recorder.rows.get(name)]
        if missed:
            raise InputError(
                f"Nothing reached {', '.join(printable(name) for name in missed)} in this block; no file is written.",
                "Run the model inside the block; if it never calls this module itself, capture its encoder with output=True.",
            )
        recorder.close()
        publish(temporary, path)
    finally:
        recorder.abandon()
        temporary.unlink(missing_ok=True)


def _watch(name: str, module: torch.nn.Module, argument: int | str, output: bool, recorder: Recorder) -> Any:
    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_place = (*args, *kwargs.values())
        if isinstance(argument, str):
            recorder.add(name, kwargs.get(argument))
        else:
            recorder.add(name, by_place[argument] if argument < len(by_place) else None)

    def after(_: torch.nn.Module, args: tuple[Any, ...], returned: object) -> None:
        recorder.add(name, returned[0] if isinstance(returned, tuple | list) and returned else returned)

    if output:
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
