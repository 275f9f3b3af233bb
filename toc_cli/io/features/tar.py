"""A WebDataset tar: members `SAMPLE.WORD.npy` (or .pth), one sample after the other, read where they lie."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.arrays import read_header
from toc_cli.io.features.raw import RawSource
from toc_cli.io.features.source import ArraySource, Source
from toc_cli.io.names import printable

MEMBER_LIMIT = 10_000_000
LABEL_BYTES = 64


def tar_sources(path: Path) -> dict[str, Source]:
    """The arrays of a tar by `SAMPLE/WORD` (`SAMPLE` for SAMPLE.npy); whole numbers in .cls members are `SAMPLE/label`."""
    found: dict[str, Source] = {}
    endings: set[str] = set()
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for count, member in enumerate(archive):
                if count > MEMBER_LIMIT:
                    raise InputError(f"{printable(path)} holds too many members.")
                if member.isfile() and not member.issparse():
                    folder, _, name = member.name.rpartition("/")
                    sample, _, ending = name.partition(".")
                    endings.add(ending.rpartition(".")[2])
                    where = f"{folder}/{sample}".strip("/")
                    source = _member(path, file, member, ending)
                    if source is not None:
                        word = "label" if ending == "cls" else ending.rpartition(".")[0]
                        found[f"{where}/{word}" if word else where] = source
                # The archive would keep every header that it has met.
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{printable(path)} is damaged: {printable(error)}.", "Copy or write it again.") from None
    if not found:
        seen = ", ".join(printable(ending, 20) for ending in sorted(endings - {""})[:6])
        raise InputError(
            f"{printable(path)} is a tar without features" + (f" (it holds {seen})." if seen else "."),
            "Features are its .npy members, as WebDataset writes them; run a model over pictures or sound first: toc capture.",
        )
    return found


def _member(path: Path, file: IO[bytes], member: tarfile.TarInfo, ending: str) -> Source | None:
    kind = ending.rpartition(".")[2]
    shown = f"{printable(path)}: {printable(member.name)}"
    if kind == "npy":
        at = file.tell()
        file.seek(member.offset_data)
        header = read_header(file, shown, member.size)
        file.seek(at)
        return RawSource(path, member.offset_data + header.length, header)
    if kind in ("pth", "pt"):
        raise InputError(f"{shown} is a torch file inside of a tar.", "Unpack the tar, and give its folder.")
    if kind == "cls" and member.size <= LABEL_BYTES:
        at = file.tell()
        file.seek(member.offset_data)
        text = io.BytesIO(file.read(member.size)).read().strip()
        file.seek(at)
        return ArraySource(np.array(int(text))) if text.lstrip(b"-").isdigit() else None
    return None
