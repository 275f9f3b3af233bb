"""What is published is the old outputs or the new ones, whole, wherever a run is killed; and one run at a time is at it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from toc_cli.errors import OutputError, UsageError
from toc_cli.io import publish
from toc_cli.io.publish import Publication, published, recover

FILES = ("m.masked.bin", "m.toc.json", "m.toc.safetensors")


def write(home: Path, content: str, *, force: bool = True) -> None:
    """A run with three files and a folder."""
    with Publication(home / "m") as run:
        for name in FILES:
            (run.new / name).write_text(content)
        (run.new / "m.sliced").mkdir()
        (run.new / "m.sliced" / "weights").write_text(content)
        run.publish(home / "m.toc.json", force=force)


def found(home: Path) -> set[str]:
    """The contents that stand under the names of the run, "" for a name that does not."""
    paths = [*(home / name for name in FILES), home / "m.sliced" / "weights"]
    return {path.read_text() if path.exists() else "" for path in paths}


def test_outputs_appear_together_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "new", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.masked.bin",
        "m.sliced",
        "m.toc.json",
        "m.toc.safetensors",
    ]
    with pytest.raises(UsageError, match=r"m\.\w+.* exists"):
        write(tmp_path, "newer", force=False)
    assert found(tmp_path) == {"new"}
    write(tmp_path, "newer")
    assert found(tmp_path) == {"newer"}
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError, OSError])
def test_a_run_that_fails_leaves_what_stood(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path, "old")

    def half() -> None:
        with published(tmp_path / "m.toc.json", force=True) as aside:
            aside.write_text("half")
            raise error("stopped")

    with pytest.raises(error):
        half()
    assert found(tmp_path) == {"old"}
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("standing", [False, True])
def test_a_rename_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standing: bool) -> None:
    if standing:
        write(tmp_path, "old")
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if Path(target) == tmp_path / "m.toc.safetensors" and Path(source).parent.name == "new":
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path, "new")
    assert len(calls) > 3
    assert found(tmp_path) == ({"old"} if standing else {""})
    assert len(list(tmp_path.iterdir())) == (4 if standing else 0)


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Run `work` in a child that SIGKILLs itself at its `step`-th change of the file system; False where it ended before."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                nonlocal calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            return call

        for name in ("rename", "replace", "link", "unlink", "rmdir", "fsync", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="fork is POSIX")
@pytest.mark.parametrize("standing", [False, True])
def test_a_run_killed_at_any_step_is_the_old_one_or_the_new_one(tmp_path: Path, standing: bool) -> None:
    before = {"old"} if standing else {""}
    outcomes, step = [], 0
    while True:
        step += 1
        home = tmp_path / str(step)
        home.mkdir()
        if standing:
            write(home, "old")
        if not killed_at(step, lambda home=home: write(home, "new")):  # type: ignore[misc]
            break
        others = {path.name for path in home.iterdir()} - {*FILES, "m.sliced"}
        assert others <= {".m.toc-aside"}
        assert found(home) <= before | {"new", ""}
        recover(home / "m")
        assert found(home) in (before, {"new"})
        assert {path.name for path in home.iterdir()} <= {*FILES, "m.sliced"}
        outcomes.append(found(home) == {"new"})
    assert step > 20
    assert outcomes == sorted(outcomes)
    assert True in outcomes
    assert False in outcomes


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with published(tmp_path / "x", force=False) as aside:
        aside.write_text("first")
        for second in (lambda: recover(tmp_path / "x"), lambda: Publication(tmp_path / "x").__enter__()):
            with pytest.raises(UsageError, match=r"Another run is writing .*x now"):
                second()
        with published(tmp_path / "y", force=False) as other:
            other.write_text("another target")
    assert (tmp_path / "x").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_run_told_to_wait_comes_after_the_first(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from toc_cli.io.publish import Publication\n"
        "target = Path(sys.argv[1])\n"
        "with Publication(target, wait=True) as run:\n"
        "    (run.new / target.name).write_text('second')\n"
        "    run.publish(target, force=True)\n"
    )
    with published(tmp_path / "x", force=False) as aside:
        second = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")])
        aside.write_text("first")
    assert second.wait(timeout=60) == 0
    assert (tmp_path / "x").read_text() == "second"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"names": ["../x"]}', '{"names": []}', '{"names": ["a/b"]}', '{"names": [".."]}']
)
def test_a_journal_that_leads_elsewhere_is_not_obeyed(tmp_path: Path, text: str) -> None:
    folder = Publication(tmp_path / "m").folder
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "x").write_text("planted")
    (folder / "journal.json").write_text(text)
    with pytest.raises(OutputError, match="journal that cannot be read"):
        recover(tmp_path / "m")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_side_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep").write_text("mine")
    Publication(tmp_path / "m").folder.symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="is a link"):
        recover(tmp_path / "m")
    assert (tmp_path / "mine" / "keep").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_where_the_file_system_has_no_locks_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(random.Random(0).choice(publish.NO_LOCKS), "no locks here")

    monkeypatch.setattr(publish.fcntl, "flock", flock)
    write(tmp_path, "new", force=False)
    assert found(tmp_path) == {"new"}
