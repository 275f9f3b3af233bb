"""The encoders of all modalities, and the coarse heads.

Legend: B clips, T seconds, H x W positions, C input width, D shared width, S specific width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toc_cli.fcid.config import ModalitySpec, ModelConfig
from toc_cli.fcid.draws import Drop
from toc_cli.fcid.modules.semantic import MapSemanticEncoder
from toc_cli.fcid.modules.specific import MapSpecificEncoder, VectorSpecificEncoder
from toc_cli.fcid.modules.temporal import TemporalBlock, no_drop


@dataclass(frozen=True)
class Specific:
    """What a modality keeps to itself."""

    features: Tensor
    """(B, T, S), or (P', B * T, S) for maps, position-major."""
    pooled: Tensor | None
    """(B, T, S) or (B, T, C): what the mutual-information nets see; None for maps without such nets."""

    def for_mi(self) -> Tensor:
        """`pooled`, which must be there."""
        assert self.pooled is not None
        return self.pooled


@dataclass(frozen=True)
class Coarse:
    """The clip-level vectors of one modality, each (B, D)."""

    clip: Tensor
    general: Tensor
    specific: Tensor | None


class ModalityEncoder(nn.Module):
    """One modality's road to the shared space (`general`) and to its own (`own`)."""

    def __init__(self, spec: ModalitySpec, config: ModelConfig, own: bool) -> None:
        super().__init__()
        self.spec = spec
        self.semantic: MapSemanticEncoder | None = None
        self.specific: MapSpecificEncoder | VectorSpecificEncoder | None = None
        width_in, own_width = spec.width, config.specific_width(spec)
        if spec.spatial:
            size = (spec.spatial[0], spec.spatial[1])
            self.semantic = MapSemanticEncoder(spec.width, config.spatial_attention)
            width_in = self.semantic.width_out(size)
            if own:
                self.specific = MapSpecificEncoder(size, spec.width, own_width, pooled=config.weights.club != 0)
        elif own:
            self.specific = VectorSpecificEncoder(spec.width, own_width)
        inner = config.feedforward or 4 * config.width
        self.temporal = TemporalBlock(width_in, config.width, config.heads, inner, config.layers)

    def maps(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (H * W, B * T, C); vectors stay as they are."""
        return x.permute(2, 3, 0, 1, 4).flatten(2, 3).flatten(0, 1) if self.spec.spatial else x

    def general(self, x: Tensor, length: int, seconds: Tensor | None, drop: Drop = no_drop) -> Tensor:
        """What `maps` returns of clips of T = `length` seconds -> (B, T, D)."""
        if self.semantic is not None:
            x = self.semantic(x).unflatten(0, (-1, length))
        shared: Tensor = self.temporal(x, seconds, drop)
        return shared.to(self.temporal.affine.weight.dtype)  # under autocast too, what is quantised has full precision

    def own(self, x: Tensor, length: int) -> Specific:
        """What `maps` returns -> the specific features."""
        if isinstance(self.specific, MapSpecificEncoder):
            features, pooled = self.specific(x)
            return Specific(features, None if pooled is None else pooled.unflatten(0, (-1, length)))
        assert self.specific is not None
        features = self.specific(x)
        return Specific(features, features)


class CoarseHead(nn.Module):
    """The mean over time -> clip vector, its general and its specific part; video and audio share one."""

    def __init__(self, width: int, activation: str, own: bool) -> None:
        super().__init__()
        self.clip = nn.Linear(width, width)
        self.general = nn.Linear(width, width)
        self.specific = nn.Linear(width, width) if own else None
        self.relu = activation == "relu"

    def forward(self, mean: Tensor) -> Coarse:
        """(..., D) -> three times (..., D)."""
        clip = self.clip(mean)
        general = self._activated(self.general(clip))
        own = None if self.specific is None else self._activated(self.specific(clip))
        return Coarse(clip.to(mean.dtype), general, own)

    def _activated(self, x: Tensor) -> Tensor:
        return (torch.relu(x) if self.relu else x).to(self.clip.weight.dtype)
