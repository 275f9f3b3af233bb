"""InfoNCE: a vector finds its partner among those of the other modality.

Legend: N rows of all ranks, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(
    query: Tensor,
    key: Tensor,
    temperature: float = 0.1,
    *,
    both_ways: bool = False,
    excluded: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """mean_i -log softmax_j(cos(query_i, key_j) / temperature)[i]; `both_ways` halves the sum with that of the keys.

    query, key (N, D); `excluded` (N, N) bool: pairs that are no negatives; `rows` (N,) bool: rows that exist.
    """
    if rows is not None:
        query, key = query[rows], key[rows]
        excluded = None if excluded is None else excluded[rows][:, rows]
    if len(query) == 0:
        return (query.sum() + key.sum()) * 0
    query, key = F.normalize(query, dim=-1) / temperature, F.normalize(key, dim=-1)
    logits = query @ key.T
    if excluded is not None:
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(excluded & ~own, float("-inf"))
    loss = -logits.log_softmax(1).diagonal().mean()
    return (loss - logits.log_softmax(0).diagonal().mean()) / 2 if both_ways else loss


def same_caption(caption: Tensor) -> Tensor:
    """(N, N) bool: rows with equal captions."""
    return caption[:, None] == caption[None]


def same_clip(clips: int, seconds: int, device: torch.device) -> Tensor:
    """(N, N) bool: rows of one clip, N = clips * seconds."""
    clip = torch.arange(clips, device=device).repeat_interleave(seconds)
    return clip[:, None] == clip[None]
