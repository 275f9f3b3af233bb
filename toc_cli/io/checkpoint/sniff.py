"""Which container a file is: told by its first bytes, not by its name; a sentence for each kind that is refused."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

from toc_cli.errors import InputError
from toc_cli.io.names import printable

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number that opens a torch file of before 1.6."""

FAISS_FILLER = (1 << 20).to_bytes(8, "little")
"""A constant in the header of every faiss index."""

COMPRESSED = (b"\x1f\x8b", b"x\x01", b"x^", b"x\x9c", b"x\xda", b"BZh", b"\xfd7zXZ\x00", b"]\x00\x00", b'\x04"M\x18')
"""First bytes of gzip, zlib at each of its levels, bzip2, xz, lzma and lz4, in which joblib wraps its pickles."""

SAFETENSORS_HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the safetensors library itself."""


def container_of(path: Path) -> str:
    """safetensors, index, torch, torch legacy, npz, npy, h5 or faiss. InputError for whatever else the file is."""
    shown = printable(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist.") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{shown} is a folder, not a file.", "Name a file in it.")
    if not stat.S_ISREG(mode):
        raise InputError(f"{shown} is not a regular file.")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    _refuse_damage(shown, head)
    if path.name.endswith(".index.json"):
        return "index"
    if head[:4] == b"PK\x03\x04":
        kind = _zip_kind(path)
        if kind == "torch" and path.suffix == ".safetensors":
            raise InputError(f"{shown} is a torch file under the name of a safetensors file.", "Rename it to .pt.")
        return kind
    if head.startswith(LEGACY_TORCH):
        return "torch legacy"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    if (head[:1] == b"I" and head[16:24] == FAISS_FILLER) or path.suffix == ".pq":
        return "faiss"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    _refuse_pickle(shown, head, path.suffix)
    raise InputError(
        f"{shown} is in no container that toc reads (it starts with {head[:8]!r}).",
        "It reads .safetensors, .pt/.pth/.ckpt/.bin/.th, .npz, .npy, .h5, faiss indexes and Hugging Face folders.",
    )


def _refuse_damage(shown: str, head: bytes) -> None:
    if not head:
        raise InputError(f"{shown} is empty (0 bytes).", "Download or save it again.")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError(f"{shown} is a Git LFS pointer, not the file itself.", "Fetch it with `git lfs pull`.")
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html") or head.lstrip()[:5].lower() == b"<html":
        raise InputError(f"{shown} is a web page, not a checkpoint.", "Download the file itself.")


def _zip_kind(path: Path) -> str:
    shown = printable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InputError(
            f"{shown} is truncated: its zip directory is missing or broken.", "Copy or download it again."
        ) from None
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise InputError(
            f"{shown} is a TorchScript archive: it holds a program, and is not loaded.",
            "Export its tensors: torch.save(torch.jit.load(path).state_dict(), 'weights.pt').",
        )
    if any(name.endswith("/data.pkl") for name in names):
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError(
                f"{shown} is a torch file with compressed entries, which torch.save never writes.",
                "Unzip it and zip it again without compression, or save it again with torch.save.",
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise InputError(f"{shown} is damaged: its zip entries claim more bytes than the file has.")
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith(".npy") for name in names):
        raise InputError(f"{shown} is a zip file with more than arrays in it.", "Save the arrays with np.savez.")
    raise InputError(f"{shown} is a zip file that holds neither a torch checkpoint nor numpy arrays.")


def _refuse_pickle(shown: str, head: bytes, suffix: str) -> None:
    compressed = head.startswith(COMPRESSED)
    named = suffix in {".joblib", ".pkl", ".pickle"}  # protocol 0 has no first byte of its own
    if (head[:1] == b"\x80" and head[1:2] <= b"\x05") or named or (compressed and suffix == ".bin"):
        raise InputError(
            f"{shown} is a Python pickle (joblib, scikit-learn or plain), which can run code when it is opened.",
            "Export the array: np.save('codebook.npy', joblib.load(path).cluster_centers_), where you trust the file.",
        )
    if head[257:262] == b"ustar":
        raise InputError(f"{shown} is a tar archive (torch before 0.1.10, or plain).", "Save it again with torch.save.")
