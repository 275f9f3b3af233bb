"""Features of every container as modalities, each a stream of parts: `open_features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.containers import feature_suffixes, open_features_file
from toc_cli.io.features.collection import Features
from toc_cli.io.features.grouping import Entry, Group, groups
from toc_cli.io.features.labels import LabelSet
from toc_cli.io.features.part import Part
from toc_cli.io.features.places import Place, places
from toc_cli.io.features.source import ArraySource, Source
from toc_cli.io.features.starts import with_starts
from toc_cli.io.features.stream import Stream
from toc_cli.io.features.tokens import Recorded, recorded, split
from toc_cli.io.names import printable
from toc_cli.io.stamps import Stamps

__all__ = ["Features", "LabelSet", "Part", "Recorded", "Stream", "describe", "open_features"]

Array = np.ndarray | torch.Tensor


def open_features(
    paths: str | Path | Array | Mapping[str, Array] | Sequence[str | Path],
    *,
    modalities: Sequence[str] = (),
    channel_axis: int | None = None,
    max_memory: int = 1 << 30,
    limit: int | None = None,
) -> Features:
    """List the feature arrays of files, or take arrays; nothing of a file's data is read.

    A path is a file, a folder, a glob or `@list` (a file of paths), and may be `name=path`. Arrays whose names differ only
    in digits are parts of one modality, as are one group or dataset per clip, the files of a folder, a glob or a list, and
    what is given one name. A modality is called by its name, else by the words of its keys (.npy: of its files).
    Integer arrays `NAME.tokens` beside NAME, or `tokens` beside the only array, are the model's own tokens of its rows.
    `modalities` picks by name, or single arrays by key. `channel_axis` (default -1) holds the channels, the other axes are
    flattened to rows. `max_memory` (bytes) bounds what a pass over a modality takes. `limit`: so many rows of each, spread
    over its units.
    InputError for files that cannot be read and picked arrays that cannot be features; UsageError for unknown names.
    """
    entries, files = _entries(paths)
    labels = [entry for entry in entries if _is_label(entry)]
    others, tokens = split([entry for entry in entries if not _is_label(entry)])
    arrays = [entry for entry in others if _axis(entry.source, channel_axis) is not None]
    if others and not arrays and channel_axis is not None:
        shape = others[0].source.shape
        raise InputError(
            f"--channel-axis {channel_axis}: {printable(others[0].key) or 'the array'} {shape} has axes 0 to {len(shape) - 1}.",
            "Name the axis of the channels.",
        )
    classes = groups(labels)
    by_part = any(len(group.entries) > 1 for group in classes)
    streams = [
        Stream(group.name, _parts(group, channel_axis, by_part), max_memory)
        for group in _modalities(arrays, modalities)
    ]
    for stream in streams:
        if stream.bounds is None:
            for other in streams:
                if other.lead_shape == stream.lead_shape:
                    stream.adopt_units(other)
    if modalities:
        for stream in streams:
            if stream.problem:
                raise stream.problem
    if limit is not None:
        streams = [stream.limited(limit) for stream in streams]
    label_sets = {group.name: LabelSet(group.name, _parts(group, None, by_part)) for group in classes}
    chosen = {stream.name: found for stream in streams if (found := recorded(stream, tokens))}
    return Features(files, {stream.name: stream for stream in streams}, label_sets, chosen)


def _entries(
    paths: str | Path | Array | Mapping[str, Array] | Sequence[str | Path],
) -> tuple[list[Entry], list[Path]]:
    """Every array in order, and the files they are in."""
    if isinstance(paths, np.ndarray | torch.Tensor):
        paths = {"features": paths}
    if isinstance(paths, Mapping):
        return [Entry(Place(name, Path(name)), "", _in_memory(array)) for name, array in paths.items()], []
    found = [
        place
        for argument in ([paths] if isinstance(paths, str | Path) else paths)
        for place in places(argument, feature_suffixes())
    ]
    entries = [
        Entry(place, key, source)
        for place in found
        for key, source in with_starts(place.path, open_features_file(place.path)).items()
    ]
    lists = (entry.source.path for entry in entries if entry.source.path != Path())
    return entries, list(dict.fromkeys([*(place.path for place in found), *lists]))


def _in_memory(array: Array) -> Source:
    if isinstance(array, torch.Tensor):
        plain = array.detach().cpu()
        array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return ArraySource(array)


def _is_label(entry: Entry) -> bool:
    name = entry.key.rpartition("/")[2] or entry.place.name or entry.place.path.stem
    return name.startswith("label") and entry.source.dtype.kind in "iu"


def _axis(source: Source, channel_axis: int | None) -> int | None:
    """The channel axis counted from 0: the one asked for, else the one its capture noted, else the last; None where the array has
    no such axis."""
    ndim = len(source.shape)
    if channel_axis is None and (attributes := source.attributes()):
        channel_axis = Stamps.read(attributes, "the features").channel_axis
    axis = -1 if channel_axis is None else channel_axis
    return axis % ndim if -ndim <= axis < ndim else None


def _parts(group: Group, channel_axis: int | None, named: bool) -> list[Part]:
    """The parts of a group; `named`: each with its id."""
    ids = group.ids if named else [()] * len(group.entries)
    return [
        Part(entry.place.path, entry.key, entry.source, _axis(entry.source, channel_axis) or 0, id)
        for entry, id in zip(group.entries, ids, strict=True)
    ]


def _modalities(arrays: Sequence[Entry], wanted: Sequence[str]) -> list[Group]:
    """All modalities, or those that are wanted: by name, or a single array by its key. UsageError for an unknown name."""
    found = {group.name: group for group in groups(arrays)}
    if not wanted:
        return list(found.values())
    picked = []
    for name in wanted:
        alone = [entry for entry in arrays if entry.key == name]
        if name in found:
            picked.append(found[name])
        elif len(alone) == 1:
            picked.append(Group(name, (alone[0],), tuple(name.split("/"))))
        else:
            known = ", ".join(printable(known, 60) for known in list(found)[:20]) or "none"
            raise UsageError(f"There is no modality {printable(name)} in the features.", f"There is: {known}.")
    return picked


def describe(stream: Stream) -> dict[str, Any]:
    """What was understood of a modality, for the record: its parts, units, rows and width."""
    return {
        "name": stream.name,
        "parts": len(stream.parts) if stream.whole is stream else len(stream.whole.parts),
        "unit": stream.unit,
        "units": stream.units if stream.bounds is not None else None,
        "rows": stream.rows,
        "width": stream.width,
        "dtype": str(stream.dtype),
    }
