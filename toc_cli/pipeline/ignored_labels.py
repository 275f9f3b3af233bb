"""Labels that a run leaves out, and why: said, since a probe that is missing looks like one that was not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toc_cli.io.features import Features, Stream
from toc_cli.io.names import printable

WORDS = ("class", "target", "category", "categories", "genre", "speaker")
"""How whole numbers along the features are called that may be meant for labels."""


def ignored_labels(features: Features, met: Sequence[Stream]) -> list[dict[str, Any]]:
    """Warnings of labels that fit no modality of the run, of numbers that are no classes, and of other names."""
    found = []
    for labels in features.labels.values():
        if not any(labels.fits(stream) for stream in met):
            found.append(
                f"labels {printable(labels.name, 60)} {labels.shape} stand along none of "
                f"{', '.join(f'{printable(stream.name, 60)} {stream.shape}' for stream in met[:4])}, and are left out"
            )
    for name, stream in features.datasets.items():
        last, shape = name.rpartition("/")[2], stream.parts[0].source.shape
        if last.startswith("label"):
            found.append(
                f"labels {printable(name, 60)} {shape} are {stream.dtype}: classes are whole numbers; they are left out"
            )
        elif stream.dtype.kind in "iu" and last.startswith(WORDS) and any(_along(shape, other) for other in met):
            found.append(
                f"{printable(name, 60)} {shape} may be labels: call it label… to have it probed; it is left out"
            )
    return [{"id": "labels", "codebook": None, "text": f"{text}."} for text in found]


def _along(shape: tuple[int, ...], stream: Stream) -> bool:
    """Whether there is a whole number for each clip or row."""
    lead = stream.whole.lead_shape
    return bool(shape) and (lead[: len(shape)] == shape or shape == (stream.whole.units,))
