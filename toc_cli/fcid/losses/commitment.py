"""Commitment: features move towards their code, and towards the codes of the other modalities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from toc_cli.fcid.comm import Comm


def commitment(
    x: Tensor,
    own: Tensor,
    others: list[tuple[Tensor, Tensor | None]],
    weight: Tensor | None,
    comm: Comm,
    *,
    own_weight: float = 2.0,
    cross_weight: float = 1.0,
    cost: float = 0.25,
) -> Tensor:
    """cost * (own_weight mse(x, own) + cross_weight / n * sum of mse(x, other) over the n others).

    x, own (N, D); each other is ((N, D), weight (N,) or None), its codes fixed. `weight` (N,) says which rows exist.
    """

    def mse(codes: Tensor, rows: Tensor | None) -> Tensor:
        return comm.mean(F.mse_loss(x, codes.detach(), reduction="none").mean(-1), rows)

    total = own_weight * mse(own, weight)
    for codes, there in others:
        both = weight if there is None else there if weight is None else weight & there
        total = total + cross_weight / len(others) * mse(codes, both)
    return cost * total
