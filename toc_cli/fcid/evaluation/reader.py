"""Codes of every split, modality and form, computed once.

Legend: N clips, T seconds (1 for a clip), D dimensions of a code, F of a read-out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toc_cli.fcid.data import Split
from toc_cli.fcid.evaluation.forms import Form
from toc_cli.fcid.evaluation.sources import CodeSource, LevelInput
from toc_cli.fcid.masks import time_mean
from toc_cli.ops.quantiser import Quantiser


class CodeReader:
    """Reads code vectors out of a source."""

    def __init__(self, source: CodeSource, spreads: Mapping[str, float] | None = None) -> None:
        self.source = source
        self.spreads = dict(spreads or {})
        """Per codebook: read-outs of several levels have each at unit spread."""
        self._readings: dict[tuple[Split, str], dict[str, LevelInput]] = {}
        self._tokens: dict[tuple[int, int], tuple[object, Tensor]] = {}

    def readings(self, split: Split, modality: str) -> dict[str, LevelInput]:
        """What meets the codebooks, by level."""
        if (split, modality) not in self._readings:
            self._readings[split, modality] = self.source.encode(split, modality)
        return self._readings[split, modality]

    def tokens(self, choose: Quantiser, reading: LevelInput) -> Tensor:
        """(N * T, L, H) int64."""
        at = (id(choose), id(reading))
        if at not in self._tokens:
            found = choose.tokens(reading.x.flatten(0, 1))
            self._tokens[at] = ((choose, reading), found)  # holding both keeps their ids from being given away
        return self._tokens[at][1]

    def codes(self, reading: LevelInput, form: Form, continuous: bool = False) -> Tensor:
        """(N, T, D') vectors of the chosen codes, or the features themselves, in the kept dimensions."""
        if continuous:
            rows = form.continuous(reading.x.flatten(0, 1))
        else:
            rows = form.stored(self.tokens(form.choose, reading))
        return rows.unflatten(0, reading.mask.shape).float() / self.spreads.get(reading.book, 1.0)

    def read_out(
        self, split: Split, modality: str, levels: Sequence[str], forms: Mapping[str, Form]
    ) -> tuple[Tensor, Tensor]:
        """Vectors (N, T, F) of the levels side by side, a clip's vector repeated, and which seconds exist (N, T)."""
        own = [self.readings(split, modality)[level] for level in levels]
        longest = max(own, key=lambda reading: reading.x.shape[1])
        parts = [self.codes(reading, forms[reading.book]) for reading in own]
        return torch.cat([part.expand(-1, longest.x.shape[1], -1) for part in parts], dim=-1), longest.mask

    def clip_vectors(
        self, split: Split, modality: str, levels: Sequence[str], forms: Mapping[str, Form], continuous: bool
    ) -> Tensor:
        """(N, F): the levels side by side, seconds averaged."""
        own = [self.readings(split, modality)[level] for level in levels]
        parts = [time_mean(self.codes(reading, forms[reading.book], continuous), reading.mask) for reading in own]
        return torch.cat(parts, dim=-1)
