"""toc: score, prune and vet the codebook of a VQ checkpoint, training-free.

import toc_cli as toc
ckpt = toc.open_checkpoint("model.safetensors")
feats = toc.open_features("feats.h5")
plan = toc.optimize(ckpt, feats, keep=0.5)
plan.save("out.toc.safetensors")
tokens = toc.quantize(x, plan.codebook)
with toc.capture(model.quantizer, "feats.h5"):
    model(batch)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toc_cli.lazy import names_from

if TYPE_CHECKING:
    from toc_cli.api import optimize, quantize
    from toc_cli.io.capture import capture
    from toc_cli.io.checkpoint import open_checkpoint
    from toc_cli.io.features import open_features

__version__ = "0.2.0"
__all__ = ["__version__", "capture", "open_checkpoint", "open_features", "optimize", "quantize"]

__getattr__ = names_from(
    __name__,
    {
        "capture": "io.capture",
        "open_checkpoint": "io.checkpoint",
        "open_features": "io.features",
        "optimize": "api",
        "quantize": "api",
    },
)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
