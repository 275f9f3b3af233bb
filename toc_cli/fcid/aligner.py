"""What both alignments share: the order of a step, the mutual-information nets, encoding and reading out."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toc_cli.errors import InputError
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.codebook import EmaCodebook, Quantised, equal_clips, perplexity
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import ModalitySpec, ModelConfig, ReadOut
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.losses.club import GuessNet, club, club_over_features, loglikelihood, other_clips
from toc_cli.fcid.losses.cmcm import code_scores, published_cmcm, symmetric_cmcm
from toc_cli.fcid.losses.commitment import commitment
from toc_cli.fcid.losses.cpc import cpc
from toc_cli.fcid.masks import both
from toc_cli.fcid.modules.decoder import MapDecoder, VectorDecoder
from toc_cli.fcid.modules.specific import MapSpecificEncoder, VectorSpecificEncoder
from toc_cli.fcid.precision import exact

Masks = dict[str, Tensor | None]
Term = Callable[[], dict[str, Tensor]]
Features = TypeVar("Features")


@dataclass(frozen=True)
class StepLosses:
    """The loss of the whole batch, the same on every rank."""

    total: Tensor
    terms: dict[str, Tensor]
    """Each term unweighted, by name."""
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """What a trained model says of B clips of one modality; None where the modality has no such level."""

    fine: Tensor | None
    """(B, T, D) continuous, before quantisation."""
    coarse: Tensor | None
    """(B, D) continuous, before quantisation."""
    fine_codes: Tensor | None
    """(B, T) int64, a code per second."""
    coarse_codes: Tensor | None
    """(B,) int64, a code per clip."""
    fine_vectors: Tensor | None
    """(B, T, D), the codes of the seconds."""
    coarse_vectors: Tensor | None
    """(B, D), the codes of the clips."""
    specific: Tensor | None
    """(B, T, S) or (P', B * T, S): what `decode` takes beside shared features."""
    shared: Tensor | None = None
    """(B, T, D), what `decode` was trained on: codes of seconds where they are quantised, else continuous."""


@dataclass(frozen=True)
class Pair:
    """Shared features x and specific features y whose mutual information a net bounds; (B, T, .) or (B, .)."""

    x: Tensor
    y: Tensor
    seconds: Tensor | None
    clips: Tensor | None
    stacked: int = 1
    """How many modalities are stacked on axis 0."""


class Aligner(nn.Module, ABC, Generic[Features]):
    """A model that trains in the order: encode (and update the codebook), update the MI nets, sum the losses."""

    mi: nn.ModuleDict
    codebook: nn.ModuleDict

    def __init__(self, config: ModelConfig, specs: Mapping[str, ModalitySpec]) -> None:
        super().__init__()
        missing = [name for name in config.modalities if name not in specs]
        if missing:
            raise InputError(
                f"The data has no modality {', '.join(missing)}; it has {', '.join(specs) or 'none'}.",
                "Set model.fine and model.coarse to the names of your data.",
            )
        self.config = config
        self.specs = {name: specs[name] for name in config.modalities}

    # -- one step ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, batch: Batch, draws: Draws, comm: Comm) -> Features:
        """Encode and quantise; in training mode the codebook takes its EMA step."""

    @abstractmethod
    def terms(self, features: Features, batch: Batch, draws: Draws, comm: Comm) -> dict[str, Term]:
        """The terms of the loss by the name of their weight, each to be computed by calling it."""

    @abstractmethod
    def stats(self, features: Features, comm: Comm) -> dict[str, float]:
        """How the codebooks are used."""

    @abstractmethod
    def pairs(self, features: Features, batch: Batch) -> dict[str, Pair]:
        """The pairs of the mutual-information nets, by the net's name."""

    def training_step(
        self, batch: Batch, draws: Draws, comm: Comm, mi_optimizer: torch.optim.Optimizer | None = None
    ) -> StepLosses:
        """The three stages in order; `backward`, clipping and the main optimiser's step are the caller's."""
        comm = comm.bind(len(batch))
        features = self(batch, draws, comm)
        if mi_optimizer is not None:
            self.update_mi(features, batch, mi_optimizer, comm)
        return self.losses(features, batch, draws, comm)

    def losses(self, features: Features, batch: Batch, draws: Draws, comm: Comm) -> StepLosses:
        """Every term and their weighted sum; reads the MI nets as they are."""
        terms: dict[str, Tensor] = {}
        for compute in self.terms(features, batch, draws, comm).values():
            terms |= compute()
        weights = dataclasses.asdict(self.config.weights)
        total = torch.stack([weights[name.split(".")[0]] * term for name, term in terms.items()]).sum()
        return StepLosses(total, terms, self.stats(features, comm))

    def update_mi(
        self, features: Features, batch: Batch, optimizer: torch.optim.Optimizer, comm: Comm
    ) -> dict[str, list[Tensor]]:
        """`mi_steps` steps of `optimizer` on the likelihood of detached features; the values before each step.

        One optimiser serves all nets: they share no parameter, so their sum trains each as if alone.
        """
        pairs = {name: _detached(pair) for name, pair in self.pairs(features, batch).items()}
        trace: dict[str, list[Tensor]] = {name: [] for name in pairs}
        for _ in range(self.config.mi_steps if pairs else 0):
            optimizer.zero_grad()
            values = {name: -self.likelihood(name, pair, comm) for name, pair in pairs.items()}
            torch.stack(list(values.values())).sum().backward()
            comm.sum_gradients(self.mi.parameters())
            optimizer.step()
            for name, value in values.items():
                trace[name].append(value.detach())
        optimizer.zero_grad()
        return trace

    # -- mutual information -----------------------------------------------------------------------------------------

    def likelihood(self, name: str, pair: Pair, comm: Comm) -> Tensor:
        """Mean log-likelihood of y under the net's guess from x."""
        mu, logvar = self.mi[name](pair.x)
        rows = loglikelihood(mu, logvar, self._target(pair.y))
        weight = pair.seconds if pair.x.dim() == 3 else pair.clips
        return comm.mean(rows.flatten(), None if weight is None else weight.flatten())

    def club(self, features: Features, batch: Batch, draws: Draws, comm: Comm) -> dict[str, Tensor]:
        """A bound on the mutual information of every pair."""
        pairs = self.pairs(features, batch)
        return {f"club.{name}": self.mutual_information(name, pair, draws, comm) for name, pair in pairs.items()}

    def mutual_information(self, name: str, pair: Pair, draws: Draws, comm: Comm) -> Tensor:
        """The CLUB estimate over the batch of all ranks."""
        with _frozen(self.mi[name]):
            mu, logvar = self.mi[name](pair.x)
        mu, logvar, y = (_gather_stacked(t, pair.stacked, comm) for t in (mu, logvar, self._target(pair.y)))
        clips = None if pair.clips is None else _gather_stacked(pair.clips, pair.stacked, comm)
        seconds = None if pair.seconds is None else _gather_stacked(pair.seconds, pair.stacked, comm)
        other = self._negatives(name, len(y) // pair.stacked, pair.stacked, clips, draws).to(y.device)
        if y.dim() == 2 and self.config.club == "published":
            return club_over_features(mu, logvar, y, y[other])
        if y.dim() == 2:
            mu, logvar, y = mu[:, None], logvar[:, None], y[:, None]
        estimate = club(mu, logvar, y, y[other], clips, seconds, None if seconds is None else seconds[other])
        return estimate.clamp(min=0) if self.config.club == "rows" else estimate

    def _negatives(self, name: str, clips: int, stacked: int, there: Tensor | None, draws: Draws) -> Tensor:
        """For each of the stacked rows the row that serves as its negative."""
        if self.config.club_negatives == "any":
            return draws.permutation(clips * stacked, name)
        order = draws.permutation(clips, name)
        parts = [None] * stacked if there is None else there.to(order.device).chunk(stacked)
        return torch.cat([other_clips(order, part) + i * clips for i, part in enumerate(parts)])

    def _target(self, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:]) if self.config.club == "rows" else y

    # -- predictive coding -------------------------------------------------------------------------------------------

    def predictive_coding(
        self, nets: nn.ModuleDict, general: dict[str, Tensor], batch: Batch, draws: Draws, comm: Comm
    ) -> Tensor:
        """Cross-modal CPC among the modalities of `nets`, at one anchor second or at all."""
        x = {name: general[name] for name in nets}
        predictions = {name: net(x[name]) for name, net in nets.items()}
        length, steps = next(iter(x.values())).shape[1], self.config.cpc_steps
        last = length - steps - 1
        if last < 1:
            raise InputError(
                f"CPC needs clips of at least {steps + 2} seconds; these have {length}.", "Set weights.cpc = 0."
            )
        if self.config.cpc_anchors == "all":
            anchors = torch.arange(1, last + 1)
        else:
            anchors = torch.tensor([draws.anchor(1, last)])
        masks = [batch.seconds(name) for name in nets]
        seconds = [None if mask is None else comm.gather(mask) for mask in masks]
        targets = [comm.gather(rows) for rows in x.values()]
        guesses = [comm.gather(rows) for rows in predictions.values()]
        with exact(targets[0].device):
            return cpc(targets, guesses, anchors.to(targets[0].device), seconds)

    # -- quantisation -----------------------------------------------------------------------------------------------

    def table(self, level: str) -> EmaCodebook:
        """The codebook of a level."""
        return cast(EmaCodebook, self.codebook[level])

    def quantise(
        self, level: str, x: dict[str, Tensor], masks: Masks, draws: Draws, comm: Comm, match: bool
    ) -> Quantised:
        """Codes of x (B, T, D) per modality, then the EMA step; `match` adds the soft use of codes for cmcm."""
        table = self.table(level)
        x = {name: rows.to(table.embedding.dtype) for name, rows in x.items()}
        detached = {name: rows.detach() for name, rows in x.items()}
        if self.training:
            table.start(detached, masks, draws, comm)
        published = self.config.cmcm == "published"
        temperature = 0.0 if not match else -1.0 if published else self.config.cmcm_temperature
        with exact(table.embedding.device):
            quantised = table.quantise(x, masks, temperature)
            table.update(detached, quantised, masks, draws, comm)
        return quantised

    def commitments(self, x: dict[str, Tensor], quantised: Quantised, masks: Masks, comm: Comm) -> dict[str, Tensor]:
        """The commitment loss of every modality."""
        settings = self.config.codebook
        losses = {}
        for name, rows in x.items():
            others = [
                (quantised.raw[n].flatten(0, 1), _flat(masks[n]))
                for n in x
                if n != name and x[n].shape[1] == rows.shape[1]
            ]
            losses[name] = commitment(
                rows.flatten(0, 1),
                quantised.raw[name].flatten(0, 1),
                others,
                _flat(masks[name]),
                comm,
                own_weight=settings.commitment_own,
                cross_weight=settings.commitment_cross,
                cost=settings.commitment_cost,
            )
        return losses

    def code_matching(self, quantised: Quantised, clips: Masks, comm: Comm) -> Tensor:
        """cmcm: half the sum over pairs of modalities."""
        usage = {name: comm.gather(use) for name, use in quantised.usage.items()}
        there = {name: None if clips[name] is None else comm.gather(clips[name]) for name in usage}  # type: ignore[arg-type]
        total = next(iter(usage.values())).new_zeros(())
        for first, second in itertools.combinations(usage, 2):
            with exact(total.device):
                scores = code_scores(usage[first], usage[second])
            rows = both(there[first], there[second])
            if self.config.cmcm == "symmetric":
                total = total + symmetric_cmcm(scores, rows)
            else:
                total = total + published_cmcm(scores if rows is None else scores[rows][:, rows])
        return total / 2

    def codebook_stats(self, level: str, quantised: Quantised, comm: Comm) -> dict[str, float]:
        """Codes in use, their perplexity, and the share of clips with one code in all modalities, over all ranks."""
        size = len(self.table(level).embedding)
        codes = {name: comm.gather(c) for name, c in quantised.codes.items()}
        everything = torch.cat([c.flatten() for c in codes.values()])
        return {
            f"{level}.codes": float(everything.unique().numel()),
            f"{level}.perplexity": float(perplexity(everything, size)),
            f"{level}.equal": float(equal_clips(codes, size)) / max(comm.rows, 1),
        }

    # -- after training ---------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, modality: str, x: Tensor, mask: Tensor | None = None) -> Encoded:
        """Codes and vectors of clips x (B, T, ...) of one modality; call in eval mode, without gradients."""

    @abstractmethod
    def decode(self, modality: str, shared: Tensor, specific: Tensor) -> Tensor:
        """Shared features (B, T, D) and specific ones -> the modality's input (B, T, ...)."""

    def read_out(self, encoded: Encoded, which: ReadOut | None = None) -> Tensor:
        """The code vectors that downstream tasks see, each level scaled to unit spread.

        (B, T, D) for `fine`, (B, T, 2 D) for `both`, the clip's vector repeated; (B, 1, D) where only a clip vector is
        asked for or there. Models with one codebook have one read-out: their seconds.
        """
        which = which or self.config.readout
        if not self.two_levels:
            assert encoded.fine_vectors is not None
            return encoded.fine_vectors / self._spread(next(iter(self.codebook)))
        assert encoded.coarse_vectors is not None
        coarse = encoded.coarse_vectors[:, None] / self._spread("coarse")
        if which == "coarse" or encoded.fine_vectors is None:
            return coarse
        fine = encoded.fine_vectors / self._spread("fine")
        return fine if which == "fine" else torch.cat([fine, coarse.expand_as(fine)], dim=-1)

    @property
    def two_levels(self) -> bool:
        """Whether seconds and clips have a codebook each."""
        return len(self.codebook) > 1

    def _spread(self, level: str) -> Tensor:
        """Root mean square distance of the codes to their mean, counted by use."""
        table = self.table(level)
        use = table.ema_count / table.ema_count.sum()
        centred = table.embedding - use @ table.embedding
        return (use @ centred.square()).mean().sqrt().clamp(min=1e-12)

    # -- for the trainer --------------------------------------------------------------------------------------------

    def compile_blocks(self) -> None:
        """`torch.compile`, in place, the parts that are tensors in, tensors out: specific encoders and decoders."""
        for module in self.modules():
            if isinstance(module, (MapSpecificEncoder, VectorSpecificEncoder, MapDecoder, VectorDecoder)):
                module.compile()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """`main`: what the loss trains; `mi`: what `update_mi` trains."""
        mi = {id(p) for p in self.mi.parameters()}
        return {"main": [p for p in self.parameters() if id(p) not in mi], "mi": list(self.mi.parameters())}

    def clip_groups(self) -> dict[str, list[nn.Parameter]]:
        """The groups whose gradients are clipped each on its own."""
        groups = {name: list(child.parameters()) for name, child in self.named_children() if name != "mi"}
        return {name: parameters for name, parameters in groups.items() if parameters}


def mi_nets(config: ModelConfig, widths: dict[str, int]) -> nn.ModuleDict:
    """A net per pair of features; `widths` are those of the specific ones."""
    return nn.ModuleDict({name: GuessNet(config.width, width, config.width) for name, width in widths.items()})


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the parameters: the published code computes, clips and then drops them."""
    parameters = list(module.parameters())
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _gather_stacked(rows: Tensor, stacked: int, comm: Comm) -> Tensor:
    """Rows of several modalities, stacked on axis 0, of all ranks, in the order of one process."""
    return torch.cat([comm.gather(part) for part in rows.chunk(stacked)])


def _detached(pair: Pair) -> Pair:
    return Pair(pair.x.detach(), pair.y.detach(), pair.seconds, pair.clips, pair.stacked)


def _flat(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.flatten()


def load_into(model: nn.Module, state: Mapping[str, Any]) -> None:
    """`load_state_dict` whose error says which tensors are missing, unknown or of another shape."""
    refuse_misfit(model, state)
    model.load_state_dict(state)


def refuse_misfit(model: nn.Module, state: Mapping[str, Any]) -> None:
    """InputError that says which tensors are missing, unknown or of another shape."""
    own = model.state_dict()
    wrong = [
        f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    missing, unknown = [k for k in own if k not in state], [k for k in state if k not in own]
    if wrong or missing or unknown:
        parts = [
            f"{len(v)} {what} ({', '.join(v[:3])})"
            for what, v in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
            if v
        ]
        raise InputError(
            f"The checkpoint does not fit the model: {'; '.join(parts)}.", "Use the config saved beside it."
        )
