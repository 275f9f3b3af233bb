"""Bytes of stored zip entries replaced in place: what changes is written, with its checksum; the rest stays as it is.

Format (APPNOTE 4.3): a local header of 30 bytes with the CRC-32 at 14, or, under flag 8, a descriptor behind the data; a
central directory of records of 46 bytes with the CRC-32 at 16, lengths of name, extra and comment at 28, offset at 42.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

RECORD = 46
BLOCK = 1 << 20


def refresh_checksum(path: Path, member: zipfile.ZipInfo, start: int) -> None:
    """Set the CRC-32 of an entry whose bytes, from `start` on, were changed. ValueError where the archive is not as it says."""
    with open(path, "r+b") as file:
        checksum = struct.pack("<I", _checksum(file, start, member.file_size))
        if member.flag_bits & 8:
            file.seek(start + member.file_size)
            signed = file.read(4) == b"PK\x07\x08"
            _write(file, start + member.file_size + (4 if signed else 0), checksum)
        else:
            _write(file, member.header_offset + 14, checksum)
        _write(file, _record(path, file, member) + 16, checksum)


def _checksum(file: BinaryIO, start: int, count: int) -> int:
    file.seek(start)
    value = 0
    while count:
        block = file.read(min(count, BLOCK))
        if not block:
            raise ValueError("an entry ends early")
        value = zlib.crc32(block, value)
        count -= len(block)
    return value


def _record(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where the record of an entry stands in the central directory."""
    with zipfile.ZipFile(path) as archive:
        at, count = archive.start_dir, len(archive.infolist())
    name = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
    for _ in range(count):
        file.seek(at)
        record = file.read(RECORD)
        if len(record) < RECORD or not record.startswith(b"PK\x01\x02"):
            break
        lengths = struct.unpack("<HHH", record[28:34])
        if file.read(lengths[0]) == name:
            return at
        at += RECORD + sum(lengths)
    raise ValueError(f"the directory has no record of {name!r}")


def _write(file: BinaryIO, at: int, data: bytes) -> None:
    file.seek(at)
    file.write(data)
