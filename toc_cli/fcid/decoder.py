"""The decoders of all modalities.

Legend: B clips, T seconds, H x W positions, C input width, D shared width, S specific width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from toc_cli.fcid.config import ModalitySpec, ModelConfig
from toc_cli.fcid.encoder import ModalityEncoder
from toc_cli.fcid.modules.decoder import MapDecoder, VectorDecoder
from toc_cli.fcid.modules.specific import MapSpecificEncoder


class FCIDDecoder(nn.Module):
    """Fine decoders rebuild the input of fine modalities, coarse ones the clip vectors of all."""

    def __init__(self, config: ModelConfig, specs: Mapping[str, ModalitySpec], encoders: nn.ModuleDict) -> None:
        super().__init__()
        fine = config.fine if config.weights.fine_reconstruction else ()
        self.fine = nn.ModuleDict({name: FineDecoder(config, specs[name], encoders[name]) for name in fine})  # type: ignore[arg-type]
        width = config.width
        coarse = config.modalities if config.weights.coarse_reconstruction else ()
        self.coarse = nn.ModuleDict({name: VectorDecoder(width, width, width, width) for name in coarse})


class FineDecoder(nn.Module):
    """(B, T, D) and specific features -> (B, T, C) or (B, T, H, W, C)."""

    def __init__(self, config: ModelConfig, spec: ModalitySpec, encoder: ModalityEncoder) -> None:
        super().__init__()
        self.spatial = spec.spatial
        if isinstance(encoder.specific, MapSpecificEncoder):
            width_map = config.specific_width(spec)
            self.decode: MapDecoder | VectorDecoder = MapDecoder(config.width, encoder.specific, width_map, spec.width)
        else:
            own = config.specific_width(spec)
            self.decode = VectorDecoder(config.width, own, spec.width, own)

    def forward(self, shared: Tensor, specific: Tensor) -> Tensor:
        if not self.spatial:
            return self.decode(shared, specific)
        maps = self.decode(shared.flatten(0, 1), specific)  # (H * W, B * T, C)
        return maps.unflatten(0, self.spatial).unflatten(2, shared.shape[:2]).permute(2, 3, 0, 1, 4)
