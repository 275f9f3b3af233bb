"""Publishing last: a run writes its outputs into a side folder of the target, and renames them one after the other at the end.

The folder holds `lock` (held while a run is at it), `new/` (what is written), `old/` (what it replaces) and, once everything is
whole, `journal.json`: the names, in order. From the journal on the run is carried out whatever happens: by itself, or, where it was
killed between two renames, by the next run to the same target. Without a journal the folder is waste, and the next run sweeps it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from toc_cli.errors import OutputError, TocError, UsageError
from toc_cli.io.atomic import atomic_file, sync, write_errors
from toc_cli.io.names import printable

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers (Lustre without `flock`): there, two runs at once are not told apart."""


class Publication:
    """The outputs of one run to one target, from the first byte aside to the last rename.

    `name` is the target: a file, or the stem that the names of all outputs begin with. Entering takes the lock, carries out what an
    earlier run was killed in, and sweeps; leaving removes the folder. `finished` says whether an earlier run was carried out.

    Raises on entering: UsageError where another run holds the lock, unless told to `wait` for its end; OutputError where the folder
    cannot be made.
    """

    def __init__(self, name: Path, *, wait: bool = False) -> None:
        self.name, self.home = name, name.parent
        short = (
            name.name if len(name.name) <= 100 else name.name[:80] + hashlib.sha256(name.name.encode()).hexdigest()[:16]
        )
        self.folder = self.home / f".{short}.toc-aside"
        self.new, self.finished = self.folder / "new", False
        self._old, self._journal = self.folder / "old", self.folder / "journal.json"
        self._wait = wait

    def __enter__(self) -> Publication:
        with write_errors(self.name):
            self._lock = self._locked()
        try:
            if self._journal.exists():
                self._carry_out(self._names())
                self.finished = True
            with write_errors(self.name):
                self._sweep()
                self.new.mkdir()
                self._old.mkdir()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._journal.exists():
            with suppress(OSError):
                self._sweep()
                (self.folder / "lock").unlink()
        os.close(self._lock)
        with suppress(OSError):
            self.folder.rmdir()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors of what is written aside, in the words of the names that it is meant for."""
        try:
            yield
        except TocError as error:
            meant = error.what.replace(
                f"{printable(self.new)}{os.sep}", "" if self.home == Path() else f"{self.home}{os.sep}"
            )
            raise type(error)(meant, error.hint) from error

    def publish(self, last: Path, *, force: bool) -> None:
        """Give everything aside its name, `last` at the end. UsageError where a name stands and not `force`; OutputError where
        a rename fails: what stood before then stands again."""
        names = [*sorted(entry.name for entry in self.new.iterdir() if entry.name != last.name), last.name]
        if not force:
            for name in names:
                if os.path.lexists(self.home / name):
                    raise UsageError(
                        f"{printable(self.home / name)} exists.",
                        "Pass --force to replace it, or name another output with -o.",
                    )
        with write_errors(self.home / last.name):
            for path in (*self.new.rglob("*"), self.new):
                sync(path)
        for name in names:
            self._link_old(name)
        with atomic_file(self._journal) as temporary:
            temporary.write_text(json.dumps({"names": names}), encoding="utf-8")
        try:
            self._carry_out(names)
        except BaseException:
            self._take_back(names)
            raise

    def _carry_out(self, names: Sequence[str]) -> None:
        """The renames that are not done yet, and the end of the journal."""
        with write_errors(self.home / names[-1]):
            for name in names:
                new, target, old = self.new / name, self.home / name, self._old / name
                if os.path.lexists(new):
                    if os.path.lexists(target) and not os.path.lexists(old):
                        os.rename(target, old)
                    os.replace(new, target)
            sync(self.home)
            self._journal.unlink()

    def _take_back(self, names: Sequence[str]) -> None:
        for name in reversed(names):
            new, target, old = self.new / name, self.home / name, self._old / name
            if not os.path.lexists(new):
                os.rename(target, new)
            if os.path.lexists(old):
                os.replace(old, target)
        self._journal.unlink(missing_ok=True)

    def _link_old(self, name: str) -> None:
        """A second name for a file that a file will replace: its own then never stands empty. All else is moved in its turn."""
        target = self.home / name
        if target.is_file() and not target.is_symlink() and (self.new / name).is_file():
            with suppress(OSError):
                os.link(target, self._old / name)

    def _names(self) -> list[str]:
        """The names in a journal, which are plain names that belong to the target."""
        try:
            names = json.loads(self._journal.read_text(encoding="utf-8"))["names"]
            good = all(
                isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..") for name in names
            )
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good or not names:
            raise OutputError(
                f"{printable(self.folder)} holds a journal that cannot be read.",
                "Look at what is in there, and remove it.",
            )
        return list(names)

    def _sweep(self) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()

    def _locked(self) -> int:
        """The lock of this target. A run that has just ended may have removed the file that was opened: then again."""
        while True:
            if self.folder.is_symlink():
                raise OutputError(f"{printable(self.folder)} is a link and is not followed.", "Remove it.")
            self.folder.mkdir(exist_ok=True)
            path = self.folder / "lock"
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue
            try:
                if not _lock(lock, wait=self._wait):
                    raise UsageError(
                        f"Another run is writing {printable(self.name)} now.",
                        "Let it end, or name another output with -o.",
                    )
                if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(lock)):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def recover(name: Path, *, wait: bool = False) -> bool:
    """Sweep what a killed run to this target left, or carry it out; True where it was carried out and its outputs are whole now.

    UsageError where a run that is alive is writing the target, unless told to wait for its end.
    """
    publication = Publication(name, wait=wait)
    if not publication.folder.is_dir():
        return False
    with publication:
        return publication.finished


@contextmanager
def published(target: Path, *, force: bool) -> Iterator[Path]:
    """One file or folder, written aside: the path to write to, which becomes `target` when the block ends well."""
    with Publication(target) as publication:
        with publication.told():
            yield publication.new / target.name
        publication.publish(target, force=force)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return True
