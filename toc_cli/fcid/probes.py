"""Linear probes on codes: what a frozen code tells about a clip or a second, across modalities.

Clip probe:   linear (F, W), maximum over time, linear (W, classes); cross-entropy.
Second probe: linear (F, W), linear (W, classes) at every second; yes or no for each class (binary cross-entropy).

W is one for all read-outs that are compared, so that a narrow one is not probed with less. Features are standardised by the
training clips. `probe_fit` trains them. Shapes: N clips, T seconds, F code dimensions, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toc_cli.errors import UsageError


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe is trained; the defaults are those of every figure in the tables."""

    epochs: int = 60
    batch_size: int = 64  # clips
    lr: float = 1e-2
    weight_decay: float = 1e-4
    seed: int = 0
    width: int = 0
    """W, between the two layers; 0: F."""


@dataclass(frozen=True)
class Labelled:
    """Code vectors of clips with their labels: x (N, T, F), mask (N, T) valid seconds, y (N,) or (N, T, C); -1 is
    unlabelled."""

    x: Tensor
    mask: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or self.x.shape[:2] != self.mask.shape:
            raise UsageError(
                f"Probe data do not fit: x {tuple(self.x.shape)}, mask {tuple(self.mask.shape)}, "
                f"y {tuple(self.y.shape)}."
            )


class NeuralProbe(nn.Module):
    """Standardise, linear (F, W), [maximum over the valid seconds,] linear (W, classes)."""

    mean: Tensor
    spread: Tensor
    threshold: Tensor

    def __init__(self, features: int, classes: int, *, per_second: bool, seed: int, width: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.per_second = per_second
        self.mix = _linear(features, width or features, generator)
        self.head = _linear(width or features, classes, generator)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("threshold", torch.full((classes,), 0.5))  # of the second probe's probabilities

    def standardise_(self, data: Labelled) -> None:
        """Take mean and spread from the valid seconds of the training clips; a constant dimension is left unscaled."""
        rows = data.x[data.mask]
        spread = rows.std(dim=0, correction=0)  # defined for a single second too
        self.mean = rows.mean(dim=0)
        self.spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits (N, C), or (N, T, C) per second."""
        h = self.mix((x - self.mean) / self.spread)  # (N, T, F)
        if self.per_second:
            return self.head(h)
        return self.head(h.masked_fill(~mask[..., None], -torch.inf).amax(dim=1).nan_to_num(neginf=0.0))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """torch's default initialisation, drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


@torch.no_grad()
def predict_clips(probe: NeuralProbe, data: Labelled) -> Tensor:
    """The most likely class (N,) of each clip."""
    return probe(data.x, data.mask).argmax(dim=-1)


@torch.no_grad()
def predict_seconds(probe: NeuralProbe, data: Labelled) -> Tensor:
    """Which classes each second holds, (N, T, C) bool, by the probe's thresholds."""
    return torch.sigmoid(probe(data.x, data.mask)) > probe.threshold


def accuracy(predicted: Tensor, y: Tensor) -> float:
    """The share of labelled clips (y >= 0) that are right."""
    labelled = y >= 0
    return float((predicted[labelled] == y[labelled]).double().mean())


def segment_f1(predicted: Tensor, y: Tensor, mask: Tensor) -> float:
    """Macro F1 per second: 2 TP / (2 TP + FP + FN) of each class over all valid seconds, averaged over the classes
    that occur or are predicted."""
    valid = mask[..., None] & (y >= 0)
    p, t = (predicted & valid).flatten(0, 1), ((y > 0) & valid).flatten(0, 1)
    hits = (p & t).sum(dim=0).double()
    denominator = p.sum(dim=0) + t.sum(dim=0)  # (C,) = 2 TP + FP + FN
    scored = denominator > 0
    return float((2 * hits[scored] / denominator[scored]).mean()) if scored.any() else 0.0


def best_thresholds(probabilities: Tensor, y: Tensor) -> Tensor:
    """Per class the threshold (C,) with the highest F1 on the rows (R, C); 0.5 for a class without a positive row.

    All thresholds between neighbouring probabilities are tried at once: with rows sorted by falling probability,
    taking the first r
    rows as positive has TP = cumulative hits and F1 = 2 TP / (r + positives).
    """
    order = probabilities.argsort(dim=0, descending=True)
    ranked = probabilities.gather(0, order).double()  # (R, C)
    known = (y >= 0).gather(0, order)
    hits = ((y > 0).gather(0, order) & known).cumsum(dim=0).double()
    positives = hits[-1]
    f1 = 2 * hits / (known.cumsum(dim=0) + positives).clamp_min(1)
    # a cut is real only where the next probability is lower
    below = torch.cat([ranked[1:], torch.full_like(ranked[:1], -1e-6)])
    f1 = f1.masked_fill(ranked <= below, -1.0)
    at = f1.argmax(dim=0, keepdim=True)
    cut = ((ranked + below) / 2).gather(0, at).squeeze(0)
    return torch.where(positives > 0, cut, torch.full_like(cut, 0.5)).to(probabilities.dtype)


def one_hot_seconds(labels: Tensor, background: int | None, classes: int) -> Tensor:
    """Classes per second (N, T) as yes/no columns (N, T, C), without the background column; unlabelled seconds are -1
    throughout."""
    columns = [c for c in range(classes) if c != background]
    hot = (labels[..., None] == torch.tensor(columns)).long()
    return hot.masked_fill((labels < 0)[..., None], -1)
