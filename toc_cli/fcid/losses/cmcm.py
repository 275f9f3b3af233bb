"""Cross-modal code matching: clips use codes the way their other modality does.

Legend: B clips of all ranks, K codes. P (B, K): how much of each code a clip uses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def code_scores(p: Tensor, q: Tensor) -> Tensor:
    """S (B, B): P log(Q + 1e-10)^T + Q log(P + 1e-10)^T; S[i, j] is high where clip i uses codes as clip j does
    in the other modality, in both directions."""
    return p @ (q + 1e-10).log().T + q @ (p + 1e-10).log().T


def published_cmcm(scores: Tensor) -> Tensor:
    """mean_i -log( exp(S_ii + c) / (sum_j exp(S_ij + c) + 1e-5) ), c = max(-S), differentiated through; 0 without clips."""
    if len(scores) == 0:
        return scores.sum()
    scaled = torch.exp(scores + (-scores).max())
    return -(scaled.diagonal() / (scaled.sum(1) + 1e-5)).log().mean()


def symmetric_cmcm(scores: Tensor, both: Tensor | None = None) -> Tensor:
    """Cross-entropy of the diagonal over rows and over columns, halved; `both` (B,) bool: clips with both modalities."""
    if both is not None:
        scores = scores[both][:, both]
    if len(scores) < 2:
        return scores.sum() * 0
    return -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean() / 2
