"""Generation: decode modality b from modality a's codes, with b's mean specific part.

Reported by squared error against the true clip, as a share of what naming the mean clip costs, and by probes that learned
real clips of b and are asked what the generated ones show.

Legend: B clips of a batch, T seconds, D shared width, S specific width, F features of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toc_cli.fcid.batch import Batch
from toc_cli.fcid.data import Split
from toc_cli.fcid.evaluation.figures import Figure, Ratio, share, summary
from toc_cli.fcid.evaluation.forms import FULL, Variant
from toc_cli.fcid.evaluation.probing import (
    aligned,
    as_wide,
    clip_sums,
    figure,
    fit,
    fits,
    metric,
    train_and_val,
)
from toc_cli.fcid.evaluation.reader import CodeReader
from toc_cli.fcid.evaluation.sources import BATCH, TrainedModel
from toc_cli.fcid.evaluation.tasks import Trial
from toc_cli.fcid.probes import Labelled, NeuralProbe, ProbeConfig

WIDEST = 1024
"""A second of maps with more features is averaged over its positions before a probe reads it."""


@dataclass(frozen=True)
class Typical:
    """What a modality looks like on the scoring split."""

    mean: Tensor
    """(..., C): the mean second."""
    specific: Tensor
    """(1, 1, S), or (P', 1, S) of maps: the mean specific part."""
    maps: bool

    def expanded(self, clips: int, seconds: int) -> Tensor:
        """The specific part for B clips of T seconds."""
        if self.maps:
            return self.specific.expand(-1, clips * seconds, -1)
        return self.specific.expand(clips, seconds, -1)


def typical(run: TrainedModel, split: Split, modality: str) -> Typical:
    """Means over the seconds that exist."""
    totals: list[Tensor] = []
    specifics: list[Tensor] = []
    seconds = 0
    maps = bool(split.specs[modality].spatial)
    for batch in split.batches(BATCH):
        x = batch.x[modality]
        mask = there(batch, modality)
        own = run.specific(modality, x, batch.seconds(modality)).cpu()
        weight = mask.flatten().to(own)
        rows = own if maps else own.flatten(0, 1)[None]  # (P', B * T, S)
        specifics.append((rows * weight[None, :, None]).sum(dim=1, keepdim=True))
        totals.append(x[mask].double().sum(dim=0))
        seconds += int(mask.sum())
    count = max(seconds, 1)
    return Typical((sum(totals[1:], totals[0]) / count).float(), sum(specifics[1:], specifics[0]) / count, maps)


def there(batch: Batch, modality: str) -> Tensor:
    """(B, T) bool: seconds that exist."""
    mask = batch.seconds(modality)
    return torch.ones(batch.x[modality].shape[:2], dtype=torch.bool) if mask is None else mask


def seconds_of(x: Tensor) -> Tensor:
    """Clips (B, T, ..., C) as rows (B, T, F) for a probe."""
    flat = x.flatten(2)
    return flat if x.dim() == 3 or flat.shape[2] <= WIDEST else x.flatten(2, -2).mean(dim=2)


@dataclass(frozen=True)
class Generated:
    """Clips made of another modality's codes, beside the true ones."""

    sums: np.ndarray
    """(N, 2): squared error, and that of the mean clip."""
    seconds: Tensor
    """(N, T, F)."""


Specific = Callable[[Batch], Tensor]


def generate(
    run: TrainedModel, split: Split, modality: str, shared: Tensor, mask: Tensor, mean: Tensor, specific: Specific
) -> Generated:
    """Decode shared vectors (N, T, D) of a split's clips into a modality; seconds outside `mask` (N, T) count nothing."""
    sums, seconds, start = [], [], 0
    for batch in split.batches(BATCH):
        rows = slice(start, start + len(batch))
        start = rows.stop
        true = batch.x[modality]
        made = run.decode(modality, shared[rows], specific(batch))
        sums.append(
            torch.stack([_error(made, true, mask[rows]), _error(mean.expand_as(true), true, mask[rows])], dim=1)
        )
        seconds.append(seconds_of(made))
    return Generated(torch.cat(sums).numpy(), torch.cat(seconds))


def _error(made: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Squared error (B,) over the seconds of `mask` (B, T)."""
    return ((made - true).double().square().flatten(2).sum(dim=2) * mask).sum(dim=1)


class Generation:
    """Every ordered pair of modalities that the run's decoders rebuild."""

    def __init__(
        self, run: TrainedModel, reader: CodeReader, scoring: Split, configs: Sequence[ProbeConfig], seed: int
    ) -> None:
        self.run, self.reader, self.scoring = run, reader, scoring
        self.configs, self.seed = configs, seed
        self.quantised = "fine" in run.books
        """Whether seconds have codes that the decoders know; else they read continuous features."""

    def entries(
        self,
        trials: Sequence[Trial],
        tests: Sequence[Split],
        modalities: Sequence[str],
        variants: Sequence[Variant],
        advance: Callable[[int], None],
    ) -> list[dict[str, Any]]:
        """The record's rows: per test split and pair, error and probes under every variant, and for reference b's own
        codes (with the mean and with its own specific part), and another clip's."""
        names = [name for name in modalities if name in self.run.decoded]
        by_test = {test: [t for t in trials if t.test is test and not t.transfer] for test in tests}
        used = [v for v in variants if self.quantised or v.id == FULL]
        found = []
        for b in names:
            usual = typical(self.run, self.scoring, b)
            for test, own in by_test.items():
                probes = {t: self.probes(t, b) for t in own if self.asked(t, t.train, b) and self.asked(t, test, b)}
                for a in names:
                    if a != b:
                        found.append(self.entry(a, b, test, usual, probes, used))
                        advance(1)
        return found

    def probes(self, trial: Trial, b: str) -> list[NeuralProbe]:
        """Probes of real clips, one per seed."""
        train, val = train_and_val(trial, lambda split: self.real(trial, split, b))
        return fit(trial.task, [(train, val)] * len(self.configs), as_wide(self.configs, train.x.shape[-1]))

    def asked(self, trial: Trial, split: Split, modality: str) -> bool:
        """Whether a split labels the clips, or the seconds, of a decoded modality."""
        return fits(self.reader, trial.task, split, modality, ("fine",))

    def real(self, trial: Trial, split: Split, b: str) -> Labelled:
        """A split's own clips of b with their labels."""
        batches = list(split.batches(BATCH))
        y = trial.task.labels(split, b)
        assert y is not None
        x = torch.cat([seconds_of(batch.x[b]) for batch in batches])
        return aligned(x, torch.cat([there(batch, b) for batch in batches]), y)

    def entry(
        self,
        a: str,
        b: str,
        test: Split,
        usual: Typical,
        probes: Mapping[Trial, list[NeuralProbe]],
        variants: Sequence[Variant],
    ) -> dict[str, Any]:
        masks = [self.reader.readings(test, name)["fine"].mask for name in (a, b)]
        mask = masks[0] & masks[1]

        def mean_part(batch: Batch) -> Tensor:
            return usual.expanded(len(batch), mask.shape[1]).to(self.run.device)

        def own_part(batch: Batch) -> Tensor:
            return self.run.specific(b, batch.x[b], batch.seconds(b))

        make = partial(generate, self.run, test, b, mask=mask, mean=usual.mean)
        figures = {}
        for variant in variants:
            made = [make(shared, specific=mean_part) for shared in self.shared(test, a, variant)]
            figures[variant.id] = self.figures(a, test, mask, probes, made)
        whole = next(variant for variant in variants if variant.id == FULL)
        (from_a,), (from_b,) = self.shared(test, a, whole), self.shared(test, b, whole)
        references = {
            "own codes": make(from_b, specific=mean_part),
            "own codes and specific part": make(from_b, specific=own_part),
            "another clip": make(from_a.roll(1, dims=0), specific=mean_part),
        }
        shown = {name: self.figures(a, test, mask, probes, [one]) for name, one in references.items()}
        real = torch.cat([seconds_of(batch.x[b]) for batch in test.batches(BATCH)])
        shown["real clips"] = self.figures(a, test, mask, probes, [Generated(np.zeros((len(test), 2)), real)])
        del shown["real clips"]["error"]
        return {
            "from": a,
            "to": b,
            "split": test.name,
            "clips": len(test),
            "vectors": "codes" if self.quantised else "continuous",
            "tasks": {trial.task.name: {"metric": metric(trial.task)} for trial in probes},
            "results": {
                id: self.summaries(own, figures[FULL] if id != FULL else None, len(test)) for id, own in figures.items()
            },
            "references": {name: self.summaries(own, None, len(test)) for name, own in shown.items()},
        }

    def shared(self, split: Split, modality: str, variant: Variant) -> Iterator[Tensor]:
        """(N, T, D) per draw: what the decoder reads of a modality's seconds."""
        reading = self.reader.readings(split, modality)["fine"]
        if not self.quantised:
            yield self.run.shared(split, modality)
            return
        for forms in variant.draws:
            form = forms[reading.book]
            yield form.whole(self.reader.tokens(form.choose, reading)).unflatten(0, reading.mask.shape)

    def figures(
        self, a: str, test: Split, mask: Tensor, probes: Mapping[Trial, list[NeuralProbe]], made: Sequence[Generated]
    ) -> dict[str, Figure]:
        """`error`, and per task what the probes say; labels are those of the modality that the codes come from."""
        found: dict[str, Figure] = {"error": Ratio(np.stack([g.sums for g in made]), share)}
        for trial, own in probes.items():
            if not self.asked(trial, test, a):
                continue
            y = trial.task.labels(test, a)
            assert y is not None
            data = [aligned(g.seconds, mask, y) for g in made]
            sums = [clip_sums(trial.task, probe, data[n % len(data)]) for n, probe in enumerate(own)]
            found[trial.task.name] = figure(trial.task, sums)
        return found

    def summaries(self, own: Mapping[str, Figure], whole: Mapping[str, Figure] | None, clips: int) -> dict[str, Any]:
        return {name: summary(f, whole[name] if whole else None, self.seed, clips) for name, f in own.items()}
