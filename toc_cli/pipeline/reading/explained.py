"""Whether a codebook explains the features at all: before any pruning, by the signal to noise ratio of its own vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from toc_cli.io.names import printable

EXPLAINED_DB = 0.0
"""At or below it the mean of the features would stand for them as well as their codes do."""
UNKNOWN = (
    "these features are not what this codebook was trained on, or are read the wrong way (axis, scale, metric, side of a "
    "projection)."
)
KNOWN = (
    "they are read as the model reads them (its own tokens prove it), so the model is untrained, or these data are not of "
    "its kind."
)


def unexplained(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A warning of the record for each codebook entry (and modality of it) whose `before.snr_db` is at or below 0 dB."""
    found = []
    for entry in entries:
        sides = entry["per_modality"] or {"": entry}
        for name, side in sides.items():
            snr = side["before"]["snr_db"]
            if snr is not None and snr <= EXPLAINED_DB:
                label = printable(entry["key"], 120) or "the array"
                of = f" of {printable(name, 60)}" if name else ""
                why = KNOWN if entry.get("evidence") == "proven" else UNKNOWN
                text = f"{label}: all dimensions together reach a signal to noise{of} of {snr:.1f} dB: {why}"
                found.append({"id": "unexplained_features", "codebook": entry["id"], "text": text})
    return found
