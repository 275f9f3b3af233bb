"""How features become tokens and vectors: L levels x H heads of codes, with the projections around them.

Legend: N rows, W width of the features, L levels, H heads, K codes, D dimensions, D' kept ones, V width of the vectors
(H*D, or W where levels have their own projections). Arithmetic beside the lookup is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch

from toc_cli.errors import InputError
from toc_cli.ops.assign import Searcher
from toc_cli.ops.level import Level, components, levels_of
from toc_cli.ops.linear import TILE_NUMBERS as WEIGHED_NUMBERS
from toc_cli.ops.linear import Array, float64, matmul, unit_rows, weighted_sum
from toc_cli.ops.selection import trimmed

Metric: TypeAlias = Literal["euclidean", "cosine", "dot", "logits"]

TILE_ROWS = 4096
TILE_NUMBERS = 1 << 22
"""Numbers of a tile that is walked in float64, where no product's rounding fixes its rows."""
HELD_PANELS = 1 << 22
"""Codes of up to this many numbers stay packed for search (24 MiB); larger ones are packed again for each tile."""
NEAR_TIE = 1e-6


class Linear(Protocol):
    """`y = x W^T + b`: weight (out, in), bias (out,) or None."""

    @property
    def weight(self) -> torch.Tensor: ...
    @property
    def bias(self) -> torch.Tensor | None: ...


class LayerNorm(Linear, Protocol):
    """A LayerNorm over the codebook dimensions."""

    @property
    def eps(self) -> float: ...


@dataclass(frozen=True)
class Lookup:
    """The chosen codes and how clear each choice was."""

    tokens: torch.Tensor  # (N, L, H) int64
    near_tie: torch.Tensor
    """(N, L, H) bool: the second best lies within 1e-6 relative of the best; (0, L, H) where not asked for."""


@dataclass(frozen=True)
class Quantiser:
    """Features (N, W) to tokens (N, L, H) and vectors (N, V). Build one with `quantiser`."""

    levels: tuple[Level, ...]
    metric: Metric = "euclidean"
    residual: bool = False
    unit_vectors: bool = False
    """The unit-length code is what is passed on."""
    stored_unit: bool = False
    """Cosine codes are stored with unit length and taken as they are stored: compared by the dot product, passed on unchanged."""
    unit_in: bool = False
    """Features are divided by their length, head by head, where the levels start; the codes are met as they are stored."""
    project_in: Linear | None = None
    norm_in: LayerNorm | None = None
    level_in: tuple[Linear, ...] = ()
    """One projection per level: the residual lives in the outer space."""
    level_out: tuple[Linear, ...] = ()
    logits: Linear | None = None
    """Metric `logits`: tokens are the argmax per head of this affine (H*K, W) of the features."""
    project_out: Linear | None = None
    """From the codebook space to what the model goes on with."""

    @property
    def heads(self) -> int:
        """H."""
        return self.levels[0].codes.shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return self.levels[0].dim

    @property
    def width(self) -> int:
        """W."""
        first = self.logits or self.project_in or (self.level_in[0] if self.level_in else None)
        return first.weight.shape[1] if first is not None else self.heads * self.dim

    @property
    def between_unit(self) -> bool:
        """Whether `target` and `approximations` are divided by their length, head by head: where the lookup or what is passed on
        knows directions alone. Levels with their own projections add up in the outer space, where lengths count."""
        return (self.metric == "cosine" or self.unit_vectors) and not self.level_out and self.logits is None

    def to(self, device: torch.device | str) -> Quantiser:
        """The same with its codes on another device: the lookups run there."""
        return replace(self, levels=tuple(replace(level, codes=level.codes.to(device)) for level in self.levels))

    @property
    def enters(self) -> bool:
        """Whether `enter` changes features."""
        return self.project_in is not None or self.norm_in is not None or self.unit_in

    @property
    def vectors_are_products(self) -> bool:
        """Whether matrix products make the vectors: their rounding may follow the number of tokens taken together."""
        turned = self.levels[0].rotation is not None and not self.levels[0].held
        return bool(self.level_out) or turned

    # Forward

    def tokens(self, x: Array) -> torch.Tensor:
        """Features (N, W) to tokens (N, L, H) int64, ties to the smaller index. InputError for another width."""
        return self._walk(x, near_ties=False).tokens

    def lookup(self, x: Array, *, near_ties: bool = True) -> Lookup:
        """Tokens and, unless not asked for, near ties (N, L, H)."""
        return self._walk(x, near_ties)

    def lookup_after(self, x: Array, tokens: torch.Tensor) -> Lookup:
        """What each level chooses where the levels before it chose `tokens` (N, L, H) int64: each level judged alone."""
        x = self._checked(x)
        parts = [
            self._tile(*tiles) for tiles in zip(x.split(TILE_ROWS), repeat(True), tokens.split(TILE_ROWS), strict=False)
        ]
        found, ties = zip(*parts, strict=True)
        return Lookup(torch.cat(found), torch.cat(ties))

    def vectors(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the tokens (N, L, H) stand for: (N, V) float64, summed over levels."""
        *_, last = self.partial_vectors(tokens)
        return last

    def decoded(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the model goes on with for tokens (N, L, H): their vectors through the projection out, float64."""
        found = self.vectors(tokens)
        return found if self.project_out is None else torch.from_numpy(_affine(self.project_out, found.numpy()))

    def partial_vectors(self, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """The vectors (N, V) after level 0, after levels 0 and 1, and so on."""
        total: torch.Tensor | None = None
        for level in range(len(self.levels)):
            part = self._level_vectors(level, tokens[:, level])
            total = part if total is None else total + part
            yield total

    def approximations(self, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """`partial_vectors` as `target` is held against them: head by head at unit length where directions alone count."""
        for vectors in self.partial_vectors(tokens):
            yield torch.from_numpy(self._unit_heads(vectors.numpy())) if self.between_unit else vectors

    def kept_codes(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Per level the chosen codes (N, H, D'), only the dimensions that are stored."""
        heads = torch.arange(self.heads)
        return [level.codes.cpu()[heads, tokens[:, at]] for at, level in enumerate(self.levels)]

    def inputs(self, x: Array, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """Per level the features (N, H*D) that meet its codes, given the tokens (N, L, H). Undefined for `logits`."""
        state = self.enter(self._checked(x))
        for level in range(len(self.levels)):
            yield self._level_input(level, state)
            if self.residual:
                state = state.double() - self._level_vectors(level, tokens[:, level])

    def target(self, x: Array) -> torch.Tensor | None:
        """What `approximations` approximate, (N, V) float64; None for `logits`, where nothing is compared with the codes."""
        if self.logits is not None:
            return None
        z = float64(self.enter(self._checked(x)))
        return torch.from_numpy(self._unit_heads(z) if self.between_unit else z)

    # Other forms

    def pruned(self, kept: torch.Tensor, fill: Array | None = None) -> Quantiser:
        """The subspace form: only `kept` (L or 1, H, D') is compared, `fill` (L, H, D), or 0, is passed on elsewhere. A level that
        keeps fewer has -1 at the end.

        ValueError where a cosine lookup or unit vectors allow no constant but 0.
        """
        self._require_all_dimensions()
        own = [index.sort(-1).values for index in trimmed(kept)] * (len(self.levels) // len(kept))
        codes = [
            torch.stack([book[:, at] for book, at in zip(level.codes, index, strict=True)])
            for level, index in zip(self.levels, own, strict=True)
        ]
        return self._with([self._stored(code) for code in codes], fill, kept=own)

    def rotated(self, rotation: torch.Tensor, fill: Array | None = None) -> Quantiser:
        """The subspace form in the components of `rotation` (L or 1, H, D, D'): codes E R, in the dtype of the codes. A level that
        keeps fewer has columns of zeros at the end.

        What `fill` (L, H, D) holds outside those components is passed on.
        """
        self._require_all_dimensions()
        stored = []
        own = components(rotation) * (len(self.levels) // len(rotation))
        for level, turns in zip(self.levels, own, strict=True):
            parts = [self._rotated(book, turn, level.codes) for book, turn in zip(level.codes, turns, strict=True)]
            wide = any(part.dtype != level.codes.dtype for part in parts)
            stored.append(torch.stack([part.float() if wide else part for part in parts]))
        return self._with(stored, fill, rotation=own)

    def recoded(self, tables: Sequence[torch.Tensor]) -> Quantiser:
        """The same with other codes (H, K', D) per level."""
        self._require_all_dimensions()
        return self._with([self._stored(codes) for codes in tables], None)

    def _rotated(self, codes: torch.Tensor, turn: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Codes E R (K, D') as they are stored, a tile at a time."""
        step = max(1, WEIGHED_NUMBERS // codes.shape[1])
        parts = [self._stored(torch.from_numpy(matmul(tile, turn)), like) for tile in codes.split(step)]
        wide = any(part.dtype != like.dtype for part in parts)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part.float() if wide else part for part in parts])

    def masked(self, kept: torch.Tensor, fill: Array | None = None) -> Quantiser:
        """The same-shape form: every code holds `fill` (L, H, D) off the kept dimensions; the tokens are `pruned`'s."""
        codes = []
        for level, part in zip(self.levels, self.pruned(kept, fill).levels, strict=True):
            raw = replace(part, unit=False)
            rows = [torch.from_numpy(raw.rows(head)).to(level.codes) for head in range(self.heads)]
            codes.append(torch.stack(rows))
        return self._with(codes, None)

    def mean_fill(self, usage: Sequence[Array]) -> np.ndarray:
        """c (L, H, D): the usage-weighted mean of each level's codes, usage (H, K_l) per level.

        Zero where only zero is exact (cosine lookups, unit vectors) and on the later levels of one residual chain.
        A head that no feature uses takes the plain mean.
        """
        fill = np.zeros((len(self.levels), self.heads, self.dim))
        if self.metric == "cosine" or self.unit_vectors:
            return fill
        alone = not self.residual or bool(self.level_in)
        for at, level in enumerate(self.levels if alone else self.levels[:1]):
            counts = float64(usage[at])
            counts = np.where(counts.sum(-1, keepdims=True) > 0, counts, 1.0)
            shares = counts / counts.sum(-1, keepdims=True)
            fill[at] = [weighted_sum(share, codes) for share, codes in zip(shares, level.codes, strict=True)]
        return fill

    def _with(
        self,
        codes: Sequence[torch.Tensor],
        fill: Array | None,
        kept: Sequence[torch.Tensor] | None = None,
        rotation: Sequence[torch.Tensor] | None = None,
    ) -> Quantiser:
        constants = np.zeros((len(codes), self.heads, self.dim)) if fill is None else fill
        cosine = self.metric == "cosine"
        unit = self.unit_vectors and not self.stored_unit
        return replace(self, levels=levels_of(codes, constants, cosine, unit, kept, rotation))

    def _stored(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        """Shortened codes as they are stored, in the dtype and on the device of `like`; float32 where half precision overflows."""
        like = codes if like is None else like
        exact = torch.from_numpy(unit_rows(codes)) if self.stored_unit else codes
        stored = exact.to(like)
        fits = like.element_size() >= 4 or bool(stored.isfinite().all())
        return stored if fits else exact.float().to(like.device)

    def _require_all_dimensions(self) -> None:
        if any(level.kept is not None or level.rotation is not None for level in self.levels):
            raise ValueError("this quantiser is pruned already")

    # Steps

    @cached_property
    def _searchers(self) -> list[list[Searcher]]:
        """Per level and head the codes made ready for search: once, however many blocks of features follow."""
        return [[self._searcher(level, head, True) for head in range(self.heads)] for level in self.levels]

    @property
    def _products(self) -> bool:
        """Whether features meet matrix products on their way, whose rounding may follow the number of rows multiplied together."""
        turned = self.levels[0].rotation is not None
        return self.enters or bool(self.level_in) or self.logits is not None or turned

    @cached_property
    def _stay_packed(self) -> bool:
        return sum(level.codes.numel() for level in self.levels) <= HELD_PANELS

    def _searcher(self, level: Level, head: int, keep: bool) -> Searcher:
        codes, kept = level.codes[head], level.columns(head)
        metric: Metric = "dot" if self.stored_unit else self.metric
        return Searcher(codes, metric, None if kept is None else kept.to(codes.device), keep=keep)

    def _checked(self, x: Array) -> torch.Tensor:
        tensor = x if isinstance(x, torch.Tensor) else torch.from_numpy(x)
        if tensor.ndim != 2 or tensor.shape[1] != self.width:
            raise InputError(
                f"The features have shape {tuple(tensor.shape)}; the quantiser reads rows of {self.width}.",
                "Give features of that width, or name the axis with --channel-axis.",
            )
        return tensor

    def _walk(self, x: Array, near_ties: bool) -> Lookup:
        x = self._checked(x)
        plain = (
            len(self.levels) == 1 and self.width == self.heads * self.dim and self.logits is None and not self.enters
        )
        if plain and not self.level_in:
            step = len(x)
        elif self._products or self._stay_packed:
            step = TILE_ROWS
        else:
            step = max(TILE_ROWS, TILE_NUMBERS // self.width)
        parts = [self._tile(tile, near_ties) for tile in x.split(max(1, step))]
        tokens, ties = zip(*parts, strict=True)
        return Lookup(torch.cat(tokens), torch.cat(ties)[: None if near_ties else 0])

    def _tile(
        self, x: torch.Tensor, near_ties: bool, given: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.logits is not None:
            return self._from_logits(x)
        state = self.enter(x)
        shape = (len(x), len(self.levels), self.heads)
        tokens, ties = torch.empty(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        for at, level in enumerate(self.levels):
            z = self._level_input(at, state)
            for head in range(self.heads):
                searcher = self._searchers[at][head] if self._stay_packed else self._searcher(level, head, False)
                columns = level.compared(z, head).to(level.codes.device)
                if near_ties:
                    found = searcher.nearest(columns)
                    tokens[:, at, head], ties[:, at, head] = found.indices.cpu(), found.near_tie.cpu()
                else:
                    tokens[:, at, head] = searcher.assign(columns).cpu()
            if self.residual and at + 1 < len(self.levels):
                state = state.cpu().double() - self._level_vectors(at, (tokens if given is None else given)[:, at])
        return tokens, ties

    def _from_logits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.logits is not None
        scores = torch.from_numpy(_affine(self.logits, float64(x))).unflatten(1, (self.heads, -1))  # (n, H, K)
        tokens = torch.from_numpy(scores.numpy().argmax(-1))
        if scores.shape[-1] == 1:
            return tokens[:, None], torch.zeros_like(tokens[:, None], dtype=torch.bool)
        best, second = scores.topk(2).values.unbind(-1)
        return tokens[:, None], (best - second <= NEAR_TIE * best.abs())[:, None]

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, W) to where the levels start: the codebook space, or the outer space with own projections."""
        if self.project_in is not None:
            x = torch.from_numpy(_affine(self.project_in, float64(x)))
        if self.norm_in is not None:
            x = torch.from_numpy(_layer_norm(self.norm_in, float64(x)))
        if self.unit_in:
            x = torch.from_numpy(self._unit_heads(float64(x)))
        return x

    def _level_input(self, level: int, state: torch.Tensor) -> torch.Tensor:
        if not self.level_in:
            return state
        return torch.from_numpy(_affine(self.level_in[level], float64(state)))

    def _level_vectors(self, level: int, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (N, H) of one level to (N, V) float64."""
        parts = [self.levels[level].rows(head, tokens[:, head]) for head in range(self.heads)]
        flat = parts[0] if self.heads == 1 else np.concatenate(parts, axis=1)
        return torch.from_numpy(_affine(self.level_out[level], flat) if self.level_out else flat)

    def _unit_heads(self, z: np.ndarray) -> np.ndarray:
        return unit_rows(z.reshape(len(z), self.heads, -1)).reshape(len(z), -1)


def quantiser(
    tables: Sequence[torch.Tensor],
    *,
    metric: Metric = "euclidean",
    residual: bool = False,
    unit_vectors: bool = False,
    stored_unit: bool = False,
    unit_in: bool = False,
    project_in: Linear | None = None,
    norm_in: LayerNorm | None = None,
    level_in: Sequence[Linear] = (),
    level_out: Sequence[Linear] = (),
    logits: Linear | None = None,
    project_out: Linear | None = None,
    kept: Sequence[torch.Tensor] | None = None,
    rotation: Sequence[torch.Tensor] | None = None,
    fill: Array | None = None,
) -> Quantiser:
    """The quantiser of full tables (H, K_l, D), one per level.

    From the stored parts of a pruned one: tables (H, K_l, D'_l) with `fill` (L, H, D) and either `kept` (H, D'_l) int64 ascending
    or `rotation` (H, D, D'_l), one per level or one for all.
    """
    shapes = [tuple(table.shape) for table in tables]
    whole = kept is None and rotation is None
    odd = [s for s in shapes if len(s) != 3 or s[0] != shapes[0][0] or (whole and s[2] != shapes[0][2])]
    if not tables or odd:
        raise ValueError(f"tables must be (H, K, D) with one H and D over the levels, not {shapes}")
    if len(level_in) != len(level_out) or len(level_in) not in (0, len(tables)):
        raise ValueError(f"{len(tables)} levels with {len(level_in)} projections in and {len(level_out)} out")
    exact = [table.float() if table.element_size() == 1 else table for table in tables]  # torch compares no float8
    levels = levels_of(exact, fill, metric == "cosine", unit_vectors and not stored_unit, kept, rotation)
    own = (tuple(level_in), tuple(level_out))
    units = (unit_vectors, stored_unit, unit_in)
    return Quantiser(levels, metric, residual, *units, project_in, norm_in, *own, logits, project_out)


def _affine(layer: Linear, x: np.ndarray) -> np.ndarray:
    """x W^T + b in float64."""
    y = matmul(x, float64(layer.weight).T)
    return y if layer.bias is None else y + float64(layer.bias)


def _layer_norm(layer: LayerNorm, x: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, in float64."""
    off = x - x.mean(axis=-1, keepdims=True)
    y = off / np.sqrt((off * off).mean(axis=-1, keepdims=True) + layer.eps) * float64(layer.weight)
    return y if layer.bias is None else y + float64(layer.bias)
