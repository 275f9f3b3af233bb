"""What was opened as features: the modalities, the labels, and the files, which must stay as they were."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.features.labels import LabelSet
from toc_cli.io.features.stream import Stream
from toc_cli.io.features.tokens import Recorded
from toc_cli.io.names import printable
from toc_cli.io.standing import Standing


class Features:
    """Every modality of the named files, and the labels that came with them."""

    def __init__(
        self,
        files: Sequence[Path],
        datasets: dict[str, Stream],
        labels: dict[str, LabelSet],
        tokens: Mapping[str, Recorded] | None = None,
    ) -> None:
        self.files = tuple(files)
        """As named, for hashing."""
        self.datasets = datasets
        """By modality, in the order of the files; also those that cannot be features, whose `problem` says why."""
        self.labels = labels
        """By name."""
        self.tokens = dict(tokens or {})
        """What the model itself chose, by modality, where it was recorded."""
        self._standing = Standing(self.files)

    def select(self, widths: Collection[int]) -> list[Stream]:
        """The modalities with one of these widths. InputError that names the widths where none has it, or why none can be used.

        Integer arrays of that width (tokens, say) are passed over as long as there are others; an empty one is an error, as
        are parts of unlike width or type.
        """
        fitting = [stream for stream in self.datasets.values() if any(part.width in widths for part in stream.parts)]
        usable = [stream for stream in fitting if not stream.problem]
        for stream in fitting:
            if stream.problem and (not usable or stream.dtype.kind == "f" or stream.rows == 0):
                raise stream.problem
        if not usable:
            raise self._misfit(widths)
        return usable

    def _misfit(self, widths: Collection[int]) -> InputError:
        wanted = " or ".join(str(width) for width in sorted(widths))
        found = ", ".join(f"{printable(d.name, 60)} {d.shape}" for d in list(self.datasets.values())[:6])
        what = f"No dataset of the features has {wanted} channels: there is {found or 'no array of numbers'}."
        if not found:
            return InputError(
                what, "Features are plain arrays (..., channels); ragged ones, text and records are none."
            )
        for stream in self.datasets.values():
            for axis, length in enumerate(stream.parts[0].source.shape):
                if length in widths:
                    return InputError(
                        what, f"If they lie along axis {axis} of {printable(stream.name, 60)}: --channel-axis {axis}."
                    )
        return InputError(what, "Record what reaches this quantiser, for instance with toc_cli.capture.")

    def blocks(
        self, name: str, *, start: int = 0, stop: int | None = None, rows_multiple: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """`Stream.blocks` of a modality."""
        return self.datasets[name].blocks(start=start, stop=stop, rows_multiple=rows_multiple)

    def refuse_changes(self) -> None:
        """InputError for a file that is not as it was when it was opened."""
        self._standing.refuse_changes()
