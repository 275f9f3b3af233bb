"""Cross-modal contrastive predictive coding: the context of one modality predicts the other's next seconds.

Legend: M modalities, B clips of all ranks, T seconds, D features, n steps ahead, A anchors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toc_cli.fcid.precision import exact


class ContextNet(nn.Module):
    """(B, T, D) -> predictions (B, T, n, D): from the LSTM's state at every second, each of the next n seconds."""

    def __init__(self, width: int, hidden: int, steps: int = 1, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        self.predictors = nn.ModuleList(nn.Linear(hidden, width) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        with exact(x.device):
            context, _ = self.lstm(x)
        return torch.stack([predict(context) for predict in self.predictors], dim=2).to(x.dtype)


def cpc(
    x: list[Tensor],
    predictions: list[Tensor],
    anchors: Tensor,
    seconds: list[Tensor | None],
    *,
    cross_weight: float = 1.0,
    own_weight: float = 0.1,
) -> Tensor:
    """-(1/B) sum over pairs (x, y) of weight * tr log-softmax( z_x pred_y^T ), mean over anchors and steps.

    Per modality x (B, T, D) and predictions (B, T, n, D) made at each second from what came before; the target of
    anchor t and step i is second t + 1 + i. log-softmax runs over predictions (columns). `anchors` (A,) int64.
    `seconds` (B, T) bool per modality, None where all are there.
    """
    steps = predictions[0].shape[2]
    target_at = anchors[:, None] + 1 + torch.arange(steps, device=anchors.device)  # (A, n)
    targets = [z[:, target_at].permute(1, 2, 0, 3) for z in x]  # (A, n, B, D)
    guesses = [p[:, anchors].permute(1, 2, 0, 3) for p in predictions]
    total = x[0].new_zeros(())
    for i, z in enumerate(targets):
        for j, guess in enumerate(guesses):
            there = _both_there(seconds[i], seconds[j], anchors, target_at)
            own = _own_score(z @ guess.transpose(-1, -2), there)
            total = total - (own_weight if i == j else cross_weight) * own
    return total


def cpc_accuracy(x: Tensor, predictions: Tensor, anchor: int) -> Tensor:
    """Share of clips whose own prediction of the last step scores highest; x (B, T, D), predictions (B, T, n, D)."""
    steps = predictions.shape[2]
    scores = x[:, anchor + steps] @ predictions[:, anchor, -1].T
    return (scores.argmax(1) == torch.arange(len(x), device=x.device)).float().mean()


def _own_score(scores: Tensor, there: Tensor | None) -> Tensor:
    """Mean of the diagonal of the log-softmax of (A, n, B, B) over rows that are there (A, n, B)."""
    if there is None:
        return scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean()
    floor = torch.finfo(scores.dtype).min
    own = scores.masked_fill(~there[..., None, :], floor).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return torch.where(there, own, own.new_zeros(())).sum() / there.sum().clamp(min=1)


def _both_there(target: Tensor | None, context: Tensor | None, anchors: Tensor, target_at: Tensor) -> Tensor | None:
    """(A, n, B) bool: the target second of one modality and the anchor second of the other exist."""
    if target is None and context is None:
        return None
    batch = len(target if target is not None else context)  # type: ignore[arg-type]
    there = torch.ones(*target_at.shape, batch, dtype=torch.bool, device=anchors.device)
    if target is not None:
        there = there & target[:, target_at].permute(1, 2, 0)
    if context is not None:
        there = there & context[:, anchors].T[:, None]
    return there
