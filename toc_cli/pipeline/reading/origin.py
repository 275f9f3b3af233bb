"""Whether features were captured with the checkpoint that is pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toc_cli.io.features import Stream
from toc_cli.io.names import printable


def of_another_checkpoint(streams: Iterable[Stream], inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A warning of the record for each modality whose capture noted files of which none is among the run's `inputs`."""
    here = {entry["sha256"] for entry in inputs if entry["role"] == "checkpoint"}
    found = []
    for stream in streams:
        noted = stream.stamps.checkpoint
        if noted and here and not set(noted.values()) & here:
            name, hashed = next(iter(noted.items()))
            shown = f"{printable(name, 80)}, SHA-256 {printable(hashed[:12])}…"
            text = f"{printable(stream.name, 60)} was captured with another checkpoint ({shown})."
            found.append({"id": "other_checkpoint", "codebook": None, "text": text})
    return found
