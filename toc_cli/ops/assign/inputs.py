"""Whether features and codes fit each other, in words a user can act on."""

from __future__ import annotations

import torch
from torch import Tensor

from toc_cli.errors import InputError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FINITE_BLOCK = 1 << 22  # elements looked at in one go for NaN and Inf


def fit(x: Tensor, codes: Tensor, kept: Tensor | None) -> Tensor | None:
    """The kept dimensions as an index on x's device; raises InputError where shapes, dtypes or devices do not fit."""
    if x.ndim != 2 or codes.ndim != 2:
        raise InputError(
            f"Features and codes are matrices (N, D) and (K, D), not {tuple(x.shape)} and {tuple(codes.shape)}."
        )
    if x.dtype not in DTYPES or codes.dtype not in DTYPES:
        raise InputError(f"Features and codes are floating point, not {x.dtype} and {codes.dtype}.")
    if codes.device != x.device:
        raise InputError(f"Features are on {x.device}, codes on {codes.device}.", "Move one of them.")
    if codes.numel() == 0:
        raise InputError(f"The codebook of shape {tuple(codes.shape)} is empty.")
    if kept is None:
        if codes.shape[1] != x.shape[1]:
            raise InputError(f"Codes of {codes.shape[1]} dimensions do not fit features of {x.shape[1]}.")
        return None
    kept = kept.to(x.device, torch.int64)
    if kept.ndim != 1 or len(kept) == 0 or int(kept.min()) < 0 or int(kept.max()) >= x.shape[1]:
        raise InputError(
            f"Kept dimensions of shape {tuple(kept.shape)} are not indices of the {x.shape[1]} feature dimensions."
        )
    if codes.shape[1] not in (x.shape[1], len(kept)):
        raise InputError(
            f"Codes of {codes.shape[1]} dimensions fit neither the {x.shape[1]} of the features nor the {len(kept)} kept."
        )
    return kept


def check_finite(name: str, x: Tensor, kept: Tensor | None = None, first: int = 0) -> None:
    """Raises InputError naming the first row that holds NaN or Inf; `first` is the number of row 0."""
    step = max(1, FINITE_BLOCK // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        rows = x[start : start + step] if kept is None else x[start : start + step].index_select(1, kept)
        finite = torch.isfinite(rows).all(1)
        if not finite.all():
            row = first + start + int(finite.byte().argmin())
            raise InputError(f"Row {row} of the {name} holds NaN or Inf.")
