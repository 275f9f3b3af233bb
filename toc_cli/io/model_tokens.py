"""The tokens among what a quantiser returns, laid out like the features that reached it.

Legend: features have lead axes (batch, time, height, …) and one channel axis; tokens have the lead axes, then levels L, then heads H.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PROJECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm)
COUNTS = ("max_num_quantizers", "num_quantizers", "n_codebooks", "num_codebooks", "n_q", "nq")


@dataclass(frozen=True)
class Found:
    """One way to see the tokens."""

    channel_axis: int
    """Of the features, counted from 0."""
    tokens: torch.Tensor
    """The lead axes of the features, then L and H where there are several."""


def tensors(returned: object, depth: int = 4) -> Iterator[torch.Tensor]:
    """Every tensor of a nested output: tuples, lists, mappings (also of transformers), dataclasses."""
    if isinstance(returned, torch.Tensor):
        yield returned
    elif depth and isinstance(returned, Mapping):
        for value in returned.values():
            yield from tensors(value, depth - 1)
    elif depth and isinstance(returned, tuple | list):
        for value in returned:
            yield from tensors(value, depth - 1)
    elif depth and dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        for field in dataclasses.fields(returned):
            yield from tensors(getattr(returned, field.name, None), depth - 1)


def features_of(returned: object) -> torch.Tensor | None:
    """The first tensor of real numbers of an encoder's output."""
    return next((each for each in tensors(returned) if each.is_floating_point() and each.ndim), None)


def is_token_tensor(value: torch.Tensor) -> bool:
    """Whether a tensor holds whole numbers."""
    return value.ndim > 0 and not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool


def found_in(
    returned: object, shape: tuple[int, ...], channel_axis: int | None, module: nn.Module, method: str
) -> list[Found]:
    """The ways in which what `module.method` returned holds tokens of features of this shape; the likeliest alone where one is
    the way of the library."""
    for tensor in tensors(returned):
        if is_token_tensor(tensor):
            ways = list(_ways(tensor.detach(), shape, channel_axis, module, method))
            if ways:
                return ways
    return []


def _ways(
    tokens: torch.Tensor, shape: tuple[int, ...], channel_axis: int | None, module: nn.Module, method: str
) -> Iterator[Found]:
    axes = (
        [channel_axis % len(shape)]
        if channel_axis is not None
        else sorted({len(shape) - 1, 1 % len(shape)}, reverse=True)
    )
    seen: list[Found] = []
    for axis in axes:
        lead = tuple(n for at, n in enumerate(shape) if at != axis)
        for order in _orders(module, method):
            laid = order(tokens, lead)
            if laid is not None and not any(
                laid.shape == one.tokens.shape and torch.equal(laid, one.tokens) for one in seen
            ):
                seen.append(Found(axis, laid))
    yield from seen


def _orders(module: nn.Module, method: str) -> list[Any]:
    """How the tokens of a library are laid out; every order where it is not known."""
    library = type(module).__module__
    if library.startswith(("transformers.models.encodec", "transformers.models.mimi", "transformers.models.xcodec")):
        return [levels_first]
    if library.startswith("transformers.models.higgs"):
        return [levels_first]
    if library.startswith("encodec."):
        return [levels_first] if method == "encode" else [levels_second]
    if library.startswith(("transformers.models.dac", "dac.", "descript")):
        return [levels_second]
    if library.startswith("vector_quantize_pytorch"):
        return [heads_first if "Grouped" in type(module).__name__ else levels_last]
    return [levels_last, levels_second, levels_first, flat]


def levels_last(tokens: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor | None:
    """(*lead,), (*lead, L) or (*lead, L, H)."""
    fits = tuple(tokens.shape[: len(lead)]) == lead and tokens.ndim <= len(lead) + 2
    return tokens if fits else None


def levels_second(tokens: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor | None:
    """(B, L, *rest of lead)."""
    if tokens.ndim != len(lead) + 1 or not lead or (tokens.shape[0], *tokens.shape[2:]) != lead:
        return None
    return tokens.movedim(1, -1)


def levels_first(tokens: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor | None:
    """(L, *lead)."""
    return tokens.movedim(0, -1) if tuple(tokens.shape[1:]) == lead else None


def heads_first(tokens: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor | None:
    """(H, *lead, L) of grouped quantisers, to (*lead, L, H)."""
    return tokens.movedim(0, -1) if tuple(tokens.shape[1:-1]) == lead and tokens.ndim == len(lead) + 2 else None


def flat(tokens: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor | None:
    """(rows,) or (rows, 1) in C order of the lead axes."""
    if tokens.ndim > 2 or tokens.shape[0] != math.prod(lead) or tokens.numel() != math.prod(lead):
        return None
    return tokens.reshape(lead)


def padded(tokens: torch.Tensor, lead: int, module: nn.Module) -> torch.Tensor:
    """With -1 for the levels that the module has and left out at this bandwidth; tokens (*lead, L)."""
    have = tokens.shape[lead] if tokens.ndim == lead + 1 else 0
    wanted = levels_of(module)
    if not have or wanted <= have:
        return tokens
    return torch.nn.functional.pad(tokens, (0, wanted - have), value=-1)


def levels_of(module: nn.Module) -> int:
    """How many levels a residual quantiser has; 0 where it does not say."""
    for name in COUNTS:
        count = getattr(module, name, None)
        if isinstance(count, int) and count > 0:
            return count
    for name in ("layers", "quantizers"):
        stages = getattr(module, name, None)
        if isinstance(stages, nn.ModuleList):
            return len(stages)
    return 0


def projects(module: nn.Module) -> bool:
    """Whether a quantiser has a projection of its own before its codes."""
    return any(isinstance(part, PROJECTIONS) for part in module.modules())
