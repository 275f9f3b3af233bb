"""The shared codebook: nearest codes, how much of each code a clip uses, and the exponential moving average.

Legend: M modalities, B clips of this rank, T seconds, N rows (B * T), K codes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import CodebookConfig
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.masks import time_mean
from toc_cli.ops.assign import assign

PUBLISHED_BOUND = 1 / 400


@dataclass(frozen=True)
class Quantised:
    """What the codebook says of the features of a batch, all from the codes before this step's update."""

    codes: dict[str, Tensor]
    """Per modality (B, T) int64."""
    raw: dict[str, Tensor]
    """Per modality (B, T, D), the codes themselves."""
    vectors: dict[str, Tensor]
    """The same values with the features' gradients (straight-through)."""
    usage: dict[str, Tensor] = field(default_factory=dict)
    """Per modality (B, K), the soft use of codes, mean over seconds."""


class EmaCodebook(nn.Module):
    """(K, D) codes in buffers: `embedding`, its EMA twins `ema_weight` and `ema_count`, and each code's `age`."""

    embedding: Tensor
    ema_weight: Tensor
    ema_count: Tensor
    age: Tensor
    started: Tensor

    def __init__(self, config: CodebookConfig, size: int, width: int) -> None:
        super().__init__()
        self.config = config
        uniform = config.init == "uniform"
        codes = torch.empty(size, width).uniform_(-PUBLISHED_BOUND, PUBLISHED_BOUND)
        self.register_buffer("embedding", codes)
        self.register_buffer("ema_weight", codes.clone())
        self.register_buffer("ema_count", torch.zeros(size) if uniform else torch.ones(size))
        # Steps since the last hit; the published counter starts at -1, so unhit codes count as active at first.
        self.register_buffer("age", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("started", torch.tensor(uniform))

    def quantise(self, x: dict[str, Tensor], masks: dict[str, Tensor | None], temperature: float = 0.0) -> Quantised:
        """The nearest code of every row of x (B, T, D) per modality.

        The soft use of codes comes along when `temperature` is positive (symmetric form) or negative (published).
        """
        codes, raw, vectors, usage = {}, {}, {}, {}
        table = self.embedding.clone()  # the update writes into the buffer before backward reads it
        everything = torch.cat([rows.flatten(0, 1) for rows in x.values()])  # (N, D): one search for all modalities
        counts = [rows.shape[0] * rows.shape[1] for rows in x.values()]
        found = _nearest(everything.detach(), table)
        for (name, rows), chosen in zip(x.items(), found.split(counts), strict=True):
            codes[name] = chosen.view(rows.shape[:2])
            raw[name] = table[codes[name]]
            vectors[name] = rows + (raw[name] - rows).detach()
        if temperature:
            distance = squared_distance(everything, table)
            if self.config.distance == "clamped":
                own = (everything - table[found]).square().sum(-1, keepdim=True)
                distance = distance.scatter(1, found[:, None], own).clamp(min=1e-12)
            uses = soft_codes(distance, max(temperature, 0)).split(counts)
            for (name, rows), use in zip(x.items(), uses, strict=True):
                usage[name] = time_mean(use.view(*rows.shape[:2], -1), masks[name])
        return Quantised(codes, raw, vectors, usage)

    @torch.no_grad()
    def start(self, x: dict[str, Tensor], masks: dict[str, Tensor | None], draws: Draws, comm: Comm) -> None:
        """Codes become rows of the first batch, chosen without repeats while there are enough of them."""
        if self.started:
            return
        rows = self._all_rows(x, masks, comm)
        order = draws.permutation(len(rows), "codes").to(rows.device)
        picked = rows[order[torch.arange(len(self.embedding), device=rows.device) % len(rows)]]
        repeated = (torch.arange(len(picked), device=rows.device) >= len(rows)).to(rows.dtype)
        self._place(picked, draws, rows, repeated)
        self.started.fill_(True)

    @torch.no_grad()
    def update(
        self, x: dict[str, Tensor], quantised: Quantised, masks: dict[str, Tensor | None], draws: Draws, comm: Comm
    ) -> None:
        """The EMA step on the rows of all ranks, then ages and dead codes."""
        hits, sums = self._statistics(x, quantised.codes, masks)
        flat = comm.sum(torch.cat([hits[..., None], sums], dim=-1))
        hits, sums = flat[..., 0], flat[..., 1:]
        if self.training:
            if self.config.ema == "sequential":
                for own_hits, own_sums in zip(hits, sums, strict=True):
                    self._sequential_ema(own_hits, own_sums)
            else:
                self._joint_ema(hits.sum(0), sums.sum(0))
        if self.training or self.config.revival == "codes":
            self.age.add_(1).masked_fill_(hits.sum(0) > 0, 0)
            dead = self.age > self.config.dead_after
            if dead.any():
                if self.config.revival == "codes":
                    self._move_onto_active(dead, draws)
                else:
                    self._revive(dead, x, masks, draws, comm)

    def _statistics(
        self, x: dict[str, Tensor], codes: dict[str, Tensor], masks: dict[str, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Per modality the hits (M, K) and the sums of rows (M, K, D); a row is mixed with the others at its second."""
        hits, sums = [], []
        for name in x:
            mixed = cross_mixed(name, x, masks, self.config.own).flatten(0, 1)
            chosen = torch.zeros(len(mixed), len(self.embedding), dtype=mixed.dtype, device=mixed.device)
            mask = masks[name]
            there = mixed.new_ones(len(mixed)) if mask is None else mask.flatten().to(mixed.dtype)
            # A product with one-hot rows: the same sum on every device, where index_add_ would race.
            chosen.scatter_(1, codes[name].view(-1, 1), there[:, None])
            hits.append(chosen.sum(0))
            sums.append(chosen.T @ mixed)
        return torch.stack(hits), torch.stack(sums)

    def _sequential_ema(self, hits: Tensor, sums: Tensor) -> None:
        """N <- g N + (1-g) hits; n = sum N; N <- (N+eps)/(n+K eps) n; w <- g w + (1-g) sums; e <- w/N."""
        g, eps = self.config.decay, self.config.epsilon
        count = g * self.ema_count + (1 - g) * hits
        total = count.sum()
        self.ema_count.copy_((count + eps) / (total + len(count) * eps) * total)
        self.ema_weight.mul_(g).add_(sums, alpha=1 - g)
        self.embedding.copy_(self.ema_weight / self.ema_count[:, None])

    def _joint_ema(self, hits: Tensor, sums: Tensor) -> None:
        """N <- g N + (1-g) hits; w <- g w + (1-g) sums; e <- w/N: a weighted mean of features, nothing else."""
        g = self.config.decay
        self.ema_count.mul_(g).add_(hits, alpha=1 - g)
        self.ema_weight.mul_(g).add_(sums, alpha=1 - g)
        alive = self.ema_count > 1e-20  # a code unhit for thousands of steps stays where it is
        means = self.ema_weight / self.ema_count.clamp(min=1e-20)[:, None]
        self.embedding.copy_(torch.where(alive[:, None], means, self.embedding))

    def _move_onto_active(self, dead: Tensor, draws: Draws) -> None:
        """The published revival: the code alone moves, so the next EMA step takes it back unless it is hit at once."""
        self.age.masked_fill_(dead, 0)
        active = (~dead & (self.age >= 0) & (self.age < self.config.active_within)).nonzero().squeeze(1)
        count, width = int(dead.sum()), self.embedding.shape[1]
        source = active[draws.integers(count, len(active)).to(active.device)]
        if self.config.jitter_form == "constant":
            jitter = self.embedding.new_full((count, width), -self.config.jitter)
        else:
            jitter = draws.uniform(count, width).to(self.embedding) * self.config.jitter
        self.embedding[dead] = self.embedding[source] + jitter

    def _revive(
        self, dead: Tensor, x: dict[str, Tensor], masks: dict[str, Tensor | None], draws: Draws, comm: Comm
    ) -> None:
        """Dead codes start again on features of this batch; code, weight and count move together."""
        rows = self._all_rows(x, masks, comm)
        if len(rows) == 0:
            return
        picked = rows[draws.integers(len(dead), len(rows)).to(rows.device)]
        self._place(picked, draws, rows, dead.to(rows.dtype), dead)
        self.age.masked_fill_(dead, 0)

    def _place(self, codes: Tensor, draws: Draws, rows: Tensor, jittered: Tensor, where: Tensor | None = None) -> None:
        """Put `codes` (K, D), with jitter in units of the rows' spread where `jittered` (K,), at the codes `where`."""
        spread = rows.std(0, correction=0)
        noise = draws.uniform(*codes.shape).to(codes) * self.config.jitter * spread
        codes = codes + noise * jittered[:, None]
        where = torch.ones(len(codes), dtype=torch.bool, device=codes.device) if where is None else where
        self.embedding.copy_(torch.where(where[:, None], codes, self.embedding))
        self.ema_weight.copy_(torch.where(where[:, None], codes, self.ema_weight))
        self.ema_count.masked_fill_(where, 1)

    def _all_rows(self, x: dict[str, Tensor], masks: dict[str, Tensor | None], comm: Comm) -> Tensor:
        """(rows, D): every existing row of every modality and rank."""
        parts = []
        for name, rows in x.items():
            mask = masks[name]
            whole = comm.gather(rows.detach()).flatten(0, 1)
            parts.append(whole if mask is None else whole[comm.gather(mask).flatten()])
        return torch.cat(parts)


def _nearest(x: Tensor, codes: Tensor) -> Tensor:
    """(N, D), (K, D) -> (N,) int64. Features that diverged get code 0: the trainer names the loss term that is NaN."""
    if x.isfinite().all() and codes.isfinite().all():
        return assign(x, codes)
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


def squared_distance(x: Tensor, codes: Tensor) -> Tensor:
    """(N, D), (K, D) -> (N, K): |x|^2 + |e|^2 - 2 x e; may fall below 0 by rounding."""
    lengths = x.square().sum(1, keepdim=True) + codes.square().sum(1)
    return torch.addmm(lengths, x, codes.T, alpha=-2)


def soft_codes(distance: Tensor, temperature: float = 0.0) -> Tensor:
    """softmax_k(-sqrt(d)) of (N, K); with a temperature, distances count in units of their own spread in the row."""
    root = distance.sqrt()
    if temperature:
        root = root / (temperature * root.detach().std(1, keepdim=True, correction=0).clamp(min=1e-12))
    return (-root).softmax(1)


def cross_mixed(name: str, x: dict[str, Tensor], masks: dict[str, Tensor | None], own: float) -> Tensor:
    """(B, T, D): `own` times the modality's rows plus an equal share of the rest from each other at the same second.

    Modalities of another length take no part; where another is missing, those present share its part.
    """
    rows = x[name]
    others = [n for n in x if n != name and x[n].shape[1] == rows.shape[1]]
    if not others or own == 1:
        return rows
    if all(masks[n] is None for n in others):
        return own * rows + (1 - own) / len(others) * torch.stack([x[n] for n in others]).sum(0)
    weight = [rows.new_ones(rows.shape[:2]) if (mask := masks[n]) is None else mask.to(rows.dtype) for n in others]
    total = torch.stack(weight).sum(0)
    mean = torch.stack([x[n] * w[..., None] for n, w in zip(others, weight, strict=True)]).sum(0)
    mean = mean / total.clamp(min=1)[..., None]
    return torch.where((total > 0)[..., None], own * rows + (1 - own) * mean, rows)


def perplexity(codes: Tensor, size: int) -> Tensor:
    """exp(-sum p log(p + 1e-10)) of how often each of `size` codes occurs in `codes`."""
    p = torch.bincount(codes.flatten(), minlength=size).double() / max(codes.numel(), 1)
    return (-(p * (p + 1e-10).log()).sum()).exp()


def equal_clips(codes: dict[str, Tensor], size: int) -> Tensor:
    """How many clips have the same most frequent code (the smallest of them) in every modality; codes (B, T)."""
    modes = [nn.functional.one_hot(c, size).sum(1).argmax(1) for c in codes.values()]
    return torch.stack([mode == modes[0] for mode in modes]).all(0).sum()
