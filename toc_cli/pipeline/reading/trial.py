"""One reading tried on a sample of the features: how many of the recorded tokens are its own.

Legend: n sampled rows, W width, C recorded tokens of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from toc_cli.errors import TocError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import detect
from toc_cli.io.families.base import Parts
from toc_cli.io.features import Recorded, Stream
from toc_cli.ops.metrics import block_spread, block_sums, measure
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.reading.columns import Place, places
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.reading.shares import PROVEN, Shares, agreement
from toc_cli.pipeline.source import Fit, Source, form_for, on_outer_side, sources, whole, widths


@dataclass(frozen=True)
class Sample:
    """Rows of one modality and what the model chose for them."""

    stream: Stream
    x: torch.Tensor  # (n, W)
    tokens: torch.Tensor  # (n, C) int64
    trailing: tuple[int, ...]


def sample(stream: Stream, recorded: Recorded | None, rows: int) -> Sample:
    """At most `rows` rows, spread over the modality."""
    ranges = stream.sample(rows)
    x = torch.from_numpy(np.concatenate([block for _, block in stream.ranges(ranges)]))
    if recorded is None:
        return Sample(stream, x, torch.empty(len(x), 0, dtype=torch.int64), ())
    found = np.concatenate([block for _, block in recorded.ranges(stream, ranges)])
    return Sample(stream, x, torch.from_numpy(found.reshape(len(found), -1)), recorded.trailing(stream))


@dataclass(frozen=True)
class Trial:
    """What one reading makes of a sample: shares by the place of the codebook in its list."""

    said: Said
    shares: dict[int, Shares]
    fits: dict[int, Fit]

    @property
    def least(self) -> float:
        """The lowest share of any codebook, level and head."""
        return min((each.least for each in self.shares.values()), default=0.0)

    @property
    def overall(self) -> float:
        """Equal tokens over all compared."""
        equal = sum(int(each.equal.sum()) for each in self.shares.values())
        return equal / max(1, sum(int(each.compared.sum()) for each in self.shares.values()))

    @property
    def agrees(self) -> bool:
        """Whether every level and head that was compared agrees."""
        return bool(self.shares) and self.least >= PROVEN


def attempt(said: Said, books: Sequence[Source], drawn: Sample, only: int | None = None) -> Trial | None:
    """The reading of these codebooks on a sample; None where no codebook has that width and as many tokens."""
    fitting = [at for at, source in enumerate(books) if drawn.stream.width in widths(source.full)]
    fitting = [at for at in fitting if only is None or at == only]
    ways = places(drawn.trailing, [(len(books[at].full.levels), books[at].full.heads) for at in fitting])
    best: Trial | None = None
    for way in ways:
        found = _share(said, books, drawn, [replace(place, book=fitting[place.book]) for place in way])
        if best is None or (found.least, found.overall) > (best.least, best.overall):
            best = found
    return best


def _share(said: Said, books: Sequence[Source], drawn: Sample, way: Sequence[Place]) -> Trial:
    shares, fits = {}, {}
    for place in way:
        full = books[place.book].full
        fit = Fit(drawn.stream, on_outer_side(full, drawn.stream.width, said.space))
        mine = place.of(drawn.tokens)
        sizes = torch.tensor([level.codes.shape[1] for level in full.levels]).reshape(1, -1, 1)
        if bool((mine >= sizes).any()):
            counts = np.array((mine >= 0).sum(0).numpy())
            shares[place.book] = Shares(np.zeros_like(counts), counts)
        else:
            shares[place.book] = agreement(form_for(full, fit), drawn.x, mine)
        fits[place.book] = fit
    return Trial(said, shares, fits)


def signal_to_noise(form: Quantiser, x: torch.Tensor) -> float:
    """How well a form explains rows x (n, W), in dB; -inf where nothing is approximated."""
    target = form.target(x)
    if target is None:
        return float("-inf")
    found = form.lookup(x)
    sums = block_sums(form, found, found.tokens, target)
    spread = block_spread(target, target.numpy().mean(axis=0))
    value = float(measure(sums, spread=spread)["snr_db"][0])
    return value if np.isfinite(value) else float("inf") if float(sums.error.sum()) == 0 else float("-inf")


class Books:
    """The codebooks of every reading of one checkpoint; tables are read once for readings that differ in the lookup alone."""

    LOOKUP = ("metric", "rows", "assume")

    def __init__(self, ckpt: Checkpoint) -> None:
        self.ckpt = ckpt
        self._parts = lru_cache(maxsize=16)(self._read)

    def of(self, said: Said) -> list[Source] | None:
        """The codebooks of a reading; None where the file allows no such reading."""
        try:
            books = detect(self.ckpt, **said.checkpoint)
            key = tuple(sorted((k, v) for k, v in said.checkpoint.items() if v and k not in self.LOOKUP))
            parts = self._parts(key)
            if len(parts) != len(books):
                return sources(self.ckpt, books)
            return [
                Source(at, book, part, whole(book, part))
                for at, (book, part) in enumerate(zip(books, parts, strict=True))
            ]
        except TocError:
            return None

    def _read(self, key: tuple[tuple[str, object], ...]) -> list[Parts]:
        said = dict(key)
        return [source.parts for source in sources(self.ckpt, detect(self.ckpt, **said))]  # type: ignore[arg-type]
