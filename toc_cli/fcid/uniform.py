"""The uniform-alignment baseline (DCID): every modality second by second, one codebook, one level.

Legend: B clips, T seconds, D shared width, K codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from toc_cli.errors import InputError
from toc_cli.fcid.aligner import Aligner, Encoded, Pair, Term, mi_nets
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.codebook import EmaCodebook, Quantised
from toc_cli.fcid.comm import Comm
from toc_cli.fcid.config import ModalitySpec, ModelConfig
from toc_cli.fcid.decoder import FineDecoder
from toc_cli.fcid.draws import Draws
from toc_cli.fcid.encoder import ModalityEncoder, Specific
from toc_cli.fcid.losses.cpc import ContextNet
from toc_cli.fcid.losses.reconstruction import reconstruction
from toc_cli.fcid.masks import time_mean
from toc_cli.fcid.precision import exact


@dataclass(frozen=True)
class UniformFeatures:
    """What the encoders say of a batch; all (B, T, D) per modality."""

    inputs: dict[str, Tensor]
    """What is rebuilt: the data, for text the states of its LSTM."""
    general: dict[str, Tensor]
    specific: dict[str, Specific]
    quantised: Quantised


class Uniform(Aligner[UniformFeatures]):
    """All modalities are fine; those of `config.coarse` (text) pass a BiLSTM first."""

    def __init__(self, config: ModelConfig, specs: Mapping[str, ModalitySpec]) -> None:
        super().__init__(config, specs)
        lengths = {name: spec.length for name, spec in self.specs.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"Uniform alignment pairs seconds, but the lengths differ: {lengths}.",
                "Bring the data to one length, or use the alignment fine-coarse.",
            )
        width, weights = config.width, config.weights
        self.sequence = nn.ModuleDict(
            {
                name: nn.LSTM(self.specs[name].width, width // 2, 2, batch_first=True, bidirectional=True)
                for name in config.coarse
            }
        )
        inputs = {name: width if name in self.sequence else spec.width for name, spec in self.specs.items()}
        self.specs_in = {name: dataclasses.replace(spec, width=inputs[name]) for name, spec in self.specs.items()}
        own = bool(weights.club or weights.fine_reconstruction)
        self.encoder = nn.ModuleDict({n: ModalityEncoder(spec, config, own) for n, spec in self.specs_in.items()})
        if weights.cpc:
            hidden = config.cpc_hidden or width
            nets = {name: ContextNet(width, hidden, config.cpc_steps) for name in config.modalities}
            self.cpc: nn.ModuleDict | None = nn.ModuleDict(nets)
        else:
            self.cpc = None
        rebuilt = self.specs_in if weights.fine_reconstruction else {}
        self.decoder = nn.ModuleDict({n: FineDecoder(config, s, self.encoder[n]) for n, s in rebuilt.items()})  # type: ignore[arg-type]
        pooled = {name: config.pooled_width(spec) for name, spec in self.specs_in.items()}
        self.mi = mi_nets(config, pooled if weights.club else {})
        self.codebook = nn.ModuleDict({"fine": EmaCodebook(config.codebook, config.codebook.size, width)})

    def forward(self, batch: Batch, draws: Draws, comm: Comm) -> UniformFeatures:
        drop = draws.dropout(self.config.dropout if self.training else 0.0, comm)
        hide = draws.dropout(self.config.input_dropout if self.training else 0.0, comm)
        inputs, general, specific = {}, {}, {}
        for name in self.config.modalities:
            encoder = cast(ModalityEncoder, self.encoder[name])
            inputs[name] = self._input(name, batch.x[name])
            x, length = inputs[name], inputs[name].shape[1]
            seen = encoder.maps(hide(x) if name in self.config.fine else x)
            general[name] = encoder.general(seen, length, self._seconds(batch, name), drop)
            if encoder.specific is not None:
                specific[name] = encoder.own(encoder.maps(x), length)
        masks = {name: batch.seconds(name) for name in general}
        match = self.config.weights.cmcm != 0
        return UniformFeatures(inputs, general, specific, self.quantise("fine", general, masks, draws, comm, match))

    def terms(self, features: UniformFeatures, batch: Batch, draws: Draws, comm: Comm) -> dict[str, Term]:
        table: dict[str, Term] = {
            "club": lambda: self.club(features, batch, draws, comm),
            "cpc": lambda: self._cpc(features, batch, draws, comm),
            "fine_reconstruction": lambda: self._reconstruction(features, batch, comm),
            "commitment": lambda: self._commitment(features, batch, comm),
            "cmcm": lambda: self._cmcm(features, batch, comm),
        }
        return {name: term for name, term in table.items() if getattr(self.config.weights, name)}

    def stats(self, features: UniformFeatures, comm: Comm) -> dict[str, float]:
        return self.codebook_stats("fine", features.quantised, comm)

    def pairs(self, features: UniformFeatures, batch: Batch) -> dict[str, Pair]:
        """Quantised against specific features, per modality."""
        vectors, own = features.quantised.vectors, features.specific
        return {n: Pair(vectors[n], own[n].for_mi(), batch.seconds(n), batch.clips(n)) for n in self.mi}

    def _cpc(self, features: UniformFeatures, batch: Batch, draws: Draws, comm: Comm) -> dict[str, Tensor]:
        """From the seconds so far of one modality, the next one of each."""
        assert self.cpc is not None
        return {"cpc": self.predictive_coding(self.cpc, features.general, batch, draws, comm)}

    def _reconstruction(self, features: UniformFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Quantised and specific features back to the input, for text to the states of its LSTM."""
        terms = {}
        for name, target in features.inputs.items():
            fixed = target.detach() if self.config.coarse_targets == "fixed" else target
            decoded = self.decode(name, features.quantised.vectors[name], features.specific[name].features)
            terms[f"fine_reconstruction.{name}"] = reconstruction(decoded, fixed, batch.seconds(name), comm)
        return terms

    def _commitment(self, features: UniformFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Seconds towards their codes and those of the other modalities at the same second."""
        masks = {name: batch.seconds(name) for name in features.general}
        losses = self.commitments(features.general, features.quantised, masks, comm)
        return {f"commitment.{name}": loss for name, loss in losses.items()}

    def _cmcm(self, features: UniformFeatures, batch: Batch, comm: Comm) -> dict[str, Tensor]:
        """Clips use the codes as their other modalities do."""
        clips = {name: batch.clips(name) for name in features.general}
        return {"cmcm": self.code_matching(features.quantised, clips, comm)}

    def encode(self, modality: str, x: Tensor, mask: Tensor | None = None) -> Encoded:
        encoder = cast(ModalityEncoder, self.encoder[modality])
        seconds = mask if self.config.padding == "masked" else None
        inputs = self._input(modality, x)
        maps, length = encoder.maps(inputs), inputs.shape[1]
        fine = encoder.general(maps, length, seconds)
        found = self.table("fine").quantise({"x": fine}, {"x": None})
        specific = None if encoder.specific is None else encoder.own(maps, length).features
        coarse = time_mean(fine, seconds)
        return Encoded(fine, coarse, found.codes["x"], None, found.raw["x"], None, specific, found.raw["x"])

    def decode(self, modality: str, shared: Tensor, specific: Tensor) -> Tensor:
        return cast(Tensor, self.decoder[modality](shared, specific))

    def _input(self, name: str, x: Tensor) -> Tensor:
        if name not in self.sequence:
            return x
        with exact(x.device):
            states, _ = self.sequence[name](x)
        return cast(Tensor, states)

    def _seconds(self, batch: Batch, name: str) -> Tensor | None:
        return batch.seconds(name) if self.config.padding == "masked" else None
