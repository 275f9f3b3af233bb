"""The build backend: setuptools, whose sdist is packed again with one time and one owner where SOURCE_DATE_EPOCH is set."""

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403
from setuptools.command.egg_info import manifest_maker

manifest_maker.template = ".ci/sdist.in"  # the top level of the project is fixed: no MANIFEST.in there


def build_sdist(sdist_directory, config_settings=None):
    """setuptools' sdist; two of the same tree are equal byte for byte under one SOURCE_DATE_EPOCH, as its wheels are."""
    name = build_meta.build_sdist(sdist_directory, config_settings)
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        _pack_again(Path(sdist_directory, name), int(epoch))
    return name


def _pack_again(path: Path, epoch: int) -> None:
    fresh = path.with_suffix(".tmp")
    with (
        tarfile.open(path) as old,
        fresh.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname, member.pax_headers = (
                epoch,
                0,
                0,
                "",
                "",
                {},
            )
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    fresh.replace(path)
