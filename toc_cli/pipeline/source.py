"""The join of a checkpoint and its features: which dataset meets which codebook, and on which side of its projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Codebook, Parts
from toc_cli.io.features import Features, Stream
from toc_cli.io.names import printable
from toc_cli.ops.codes import CodeCut
from toc_cli.ops.quantiser import Quantiser, quantiser
from toc_cli.ops.scores import check_codes


@dataclass(frozen=True)
class Source:
    """One codebook of the checkpoint, ready to quantise."""

    id: int
    book: Codebook
    parts: Parts
    full: Quantiser
    """With the projection in, where the codebook has one."""
    codes: Recoded | None = None
    """What `--codes` has cut; all else is then of the codes that are left."""
    whole: Source | None = None
    """With all levels, where `--levels` has cut some; all else is then of the first ones."""
    refreshed: Refreshed | None = None
    """What `--refresh` has estimated anew: `parts` then hold those codes, `full` the ones that came."""
    about_levels: Mapping[str, Any] | None = None
    """The record's `levels_cut`."""

    @property
    def came(self) -> Quantiser:
        """The quantiser as the model came with it, before `--levels` and `--codes`: what every figure compares with."""
        before = self.codes.before if self.codes is not None else self
        return before.full if before.whole is None else before.whole.full

    def same(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (N, L, H) of `came` as those of `full`: of the levels that stay, -1 where a code has gone or changed its meaning."""
        kept = tokens[:, : len(self.full.levels)]
        return kept if self.codes is None else self.codes.cut.kept(kept.long())


@dataclass(frozen=True)
class Recoded:
    """Codes that were cut, beside the source as it came."""

    before: Source
    cut: CodeCut
    about: Mapping[str, Any]
    """The record's `codes`."""
    usage: Sequence[np.ndarray]
    """(H, K_l) per level: how often each old code was chosen."""


@dataclass(frozen=True)
class Refreshed:
    """Codes that were estimated anew, beside the source as it was."""

    before: Source
    about: Mapping[str, Any]
    """The record's `refresh`."""


@dataclass(frozen=True)
class Fit:
    """A dataset that meets a codebook."""

    dataset: Stream
    projected: bool
    """Whether the checkpoint's projection is applied to it."""


def sources(ckpt: Checkpoint, books: Sequence[Codebook]) -> list[Source]:
    """Read every codebook's tensors and check that they can be scored. InputError with the key otherwise."""
    return [_source(ckpt, id, book) for id, book in enumerate(books)]


def _source(ckpt: Checkpoint, id: int, book: Codebook) -> Source:
    parts = book.parts(ckpt)
    for level, table in enumerate(parts.tables):
        for head, codes in enumerate(table):
            try:
                check_codes(codes)
            except InputError as error:
                where = printable(book.keys[min(level, len(book.keys) - 1)][0]) or printable(ckpt.path.name)
                at = f", head {head}" if book.heads > 1 else ""
                raise InputError(f"{where}{at}: {error.what}", error.hint) from None
    for what, layers in (("before", (parts.project_in, parts.norm_in, parts.logits, *parts.level_in)),
                         ("after", (parts.project_out, *parts.level_out))):  # fmt: skip
        values = [value for layer in layers if layer for value in (layer.weight, layer.bias) if value is not None]
        if not all(bool(value.float().isfinite().all()) for value in values):
            raise InputError(
                f"{printable(book.keys[0][0])}: the layer {what} the codebook holds NaN or Inf.",
                "Export the checkpoint again.",
            )
    return Source(id, book, parts, whole(book, parts))


def whole(book: Codebook, parts: Parts) -> Quantiser:
    """The quantiser of a codebook with all its dimensions."""
    return quantiser(
        parts.tables,
        metric=book.metric,
        residual=book.residual,
        unit_vectors=book.unit_vectors or book.stored_unit,
        stored_unit=book.stored_unit,
        unit_in=book.unit_in,
        project_in=parts.project_in,
        norm_in=parts.norm_in,
        level_in=parts.level_in,
        level_out=parts.level_out,
        logits=parts.logits,
        project_out=parts.project_out,
    )


def inside(full: Quantiser) -> Quantiser:
    """The same for features that are past the projection already."""
    return replace(full, project_in=None, norm_in=None)


def entered(full: Quantiser) -> Quantiser:
    """The same for what `Quantiser.enter` gave."""
    return replace(inside(full), unit_in=False)


def form_for(form: Quantiser, fit: Fit) -> Quantiser:
    """The quantiser as a dataset meets it."""
    return form if fit.projected else inside(form)


def fits(source: Source, features: Features, space: str) -> list[Fit]:
    """The datasets whose width fits a codebook. InputError that names the widths where none does."""
    try:
        fitting = features.select(widths(source.full))
    except InputError as error:
        turned = _turned(source, features)
        raise InputError(error.what, turned) if turned else _with_heads(source.full, features, error) from None
    return [Fit(dataset, on_outer_side(source.full, dataset.width, space)) for dataset in fitting]


def _turned(source: Source, features: Features) -> str:
    """What to say where features are as wide as a table that no family knows has codes: it may be stored as (D, K)."""
    table = source.full.levels[0].codes
    widths_given = {dataset.width for dataset in features.datasets.values() if not dataset.problem}
    lone = len(source.full.levels) == 1 and table.shape[0] == 1 and source.book.evidence == "assumed"
    if not lone or table.shape[1] not in widths_given:
        return ""
    return f"If {printable(source.book.shown, 120)} holds {table.shape[2]} codes of {table.shape[1]} dimensions: --layout DK."


def _with_heads(full: Quantiser, features: Features, error: InputError) -> InputError:
    """The error of features of no fitting width, with the way out where one table may serve several heads unknown to the file."""
    counts = [d.width // full.dim for d in features.datasets.values() if d.width > full.dim and d.width % full.dim == 0]
    if not counts or full.heads > 1 or full.dim == 1 or has_projection(full) or "--channel-axis" in error.hint:
        return error
    heads = counts[0]
    flag = f"--codebook KEY --layout 1KD,H={heads}"
    return InputError(
        error.what, f"If {heads} heads share this table, {flag} says so (KD,H={heads} where it has two axes)."
    )


def widths(full: Quantiser) -> set[int]:
    """Feature widths that a quantiser reads: before its projection, and past it where the levels start there."""
    return {full.width} if outer_only(full) else {full.width, full.heads * full.dim}


def outer_only(full: Quantiser) -> bool:
    """Whether only features before the projection can be walked: own projections per level, or a learned head."""
    return bool(full.level_in) or full.logits is not None


def on_outer_side(full: Quantiser, width: int, space: str) -> bool:
    """Whether features of this width meet the projection first; where both sides are as wide, `space` decides."""
    if outer_only(full):
        return True
    return has_projection(full) and width == full.width and (space != "codebook" or width != full.heads * full.dim)


def has_projection(full: Quantiser) -> bool:
    """Whether anything stands between the features and the codebook space."""
    return full.project_in is not None or full.norm_in is not None


def device_of(name: str) -> torch.device:
    """`auto` is CUDA where there is one. UsageError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is unknown.", "Use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r} is not supported.", "Use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name} is not here: {torch.cuda.device_count()} CUDA devices.", "Use --device cpu.")
    return device
