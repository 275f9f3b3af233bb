"""A WebDataset tar: members `SAMPLE.WORD.npy` (or .pt, .pth), one sample after the other, read where they lie."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.arrays import read_header
from toc_cli.io.containers import is_torch
from toc_cli.io.features.raw import RawSource
from toc_cli.io.features.source import ArraySource, Source
from toc_cli.io.features.torch_tensors import tensors_of
from toc_cli.io.head import Within
from toc_cli.io.names import printable

MEMBER_LIMIT = 10_000_000
LABEL_BYTES = 64


def tar_sources(path: Path) -> dict[str, Source]:
    """The arrays of a tar by `SAMPLE/WORD` (`SAMPLE` for SAMPLE.npy), tensors of a torch file by `SAMPLE/WORD/KEY`; whole
    numbers in .cls members are `SAMPLE/label`."""
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
                    word = "label" if ending == "cls" else ending.rpartition(".")[0]
                    for key, source in _member(path, file, member, ending).items():
                        found["/".join(part for part in (where, word, key) if part)] = source
                # The archive would keep every header that it has met.
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{printable(path)} is damaged: {printable(error)}.", "Copy or write it again.") from None
    if not found:
        seen = ", ".join(printable(ending, 20) for ending in sorted(endings - {""})[:6])
        raise InputError(
            f"{printable(path)} is a tar without features" + (f" (it holds {seen})." if seen else "."),
            "Features are its .npy and .pt members, as WebDataset writes them; run a model over pictures or sound first: toc capture.",
        )
    return found


def _member(path: Path, file: IO[bytes], member: tarfile.TarInfo, ending: str) -> dict[str, Source]:
    """The arrays of a member by their keys in it, "" for a lone one."""
    kind = ending.rpartition(".")[2]
    shown = f"{printable(path)}: {printable(member.name)}"
    if kind in ("pth", "pt"):
        head = Within(path, member.offset_data, member.size, shown)
        if not is_torch(head):
            raise InputError(f"{shown} is no file of torch.save.", "Write its tensors with torch.save, or np.save.")
        return tensors_of(head)
    if kind != "npy" and not (kind == "cls" and member.size <= LABEL_BYTES):
        return {}
    at = file.tell()
    file.seek(member.offset_data)
    try:
        if kind == "npy":
            header = read_header(file, shown, member.size)
            return {"": RawSource(path, member.offset_data + header.length, header)}
        text = file.read(member.size).strip()
        return {"": ArraySource(np.array(int(text)))} if text.lstrip(b"-").isdigit() else {}
    finally:
        file.seek(at)
