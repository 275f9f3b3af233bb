"""The two verbs of the Python interface, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.features import Features
from toc_cli.ops.assign import assign
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline import Options, Plan, plan_optimization


def optimize(
    checkpoint: str | Path | Checkpoint,
    features: str | Path | Sequence[str | Path] | Features,
    *,
    keep: str | float | int = "0.5",
    **options: Any,
) -> Plan:
    """Score every dimension of every codebook of a checkpoint and keep the best (arXiv 2403.05168).

    Args:
        checkpoint: A path, or what `open_checkpoint` gave.
        features: Path(s), or what `open_features` gave; rows of the width that reaches the quantiser.
        keep: Share (0.5, "50%"), count (128) or "auto".
        options: Any field of `toc_cli.pipeline.Options`: criterion, weights, metric, sweep, seed, …

    Returns:
        The plan: `kept`, `scores`, `metrics`, `codebook`, and `save(path)`. Nothing is written before `save`.

    Raises:
        UsageError: an option that cannot be meant. InputError: a file that cannot be used.
    """
    return plan_optimization(checkpoint, features, Options(keep=str(keep), **options))


def quantize(x: torch.Tensor | np.ndarray, codebook: Quantiser | torch.Tensor) -> torch.Tensor:
    """The nearest code of each row of x, by the same exact search that the command line uses; ties to the smaller index.

    Args:
        x: (N, W) features.
        codebook: A quantiser (`plan.codebook`), or plain codes (K, W).

    Returns:
        (N,) int64; (N, L, H) where the quantiser has several levels or heads.

    Raises:
        InputError: widths that do not fit, or a row with NaN or Inf (named).
    """
    rows = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    if isinstance(codebook, torch.Tensor):
        return assign(rows, codebook)
    tokens = codebook.tokens(rows)
    return tokens[:, 0, 0] if tokens.shape[1:] == (1, 1) else tokens
