"""The demo model's own way from features to pictures, for every written form: `examples/make_demo_data.py` has its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toc_cli.ops import fidelity
from toc_cli.pipeline.outcome import Decoded, compared, png

PICTURES = 8


def decode(state: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Features (N, 16, W) to images (N, 1, 8, 8) in 0 … 1, by the weights of a file: project, look up, project back, decode."""
    z = features.transpose(1, 2).unflatten(2, (4, 4))
    rows = F.conv2d(z, state["quant_conv.weight"], state["quant_conv.bias"]).permute(0, 2, 3, 1)
    codes = state["quantize.embedding.weight"]
    q = codes[torch.cdist(rows.flatten(0, 2), codes).argmin(1)].view_as(rows).permute(0, 3, 1, 2)
    y = F.conv2d(q, state["post_quant_conv.weight"], state["post_quant_conv.bias"])
    y = F.conv_transpose2d(F.silu(y), state["decoder.1.weight"], state["decoder.1.bias"], stride=2, padding=1)
    return F.conv2d(F.silu(y), state["decoder.3.weight"], state["decoder.3.bias"], padding=1).clamp(0, 1)


def outcome(checkpoint: Path, copies: Mapping[str, Path], features: Path, seed: int) -> dict[str, Any]:
    """The record's `outcome` on the held-out digits: pictures before and after, in every written form."""
    from safetensors.torch import load_file

    with h5py.File(features, "r") as file:
        rows = torch.from_numpy(np.concatenate([file["upper"][:], file["lower"][:]], 1).astype(np.float32))
        images, labels = file["images"][:].astype(np.float32)[:, None] / 16, file["label"][:]
    states = {"before": load_file(checkpoint), **{mode: load_file(path) for mode, path in copies.items()}}
    with torch.inference_mode():
        outs = {side: decode(state, rows).numpy() for side, state in states.items()}

    def decoded() -> Iterator[Decoded]:
        for at, image in enumerate(images):
            yield f"{labels[at]}", image, {side: made[at] for side, made in outs.items()}

    measures = {"psnr_db": fidelity.psnr_db}
    found = compared(decoded(), tuple(copies), measures, png, PICTURES, seed)
    return {
        "data": "held-out digits",
        "kind": "image",
        "model": "Autoencoder",
        "library": "the demo's own decoder",
        **found,
    }
