"""Training of probes: those of all seeds and forms of a task as one batch, each the probe that would be trained alone.

Every probe keeps the epoch that does best on validation clips, which also set its thresholds; test clips are never seen here.
Shapes: P probes, N clips, T seconds, F code dimensions, W the width between the layers, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from toc_cli.errors import UsageError
from toc_cli.fcid.probes import Labelled, NeuralProbe, ProbeConfig, accuracy, best_thresholds, segment_f1

NUMBERS_AT_ONCE = 1 << 26
"""Numbers in the training vectors of the probes that are trained as one batch."""


def fit_probes(
    parts: Sequence[tuple[Labelled, Labelled]], classes: int, configs: Sequence[ProbeConfig], *, per_second: bool
) -> list[NeuralProbe]:
    """A probe for each (training, validation) and its config, in order; the configs differ in their seeds alone.

    UsageError where no clip is labelled.
    """
    if not per_second:
        parts = [(_labelled(train), _labelled(val)) for train, val in parts]
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for at, (train, val) in enumerate(parts):
        labels = tuple(_bytes(part) for part in (train.mask, train.y, val.mask, val.y))
        alike[train.x.shape, val.x.shape, labels].append(at)
    found: dict[int, NeuralProbe] = {}
    for places in alike.values():
        most = max(1, NUMBERS_AT_ONCE // max(1, parts[places[0]][0].x.numel()))
        for start in range(0, len(places), most):
            some = places[start : start + most]
            batch = _Batch([parts[at] for at in some], classes, [configs[at] for at in some], per_second)
            found |= dict(zip(some, batch.fit(), strict=True))
    return [found[at] for at in range(len(parts))]


def _labelled(data: Labelled) -> Labelled:
    """The clips that have a label."""
    keep = data.y >= 0
    if not keep.any():
        raise UsageError("A probe was given no labelled clip.")
    return Labelled(data.x[keep], data.mask[keep], data.y[keep])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


class _Batch:
    """Probes on the same clips, whose vectors differ."""

    def __init__(
        self, parts: Sequence[tuple[Labelled, Labelled]], classes: int, configs: Sequence[ProbeConfig], per_second: bool
    ) -> None:
        self.per_second, self.configs = per_second, configs
        (self.train, self.val), features = parts[0], parts[0][0].x.shape[-1]
        self.probes = [
            NeuralProbe(features, classes, per_second=per_second, seed=config.seed, width=config.width).to(part.x.dtype)
            for config, (part, _) in zip(configs, parts, strict=True)
        ]
        for probe, (part, _) in zip(self.probes, parts, strict=True):
            probe.standardise_(part)
        mean, spread = (torch.stack([getattr(probe, name) for probe in self.probes]) for name in ("mean", "spread"))
        self.train_x, self.val_x = (
            (torch.stack([pair[side].x for pair in parts]) - mean[:, None, None]) / spread[:, None, None]
            for side in (0, 1)
        )
        self.layers = [
            torch.stack([getattr(getattr(probe, layer), part).detach() for probe in self.probes]).requires_grad_()
            for layer in ("mix", "head")
            for part in ("weight", "bias")
        ]
        self.whole = bool(self.train.mask.all() and self.val.mask.all())
        """Whether every second of every clip is there."""
        self.thresholds = torch.full((len(parts), classes), 0.5, dtype=self.train_x.dtype)

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        """(P, n, C), or (P, n, T, C) per second, of standardised x (P, n, T, F) with mask (P, n, T)."""
        mix, mix_bias, head, head_bias = self.layers
        h = torch.bmm(x.flatten(1, 2), mix.mT)  # (P, n T, W)
        if not self.per_second:  # the bias of the mixture is one for all seconds, so it is added to the largest alone
            h = h.unflatten(1, x.shape[1:3])
            h = (h if self.whole else h.masked_fill(~mask[..., None], -torch.inf)).amax(2)
        h = h + mix_bias[:, None]
        if not self.whole and not self.per_second:
            h = h.where(mask.any(2)[..., None], 0.0)
        found = torch.bmm(h, head.mT) + head_bias[:, None]
        return found.unflatten(1, x.shape[1:3]) if self.per_second else found

    def losses(self, logits: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        """(P,) of logits with mask (P, n, T) and y (P, n) or (P, n, T, C)."""
        if not self.per_second:
            return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
        valid = (mask[..., None] & (y >= 0)).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, y.clamp(min=0).to(logits.dtype), reduction="none")
        return (each * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))

    def fit(self) -> list[NeuralProbe]:
        """Adam for the epochs of the config, each probe keeping its state with the best score; of equals the one with the lower
        validation loss: a few validation clips tie often, and the first of equals is the least trained."""
        first, at = self.configs[0], torch.arange(len(self.probes))[:, None]
        optimiser = torch.optim.Adam(self.layers, lr=first.lr, weight_decay=first.weight_decay)
        generators = [torch.Generator().manual_seed(config.seed) for config in self.configs]
        best: list[tuple[float, float]] = [(-torch.inf, -torch.inf)] * len(self.probes)
        kept = [layer.detach().clone() for layer in [*self.layers, self.thresholds]]
        for _ in range(first.epochs):
            order = torch.stack([torch.randperm(len(self.train.y), generator=one) for one in generators])
            for rows in order.split(first.batch_size, dim=1):
                mask, y = self.train.mask[rows], self.train.y[rows]
                optimiser.zero_grad()
                self.losses(self.logits(self.train_x[at, rows], mask), mask, y).sum().backward()
                optimiser.step()
            values = self.validate()
            better = [place for place, (new, old) in enumerate(zip(values, best, strict=True)) if new > old]
            for place in better:
                best[place] = values[place]
            for saved, now in zip(kept, [*self.layers, self.thresholds], strict=True):
                saved[better] = now.detach()[better]
        return [self._named(place, kept) for place in range(len(self.probes))]

    @torch.no_grad()
    def validate(self) -> list[tuple[float, float]]:
        """(score, minus the loss) of each probe on the validation clips."""
        count = len(self.probes)
        mask, y = (part.expand(count, *part.shape) for part in (self.val.mask, self.val.y))
        logits = self.logits(self.val_x, mask)
        losses = (-self.losses(logits, mask, y)).tolist()
        if not self.per_second:
            return [(accuracy(own, self.val.y), loss) for own, loss in zip(logits.argmax(-1), losses, strict=True)]
        probabilities = torch.sigmoid(logits)
        rows = (
            probabilities[:, self.val.mask].transpose(0, 1).flatten(1)
        )  # (R, P C): columns know nothing of one another
        self.thresholds = best_thresholds(rows, self.val.y[self.val.mask].repeat(1, count)).view(count, -1)
        chosen = probabilities > self.thresholds[:, None, None]
        return [(segment_f1(own, self.val.y, self.val.mask), loss) for own, loss in zip(chosen, losses, strict=True)]

    def _named(self, place: int, kept: Sequence[Tensor]) -> NeuralProbe:
        probe = self.probes[place]
        *layers, threshold = (part[place] for part in kept)
        with torch.no_grad():
            for target, value in zip(
                (probe.mix.weight, probe.mix.bias, probe.head.weight, probe.head.bias), layers, strict=True
            ):
                target.copy_(value)
        if self.per_second:
            probe.threshold = threshold.clone()
        return probe.eval()
