"""Where captured rows come from: attributes of their dataset, written by every capture and read before the rows are used."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from toc_cli.errors import InputError
from toc_cli.io.names import printable

Side = Literal["encoder", "codebook", ""]
PREFIX = "toc."


@dataclass(frozen=True)
class Stamps:
    """What a capture knew of its rows; "" or nothing where it did not."""

    model: str = ""
    """Class of the model."""
    module: str = ""
    """Path of the module whose input (or output) the rows are."""
    side: Side = ""
    """encoder: before the projection that stands before the codes; codebook: past it, the codes' own space."""
    library: str = ""
    """Name and version."""
    checkpoint: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file of the weights, by name."""
    channel_axis: int | None = None
    """Axis of the dataset along which the feature dimensions lie."""

    def write(self, attributes: MutableMapping[str, Any]) -> None:
        """As `toc.model`, `toc.module`, `toc.side`, `toc.channel_axis`, `toc.library` and, as JSON, `toc.checkpoint`."""
        for name in ("model", "module", "side", "library"):
            if value := getattr(self, name):
                attributes[PREFIX + name] = value
        if self.channel_axis is not None:
            attributes[f"{PREFIX}channel_axis"] = self.channel_axis
        if self.checkpoint:
            attributes[f"{PREFIX}checkpoint"] = json.dumps(dict(self.checkpoint), sort_keys=True)

    @classmethod
    def read(cls, attributes: Mapping[str, Any], shown: str) -> Stamps:
        """InputError that names the dataset (`shown`) where a stamp is none that a capture writes."""
        words = {name: _text(attributes, name, shown) for name in ("model", "module", "side", "library")}
        if words["side"] not in get_args(Side):
            raise InputError(
                f"{shown} is stamped {PREFIX}side = {printable(words['side'], 40)}.", "It is encoder or codebook."
            )
        try:
            files = json.loads(_text(attributes, "checkpoint", shown) or "{}")
        except (ValueError, RecursionError):
            files = None
        if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
            raise InputError(
                f"{shown} has a {PREFIX}checkpoint that is no list of hashes.", "Capture the features again."
            )
        axis = _whole(attributes, "channel_axis", shown)
        return cls(words["model"], words["module"], cast(Side, words["side"]), words["library"], files, axis)


def _whole(attributes: Mapping[str, Any], name: str, shown: str) -> int | None:
    value = attributes.get(PREFIX + name)
    try:
        return None if value is None else operator.index(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        raise InputError(
            f"{shown} has a {PREFIX}{name} that is no whole number.", "Capture the features again."
        ) from None


def _text(attributes: Mapping[str, Any], name: str, shown: str) -> str:
    value = attributes.get(PREFIX + name, "")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str) or len(value) > 1 << 16:
        raise InputError(f"{shown} has a {PREFIX}{name} that is no short text.", "Capture the features again.")
    return value
