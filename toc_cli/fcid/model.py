"""FCID: fine audio-visual alignment that keeps time, then coarse alignment with text.

Legend: B clips, T seconds, D shared width, K codes. General features are shared between modalities, specific ones not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from toc_cli.errors import InputError
from toc_cli.fcid.aligner import Aligner, Encoded, Pair, Term, mi_nets
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.codebook import EmaCodebook, Quantised
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import ModalitySpec, ModelConfig
from toc_cli.fcid.decoder import FCIDDecoder
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.encoder import Coarse, CoarseHead, ModalityEncoder, Specific
from toc_cli.fcid.losses.cpc import ContextNet
from toc_cli.fcid.losses.infonce import clip_numbers, infonce
from toc_cli.fcid.losses.reconstruction import reconstruction
from toc_cli.fcid.masks import both, time_mean
from toc_cli.fcid.precision import exact
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
        levels = {"coarse": EmaCodebook(config.codebook, size, config.width)}
        if config.fine_codebook:
            levels["fine"] = EmaCodebook(config.codebook, config.codebook.fine_size or size, config.width)
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

    def terms(self, features: FCIDFeatures, batch: Batch, draws: Draws, comm: Comm) -> dict[str, Term]:
        table: dict[str, Term] = {
            "club": lambda: self.club(features, batch, draws, comm),
            "cpc": lambda: self._cpc(features, batch, draws, comm),
            "infonce": lambda: self._text_infonce(features, batch, comm),
            "second_infonce": lambda: self._second_infonce(features, batch, comm),
            "clip_infonce": lambda: self._clip_infonce(features, batch, comm),
            "coarse_infonce": lambda: self._coarse_infonce(features, batch, comm),
            "fine_reconstruction": lambda: self._fine_reconstruction(features, batch, comm),
            "coarse_reconstruction": lambda: self._coarse_reconstruction(features, batch, comm),
            "fine_commitment": lambda: self._fine_commitment(features, batch, comm),
            "commitment": lambda: self._commitment(features, batch, comm),
            "cmcm": lambda: self._cmcm(features, batch, comm),
        }
        return {name: term for name, term in table.items() if getattr(self.config.weights, name)}

    def stats(self, features: FCIDFeatures, comm: Comm) -> dict[str, float]:
        stats = self.codebook_stats("coarse", features.coarse_quantised, comm)
        if features.fine_quantised is not None:
            stats |= self.codebook_stats("fine", features.fine_quantised, comm)
        return stats

    def pairs(self, features: FCIDFeatures, batch: Batch) -> dict[str, Pair]:
        """Per fine modality its seconds; per coarse one its clip vectors; and those of the fine ones, stacked."""
        if not self.mi:
            return {}
        fine, pairs = self.config.fine, {}
        for name in fine:
            seconds = batch.seconds(name)
            pairs[name] = Pair(features.general[name], features.specific[name].for_mi(), seconds, batch.clips(name))
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

    def _cpc(self, features: FCIDFeatures, batch: Batch, draws: Draws, comm: Comm) -> dict[str, Tensor]:
        """From the seconds so far of one fine modality, the next one of the other."""
        assert self.cpc is not None
        return {"cpc": self.predictive_coding(self.cpc, features.general, batch, draws, comm)}

    def _text_infonce(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Every fine modality's coarse vectors against those of every coarse modality."""
        alike, terms = None, {}
        if self.config.same_caption == "ignored" and batch.caption is not None:
            alike = comm.gather(batch.caption)
        for name, text in itertools.product(self.config.fine, self.config.coarse):
            rows = both(batch.clips(name), batch.clips(text))
            vectors = features.coarse[name].general, features.coarse[text].general
            terms[f"infonce.{name}.{text}"] = self._infonce(*vectors, rows, comm, alike)
        return terms

    def _second_infonce(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """The same second of two fine modalities, against every second of the other clips (or of all)."""
        alike, terms = None, {}
        if self.config.same_clip == "ignored":
            x = features.general[self.config.fine[0]]
            alike = clip_numbers(comm.rows or len(batch), x.shape[1], x.device)
        for a, b in itertools.combinations(self.config.fine, 2):
            rows = both(batch.seconds(a), batch.seconds(b))
            seconds = features.general[a].flatten(0, 1), features.general[b].flatten(0, 1)
            terms[f"second_infonce.{a}.{b}"] = self._infonce(
                *seconds, None if rows is None else rows.flatten(), comm, alike
            )
        return terms

    def _clip_infonce(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """The means over time of the fine features, clip against clip."""
        terms = {}
        for a, b in itertools.combinations(self.config.fine, 2):
            first, second = (time_mean(features.general[name], batch.seconds(name)) for name in (a, b))
            rows = both(batch.clips(a), batch.clips(b))
            terms[f"clip_infonce.{a}.{b}"] = self._infonce(first, second, rows, comm)
        return terms

    def _coarse_infonce(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """The coarse vectors of the fine modalities against each other."""
        terms = {}
        for a, b in itertools.combinations(self.config.fine, 2):
            vectors = features.coarse[a].general, features.coarse[b].general
            terms[f"coarse_infonce.{a}.{b}"] = self._infonce(*vectors, both(batch.clips(a), batch.clips(b)), comm)
        return terms

    def _infonce(
        self, query: Tensor, key: Tensor, rows: Tensor | None, comm: Comm, alike: Tensor | None = None
    ) -> Tensor:
        config = self.config
        with exact(query.device):
            return infonce(
                comm.gather(query),
                comm.gather(key),
                config.temperature,
                both_ways=config.infonce == "both",
                alike=alike,
                rows=None if rows is None else comm.gather(rows),
            )

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

    def _fine_commitment(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Seconds towards their codes and those of the other modality at the same second."""
        if features.fine_quantised is None:
            return {}
        masks = {name: batch.seconds(name) for name in features.general}
        losses = self.commitments(features.general, features.fine_quantised, masks, comm)
        return {f"fine_commitment.{name}": loss for name, loss in losses.items()}

    def _commitment(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Clip vectors towards their codes and those of the other modalities."""
        vectors = {name: coarse.general[:, None] for name, coarse in features.coarse.items()}
        masks = {name: _column(batch.clips(name)) for name in vectors}
        losses = self.commitments(vectors, features.coarse_quantised, masks, comm)
        return {f"commitment.{name}": loss for name, loss in losses.items()}

    def _cmcm(self, features: FCIDFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Clips use the coarse codes as their other modalities do."""
        clips = {name: batch.clips(name) for name in features.coarse}
        return {"cmcm": self.code_matching(features.coarse_quantised, clips, comm)}

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
