"""Which layer of a file may stand between features of another width and a codebook that no family knows."""

from __future__ import annotations

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.names import is_optimizer
from toc_cli.io.features import Features
from toc_cli.io.names import printable
from toc_cli.pipeline.source import Source


def layers_before(ckpt: Checkpoint, source: Source, features: Features) -> list[str]:
    """Linear layers and pointwise convolutions from the width of a modality to that of the codebook, with their shapes."""
    inner = source.full.heads * source.full.dim
    tables = {key for level in source.book.keys for key in level}
    given = {stream.width for stream in features.datasets.values() if not stream.problem} - {inner}
    found = []
    for info in ckpt.infos.values():
        matrix = (
            len(info.shape) >= 2
            and all(n == 1 for n in info.shape[2:])
            and not is_optimizer(info)
            and info.key not in tables
        )
        if matrix and any(sorted(info.shape[:2]) == sorted((inner, width)) for width in given):
            found.append(f"{printable(info.key, 80)} {tuple(info.shape)}")
    return found


def advice(ckpt: Checkpoint, source: Source, features: Features) -> str:
    """What to say of them; "" where there is none."""
    found = layers_before(ckpt, source, features)
    if not found:
        return ""
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return f"{shown} may stand before it: record what reaches the quantiser past that layer (toc_cli.capture), and give those features."
