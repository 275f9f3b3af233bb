"""FCID: fine audio-visual alignment that keeps time, then coarse alignment with text.

Legend: B clips, T seconds, D shared width, K codes. General features are shared between modalities, specific ones not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from toc_cli.errors import InputError
from toc_cli.fcid.aligner import Aligner, Encoded, Masks, Pair, StepLosses, exact, mi_nets, weighted
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.codebook import Codebook, Quantised
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import ModalitySpec, ModelConfig
from toc_cli.fcid.decoder import FCIDDecoder
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.encoder import Coarse, CoarseHead, ModalityEncoder, Specific
from toc_cli.fcid.losses.cpc import ContextNet, cpc
from toc_cli.fcid.losses.infonce import infonce, same_caption
from toc_cli.fcid.losses.reconstruction import reconstruction
from toc_cli.fcid.masks import both, time_mean
from toc_cli.fcid.uniform import Uniform


@dataclass(frozen=True)
class FCIDFeatures:
    """What the encoders say of a batch."""

    general: dict[str, Tensor]
    """Fine modalities, (B, T, D)."""
    specific: dict[str, Specific]
    coarse: dict[str, Coarse]
    """All modalities."""
    fine_quantised: Quantised | None
    coarse_quantised: Quantised


class FCID(Aligner[FCIDFeatures]):
    """The paper's model; `config.profile` says in which form."""

    def __init__(self, config: ModelConfig, specs: Mapping[str, ModalitySpec]) -> None:
        super().__init__(config, specs)
        lengths = {self.specs[name].length for name in config.fine}
        if len(lengths) > 1:
            raise InputError(
                f"The fine modalities {', '.join(config.fine)} have the lengths {sorted(lengths)}; they share seconds.",
                "Bring them to one rate, or name one of them in model.coarse instead.",
            )
        self.encoder = FCIDEncoder(config, self.specs)
        weights = config.weights
        if weights.cpc:
            hidden = config.cpc_hidden or config.width
            nets = {name: ContextNet(config.width, hidden, config.cpc_steps) for name in config.fine}
            self.cpc: nn.ModuleDict | None = nn.ModuleDict(nets)
        else:
            self.cpc = None
        self.decoder = FCIDDecoder(config, self.specs, self.encoder.modality)
        own = {name: config.pooled_width(self.specs[name]) for name in config.fine}
        clip = {name: config.width for name in (*config.coarse, "clip")}
        self.mi = mi_nets(config, own | clip if weights.club else {})
        size = config.codebook.size
        levels = {"coarse": Codebook(config.codebook, size, config.width)}
        if config.fine_codebook:
            levels["fine"] = Codebook(config.codebook, config.codebook.fine_size or size, config.width)
        self.codebook = nn.ModuleDict(levels)

    def forward(self, batch: Batch, draws: Draws, comm: Comm) -> FCIDFeatures:
        config, fine = self.config, self.config.fine
        drop = draws.dropout(config.dropout if self.training else 0.0, comm)
        hide = draws.dropout(config.input_dropout if self.training else 0.0, comm)
        general, specific, coarse = {}, {}, {}
        for name in config.modalities:
            seconds = self._seconds(batch, name)
            encoder, length = self.encoder.of(name), batch.x[name].shape[1]
            x = batch.x[name]
            hidden = encoder.general(encoder.maps(hide(x) if name in fine else x), length, seconds, drop)
            if name in fine:
                general[name] = hidden
                if encoder.specific is not None:
                    specific[name] = encoder.own(encoder.maps(x), length)
            coarse[name] = self.encoder.head(name)(time_mean(hidden, seconds))
        fine_quantised = None
        if config.fine_codebook:
            masks = {name: batch.seconds(name) for name in fine}
            fine_quantised = self.quantise("fine", general, masks, draws, comm, match=False)
        clips = {name: _column(batch.clips(name)) for name in coarse}
        vectors = {name: c.general[:, None] for name, c in coarse.items()}
        match = config.weights.cmcm != 0
        return FCIDFeatures(
            general, specific, coarse, fine_quantised, self.quantise("coarse", vectors, clips, draws, comm, match)
        )

    def losses(self, features: FCIDFeatures, batch: Batch, draws: Draws, comm: Comm) -> StepLosses:
        weights = dataclasses.asdict(self.config.weights)
        terms: dict[str, Tensor] = {}
        if weights["club"]:
            for name, pair in self.pairs(features, batch).items():
                terms[f"club.{name}"] = self.mutual_information(name, pair, draws, comm)
        if weights["cpc"]:
            terms["cpc"] = self._cpc(features, batch, draws, comm)
        with exact(features.coarse_quantised.raw[self.config.fine[0]].device):
            terms |= self._alignment(features, batch, comm) | self._quantisation(features, batch, comm)
        if weights["fine_reconstruction"]:
            terms |= self._fine_reconstruction(features, batch, comm)
        if weights["coarse_reconstruction"]:
            terms |= self._coarse_reconstruction(features, batch, comm)
        stats = self.codebook_stats("coarse", features.coarse_quantised, comm)
        if features.fine_quantised is not None:
            stats |= self.codebook_stats("fine", features.fine_quantised, comm)
        return StepLosses(weighted(terms, weights), terms, stats)

    def pairs(self, features: FCIDFeatures, batch: Batch) -> dict[str, Pair]:
        """Per fine modality its seconds; per coarse one its clip vectors; and those of the fine ones, stacked."""
        if not self.mi:
            return {}
        fine, pairs = self.config.fine, {}
        for name in fine:
            seconds = batch.seconds(name)
            pairs[name] = Pair(features.general[name], features.specific[name].pooled, seconds, batch.clips(name))
        for name in self.config.coarse:
            coarse = features.coarse[name]
            assert coarse.specific is not None
            pairs[name] = Pair(coarse.general, coarse.specific, None, batch.clips(name))
        parts = [features.coarse[name] for name in fine]
        clips = None
        if any(batch.clips(name) is not None for name in fine):
            there = parts[0].clip.new_ones(len(batch), dtype=torch.bool)
            clips = torch.cat([there if (c := batch.clips(name)) is None else c for name in fine])
        general, own = (torch.cat([getattr(part, kind) for part in parts]) for kind in ("general", "specific"))
        pairs["clip"] = Pair(general, own, None, clips, stacked=len(fine))
        return pairs

    def _cpc(self, features: FCIDFeatures, batch: Batch, draws: Draws, comm: Comm) -> Tensor:
        assert self.cpc is not None
        x = [features.general[name] for name in self.config.fine]
        predictions = [net(rows) for net, rows in zip(self.cpc.values(), x, strict=True)]
        last = x[0].shape[1] - self.config.cpc_steps - 1
        if last < 1:
            raise InputError(
                f"CPC needs clips of at least {self.config.cpc_steps + 2} seconds; these have {x[0].shape[1]}.",
                "Set weights.cpc = 0.",
            )
        if self.config.cpc_anchors == "one":
            anchors = torch.tensor([draws.anchor(1, last)], device=x[0].device)
        else:
            anchors = torch.arange(1, last + 1, device=x[0].device)
        seconds = [_gathered(batch.seconds(name), comm) for name in self.config.fine]
        with exact(x[0].device):
            return cpc([comm.gather(z) for z in x], [comm.gather(p) for p in predictions], anchors, seconds)

    def _alignment(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """The InfoNCE terms."""
        config, weights, terms = self.config, self.config.weights, {}
        excluded = None
        if config.same_caption == "ignored" and batch.caption is not None:
            excluded = same_caption(comm.gather(batch.caption))
        vectors = {name: comm.gather(c.general) for name, c in features.coarse.items()}
        clips = {name: _gathered(batch.clips(name), comm) for name in vectors}

        def term(query: Tensor, key: Tensor, rows: Tensor | None, excluded: Tensor | None) -> Tensor:
            both_ways = config.infonce == "both"
            return infonce(query, key, config.temperature, both_ways=both_ways, excluded=excluded, rows=rows)

        if weights.infonce:
            for name in config.fine:
                for text in config.coarse:
                    rows = both(clips[name], clips[text])
                    terms[f"infonce.{name}.{text}"] = term(vectors[name], vectors[text], rows, excluded)
        for i, first in enumerate(config.fine):
            for second in config.fine[i + 1 :]:
                a, b = features.general[first], features.general[second]
                pair, there = f"{first}.{second}", both(clips[first], clips[second])
                if weights.second_infonce:
                    seconds = both(batch.seconds(first), batch.seconds(second))
                    rows = _flat_gathered(seconds, comm)
                    flat = (comm.gather(a).flatten(0, 1), comm.gather(b).flatten(0, 1))
                    terms[f"second_infonce.{pair}"] = term(*flat, rows, None)
                if weights.clip_infonce:
                    means = [comm.gather(time_mean(x, batch.seconds(n))) for x, n in ((a, first), (b, second))]
                    terms[f"clip_infonce.{pair}"] = term(means[0], means[1], there, None)
                if weights.coarse_infonce:
                    terms[f"coarse_infonce.{pair}"] = term(vectors[first], vectors[second], there, None)
        return terms

    def _fine_reconstruction(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        terms = {}
        for name in self.config.fine:
            quantised = features.fine_quantised
            shared = features.general[name] if quantised is None else quantised.vectors[name]
            decoded = self.decode(name, shared, features.specific[name].features)
            terms[f"fine_reconstruction.{name}"] = reconstruction(decoded, batch.x[name], batch.seconds(name), comm)
        return terms

    def _coarse_reconstruction(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        terms = {}
        for name, coarse in features.coarse.items():
            decoded = self.decoder.coarse[name](features.coarse_quantised.vectors[name][:, 0], coarse.specific)
            target = coarse.clip if self.config.coarse_targets == "trained" else coarse.clip.detach()
            terms[f"coarse_reconstruction.{name}"] = reconstruction(decoded, target, batch.clips(name), comm)
        return terms

    def _quantisation(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Commitment at both levels, and cmcm at the coarse one."""
        weights = self.config.weights
        terms: dict[str, Tensor] = {}
        if features.fine_quantised is not None:
            masks = {name: batch.seconds(name) for name in features.general}
            losses = self.commitments(features.general, features.fine_quantised, masks, comm)
            terms |= {f"fine_commitment.{name}": loss for name, loss in losses.items()}
        vectors = {name: c.general[:, None] for name, c in features.coarse.items()}
        clips: Masks = {name: batch.clips(name) for name in vectors}
        columns = {name: _column(there) for name, there in clips.items()}
        losses = self.commitments(vectors, features.coarse_quantised, columns, comm)
        terms |= {f"commitment.{name}": loss for name, loss in losses.items()}
        if weights.cmcm:
            terms["cmcm"] = self.code_matching(features.coarse_quantised, clips, comm)
        return terms

    def encode(self, modality: str, x: Tensor, mask: Tensor | None = None) -> Encoded:
        encoder = self.encoder.of(modality)
        seconds = mask if self.config.padding == "masked" else None
        maps, length = encoder.maps(x), x.shape[1]
        hidden = encoder.general(maps, length, seconds)
        coarse = self.encoder.head(modality)(time_mean(hidden, seconds)).general
        clip = self._nearest("coarse", coarse[:, None])
        fine = fine_codes = fine_vectors = shared = None
        if not self.config.fine_codebook:
            # The published read-out: every second through the layers that were trained on clip means.
            fine = self.encoder.head(modality)(hidden).general
            found = self._nearest("coarse", fine)
            fine_codes, fine_vectors, shared = found.codes["x"], found.raw["x"], hidden
        elif modality in self.config.fine:
            fine, found = hidden, self._nearest("fine", hidden)
            fine_codes, fine_vectors = found.codes["x"], found.raw["x"]
            shared = fine_vectors
        specific = None if encoder.specific is None else encoder.own(maps, length).features
        return Encoded(
            fine, coarse, fine_codes, clip.codes["x"][:, 0], fine_vectors, clip.raw["x"][:, 0], specific, shared
        )

    def decode(self, modality: str, shared: Tensor, specific: Tensor) -> Tensor:
        return cast(Tensor, self.decoder.fine[modality](shared, specific))

    def _nearest(self, level: str, x: Tensor) -> Quantised:
        return self.table(level).quantise({"x": x}, {"x": None})

    def _seconds(self, batch: Batch, name: str) -> Tensor | None:
        return batch.seconds(name) if self.config.padding == "masked" else None


class FCIDEncoder(nn.Module):
    """An encoder per modality; one coarse head for all fine modalities, one for each coarse."""

    def __init__(self, config: ModelConfig, specs: Mapping[str, ModalitySpec]) -> None:
        super().__init__()
        weights = config.weights
        own = {name: name in config.fine and bool(weights.club or weights.fine_reconstruction) for name in specs}
        self.modality = nn.ModuleDict({n: ModalityEncoder(spec, config, own[n]) for n, spec in specs.items()})
        special = bool(weights.club or weights.coarse_reconstruction)
        heads = ("fine", *config.coarse)
        self.heads = nn.ModuleDict({name: CoarseHead(config.width, config.coarse_heads, special) for name in heads})

    def of(self, name: str) -> ModalityEncoder:
        """The encoder of a modality."""
        return cast(ModalityEncoder, self.modality[name])

    def head(self, name: str) -> CoarseHead:
        """The coarse head of a modality."""
        return cast(CoarseHead, self.heads[name if name in self.heads else "fine"])


def build_model(config: ModelConfig, specs: Mapping[str, ModalitySpec]) -> FCID | Uniform:
    """The model of a config: FCID, or the uniform-alignment baseline."""
    return Uniform(config, specs) if config.alignment == "uniform" else FCID(config, specs)


def _column(clips: Tensor | None) -> Tensor | None:
    return None if clips is None else clips[:, None]


def _gathered(mask: Tensor | None, comm: Comm) -> Tensor | None:
    return None if mask is None else comm.gather(mask)


def _flat_gathered(mask: Tensor | None, comm: Comm) -> Tensor | None:
    return None if mask is None else comm.gather(mask).flatten()
