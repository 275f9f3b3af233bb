"""The artefact `<stem>.toc.safetensors` and the record `<stem>.toc.json`: byte for byte the same for the same inputs."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.checkpoint.safetensors import ARTEFACT_KEY, NAMES, SafetensorsFile, tensor_bytes
from toc_cli.io.checkpoint.stored_types import type_name
from toc_cli.io.described import flaw
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

SCHEMA = "2"
READ_SCHEMAS = ("1", SCHEMA)
RECORD_SCHEMA = 2
"""Of the record: version 1 is still read."""
CODEBOOKS_KEY = "toc.codebooks"


@dataclass(frozen=True)
class Artefact:
    """A pruned codebook on disk: tensors named `c.codebook`, `c.kept`, …, and one description per codebook id c."""

    tensors: Mapping[str, torch.Tensor]
    codebooks: tuple[Mapping[str, Any], ...]
    """Per id: family, metric, keys, residual, … as the writer described them."""
    metadata: Mapping[str, str]
    """The rest of `__metadata__`: tool version, criterion, weights, SHA-256 of the inputs."""


def write_artefact(path: Path, artefact: Artefact) -> None:
    """Write `path` in one piece: header in key order (the library's own writer shuffles metadata), no time stamps, no paths."""
    described = json.dumps(list(artefact.codebooks), sort_keys=True)
    metadata = {**artefact.metadata, ARTEFACT_KEY: SCHEMA, CODEBOOKS_KEY: described}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    tensors = sorted(artefact.tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for key, tensor in tensors:
        end = offset + tensor.numel() * tensor.dtype.itemsize
        header[key] = {
            "dtype": NAMES[type_name(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in tensors:
            file.write(tensor_bytes(tensor))


def read_artefact(path: Path) -> Artefact:
    """Read an artefact back. InputError if the file is not one, or is of another schema."""
    file = SafetensorsFile(path)
    metadata = dict(file.metadata)
    shown = printable(path.name)
    schema = metadata.pop(ARTEFACT_KEY, None)
    if schema is None:
        raise InputError(
            f"{shown} is not a pruned codebook of toc.", "toc optimize writes one (<stem>.toc.safetensors)."
        )
    if schema not in READ_SCHEMAS:
        raise InputError(
            f"{shown} has artefact schema {printable(schema)}; this toc reads {' and '.join(READ_SCHEMAS)}.",
            "Upgrade toc-cli.",
        )
    codebooks = descriptions(file)
    del metadata[CODEBOOKS_KEY]
    return Artefact({key: file.get(key) for key in file.infos}, codebooks, metadata)


def descriptions(file: Checkpoint) -> tuple[Mapping[str, Any], ...]:
    """What an artefact says of its codebooks, checked against its tensors. InputError where it does not fit them."""
    shown, again = printable(file.path.name), "Write it again with toc optimize."
    try:
        described = json.loads(file.values[CODEBOOKS_KEY,])
    except (KeyError, ValueError, TypeError, RecursionError):
        described = None
    if not isinstance(described, list) or not described:
        raise InputError(f"{shown} does not describe its codebooks.", again)
    for id, about in enumerate(described):
        problem = flaw(file.infos, id, about)
        if problem:
            raise InputError(f"{shown} is damaged: {problem}.", again)
    return tuple(described)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a run record as JSON with sorted keys, in one piece."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
