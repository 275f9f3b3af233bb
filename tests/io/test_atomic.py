"""Either the whole output stands under its name, or nothing of it does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from toc_cli.errors import OutputError, UsageError
from toc_cli.io.atomic import atomic_file, atomic_folder, check_target, sha256


def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def half() -> None:
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_os_error_becomes_a_sentence_with_exit_code_4(tmp_path: Path) -> None:
    message = r"could not be written: No space left on device\."
    with pytest.raises(OutputError, match=message) as caught, atomic_file(tmp_path / "out.bin"):
        raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_a_missing_output_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"), atomic_file(tmp_path / "no" / "x") as temporary:
        temporary.write_bytes(b"")


def test_a_folder_replaces_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def half() -> None:
        with atomic_folder(target) as folder:
            (folder / "new").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert [path.name for path in target.iterdir()] == ["old"]
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["sub"]
    (tmp_path / "file").write_text("old")
    with atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").is_dir()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", target]


def test_an_existing_target_and_an_input_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    check_target(target)
    target.write_text("")
    with pytest.raises(UsageError, match="--force"):
        check_target(target)
    check_target(target, force=True)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(UsageError, match="is an input"):
        check_target(link, force=True, inputs=[target])


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"toc" * 1_000_000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"toc" * 1_000_000).hexdigest()


FILES = [
    "containers/plain_state_dict.pt",
    "containers/legacy_non_zip.pth",
    "containers/bfloat16.safetensors",
    "containers/codebook.h5",
    "containers/codebook.npy",
    "containers/codebooks.npz",
    "transformers/encodec",
    "transformers/encodec_sharded",
]
WRITE = """
import resource, signal, sys
from pathlib import Path
from toc_cli.errors import OutputError
from toc_cli.io.checkpoint import Edits, open_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for source in sys.argv[2:]:
    checkpoint = open_checkpoint(source)
    key = max(checkpoint.infos, key=lambda key: checkpoint.infos[key].nbytes)
    try:
        checkpoint.write(Path(sys.argv[1]), Edits({key: checkpoint.get(key) * 2}))
    except OutputError as error:
        print(error)
    else:
        print("written", source)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
def test_a_full_disk_leaves_nothing_behind(fixtures_dir: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: every write beyond it fails, as it would there."""
    target = tmp_path / "out"
    command = [sys.executable, "-c", WRITE, str(target), *(str(fixtures_dir / name) for name in FILES)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == len(FILES)
    for line in lines:
        assert line.startswith(str(target)), line
        assert "could not be written" in line
    assert not list(tmp_path.iterdir())
