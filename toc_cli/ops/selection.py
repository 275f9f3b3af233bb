"""From scores to kept dimensions: a share, a count, or both ends of the ranking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import TypeAlias

import numpy as np
import torch

from toc_cli.errors import UsageError
from toc_cli.ops.linear import Array, float64

Size: TypeAlias = int | tuple[int, ...]
"""D' of a codebook, or of each of its levels where they differ."""

_NUMBER = re.compile(r"\d{1,18}(\.\d{0,18})?|\.\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Selection:
    """The kept dimensions of one codebook and the ranking they come from."""

    kept: torch.Tensor  # (D',) int64 ascending
    order: torch.Tensor  # (D,) int64, every dimension by falling score
    chosen: torch.Tensor  # (D',) int64 in the order of choice: best first, then (with a ratio) worst first


def parse_keep(keep: str | float | int, dim: int) -> int | None:
    """The number of dimensions that `--keep` asks for, of `dim`; None for `auto`.

    "0.5", "50%" and 0.5 are shares (round half up, at least 1), "128" and 128 counts; "1.0" keeps all, "1" keeps one.
    UsageError for anything else: zero, negative, a share above 1, more than `dim`, not a number.
    """
    text = str(keep).strip()
    hint = "Use a share (0.5 or 50%), a count (128) or auto."
    return None if text == "auto" else parse_share("--keep", text, dim, hint)


def parse_keeps(keep: str, dim: int, levels: int) -> Size | None:
    """`parse_keep`, or one value for each of `levels` levels between commas; equal ones are one size. UsageError for another number
    of values, and for `auto` among them."""
    parts = keep.split(",")
    if len(parts) == 1:
        return parse_keep(keep, dim)
    if len(parts) != levels:
        have = "1 level" if levels == 1 else f"{levels} levels"
        raise UsageError(
            f"--keep {keep} names {len(parts)} sizes, and the codebook has {have}.",
            "Use one value for all levels, or as many as there are.",
        )
    return per_level(keep, dim)


def per_level(keep: str, dim: int) -> Size:
    """The values between commas, one for each level. UsageError for what is no share or count."""
    sizes = [parse_keep(part, dim) for part in keep.split(",")]
    found = tuple(size for size in sizes if size is not None)
    if len(found) < len(sizes):
        raise UsageError(f"--keep {keep}: auto is no size of one level.", "Use shares or counts, or auto alone.")
    return one_size(found)


def one_size(sizes: Sequence[int]) -> Size:
    """Sizes of levels, as one where they are equal."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def most(size: Size) -> int:
    """The largest D' over the levels."""
    return size if isinstance(size, int) else max(size)


def size_text(size: Size) -> str:
    """A size as `--keep` takes it: `64`, `64,32`."""
    return str(size) if isinstance(size, int) else ",".join(map(str, size))


def padded(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Kept indices (H, D'_l) per level as one (L, H, D'), -1 where a level keeps fewer than another."""
    width = max(level.shape[-1] for level in levels)
    return torch.stack([torch.nn.functional.pad(level, (0, width - level.shape[-1]), value=-1) for level in levels])


def trimmed(kept: torch.Tensor) -> list[torch.Tensor]:
    """The reverse of `padded`: (L, H, D') to (H, D'_l) per level."""
    return [level[:, : int((level[0] >= 0).sum())] for level in kept]


def parse_share(flag: str, text: str, whole: int, hint: str) -> int:
    """A share or a count as a count of `whole`, for a flag. UsageError with `hint` for what is neither."""
    text = text.strip()
    percent = text.endswith("%")
    digits = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(digits):
        raise UsageError(f"{flag} {text!r} is not a share or a count.", hint)
    value = Decimal(digits)
    if not percent and "." not in digits:
        if value < 1:
            raise UsageError(f"{flag} {text} keeps nothing.", hint)
        if value > whole:
            what = "dimensions" if flag == "--keep" else "codes"
            raise UsageError(
                f"{flag} {text} asks for more than the codebook's {whole} {what}.", f"Use at most {whole}."
            )
        return int(value)
    share = value / 100 if percent else value
    if not 0 < share <= 1:
        raise UsageError(f"{flag} {text} is a share outside (0, 1].", hint)
    return max(1, int((share * whole).to_integral_value(ROUND_HALF_UP)))


def parse_ratio(text: str) -> tuple[int, int]:
    """`MAX:MIN` as two whole numbers, not both 0. UsageError otherwise."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text.strip(), re.ASCII)
    if not match or not (int(match[1]) or int(match[2])):
        raise UsageError(f"--ratio {text!r} is not MAX:MIN.", "Use two whole numbers, such as 3:1.")
    return int(match[1]), int(match[2])


def rank(score: Array, last: Array | None = None) -> torch.Tensor:
    """Dimensions (D,) by falling score (D,), ties to the smaller index; those marked in `last` (D,) bool come last."""
    score = float64(score)
    if not np.isfinite(score).all():
        raise ValueError("a score is not finite")
    behind = np.zeros(len(score), dtype=bool) if last is None else np.asarray(last, dtype=bool)
    return torch.from_numpy(np.lexsort((np.arange(len(score)), -score, behind)))


def select(score: Array, count: int, ratio: tuple[int, int] | None = None, last: Array | None = None) -> Selection:
    """Keep exactly `count` dimensions of score (D,), 1 <= count <= D, ties to the smaller index.

    `ratio` (MAX, MIN) takes MAX/(MAX+MIN) of them (round half up) from the highest scores and the rest from the lowest
    (the published scripts' `max_num:min_num`, whose integer division can keep fewer). No index is taken twice.
    """
    order = rank(score, last)
    top = count
    if ratio is not None:
        most, least = ratio
        top = (2 * count * most + most + least) // (2 * (most + least))
    best, rest = order[:top], order[top:]
    ends = _lowest(float64(score), rest.numpy(), count - top, last)
    chosen = torch.cat([best, torch.from_numpy(ends)])
    return Selection(kept=chosen.sort().values, order=order, chosen=chosen)


def _lowest(score: np.ndarray, among: np.ndarray, count: int, last: Array | None) -> np.ndarray:
    """The `count` lowest of `among`, lowest first, ties to the smaller index."""
    ahead = np.zeros(len(score), dtype=bool) if last is None else np.asarray(last, dtype=bool)
    return among[np.lexsort((among, score[among], ~ahead[among]))][:count]
