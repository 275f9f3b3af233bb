"""Writing that either happens or does not: a temporary name beside the target, fsync, one rename."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toc_cli.errors import OutputError, UsageError
from toc_cli.io.names import printable


def check_target(target: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Refuse, before any work, a target that cannot be meant: UsageError where it exists (without `force`), is one of the
    inputs or a device; OutputError where its folder is missing or not writable."""
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(
            f"{printable(target)} could not be written: its folder does not exist.",
            "Create it, or name another output.",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{printable(target)} could not be written: its folder is not writable.", "Name another output."
        )
    for source in inputs:
        if target.exists() and source.exists() and target.samefile(source):
            raise UsageError(f"{printable(target)} is an input and is never written.", "Name another output with -o.")
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UsageError(f"{printable(target)} is no regular file and is never replaced.", "Name a file.")
    if os.path.lexists(target) and not force:
        raise UsageError(f"{printable(target)} exists.", "Pass --force to replace it, or name another output with -o.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """A path to write to; on success it becomes `target`, on any exception (Ctrl-C too) it is removed.

    An OSError inside becomes OutputError; writers wrap other exceptions of their libraries in `write_errors`.
    """
    target = Path(target)
    temporary = beside(target)
    try:
        with write_errors(target):
            yield temporary
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """A new empty folder to fill; on success it becomes `target` (an old one is replaced), else it is removed."""
    target = Path(target)
    temporary, old = beside(target), beside(target)
    try:
        with write_errors(target):
            temporary.mkdir()
            yield temporary
            for path in sorted(temporary.rglob("*")):
                sync(path)
            sync(temporary)
            if target.exists():
                os.replace(target, old)
            try:
                os.replace(temporary, target)
            except BaseException:
                if old.exists():
                    os.replace(old, target)
                raise
            sync(target.parent)
    except OutputError as error:
        # A file inside has failed: the user knows it by the folder that it was meant for.
        raise OutputError(error.what.replace(printable(temporary), printable(target)), error.hint) from error
    finally:
        for path in (temporary, old):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def write_errors(target: Path, *also: type[Exception]) -> Iterator[None]:
    """Turn an OSError (and the exceptions of `also`) into the OutputError of this target."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *also)):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
        raise OutputError(
            f"{printable(target)} could not be written: {printable(reason)}.",
            "No output is half-written; free some space or name another place with -o.",
        ) from error


def beside(target: Path) -> Path:
    """A fresh temporary name in the target's folder: a rename inside one file system is atomic."""
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")


def publish(temporary: Path, target: Path) -> None:
    """Make a finished temporary file the target, on disk before it has the name. OutputError if that fails."""
    with write_errors(target):
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything depends on it."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
