"""The clips of one step, as every part of the model sees them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B clips of several modalities.

    A modality without an entry in `mask` (or `present`) is complete: all its seconds (or clips) are there.
    Values under a false mask are ignored, but must be finite.
    """

    x: dict[str, Tensor]
    """Per modality (B, T, C) or (B, T, H, W, C)."""
    mask: dict[str, Tensor] = field(default_factory=dict)
    """Per modality (B, T) bool: which seconds exist."""
    present: dict[str, Tensor] = field(default_factory=dict)
    """Per modality (B,) bool: which clips have it."""
    index: Tensor | None = None
    """(B,) int64, positions in the data set."""
    caption: Tensor | None = None
    """(B,) int64; clips with equal captions (or labels) share the number."""

    def __len__(self) -> int:
        return len(next(iter(self.x.values())))

    def clips(self, name: str) -> Tensor | None:
        """(B,) bool of the clips that have the modality; None where all have."""
        return self.present.get(name)

    def seconds(self, name: str) -> Tensor | None:
        """(B, T) bool of the seconds that exist in clips that have the modality; None where all do."""
        mask, present = self.mask.get(name), self.present.get(name)
        if present is None:
            return mask
        if mask is None:
            return present[:, None].expand(self.x[name].shape[:2])
        return mask & present[:, None]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The same clips elsewhere; `dtype` is that of the features."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return replace(
            self,
            x={name: x.to(device, dtype, non_blocking=True) for name, x in self.x.items()},
            mask=moved(self.mask),
            present=moved(self.present),
            index=None if self.index is None else self.index.to(device),
            caption=None if self.caption is None else self.caption.to(device),
        )
