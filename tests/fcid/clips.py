"""Models and batches of a few small clips."""

from __future__ import annotations

from typing import Any

import torch

from toc_cli.fcid.aligner import Aligner
from toc_cli.fcid.batch import Batch
from toc_cli.fcid.config import ModalitySpec, ModelConfig, with_options
from toc_cli.fcid.model import build_model

SPECS = {
    "video": ModalitySpec("video", 4, 6, (3, 3)),
    "audio": ModalitySpec("audio", 4, 5),
    "text": ModalitySpec("text", 4, 7),
}
SMALL: dict[str, Any] = {"width": 8, "codebook.size": 12, "dropout": 0.0}


def small_model(config: ModelConfig, **options: Any) -> Aligner:
    """D = 8, K = 12, float64, no dropout; always the same weights."""
    torch.manual_seed(0)
    return build_model(
        with_options(config, SMALL | {n.replace("__", "."): v for n, v in options.items()}), SPECS
    ).double()


def clips(count: int = 5, seed: int = 0, **parts: Any) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = {
        name: torch.randn(count, spec.length, *spec.spatial, spec.width, generator=generator, dtype=torch.float64)
        for name, spec in SPECS.items()
    }
    return Batch(x, **parts)
