"""A choice as an artefact, and an artefact as the quantiser it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from toc_cli import __version__
from toc_cli.errors import InputError, UsageError
from toc_cli.io.artefact import Artefact
from toc_cli.io.families.base import Affine, Norm
from toc_cli.io.names import printable
from toc_cli.ops.quantiser import Quantiser, quantiser
from toc_cli.pipeline.census import Census
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.options import METRICS, Options
from toc_cli.pipeline.source import Source
from toc_cli.pipeline.study import Study

_LAYERS = ("project_in", "norm_in", "logits", "project_out")


def as_artefact(
    chosen: Sequence[tuple[Study, Choice]], options: Options, inputs: Sequence[Mapping[str, Any]]
) -> Artefact:
    """The tensors and the description of every codebook."""
    tensors: dict[str, torch.Tensor] = {}
    for study, choice in chosen:
        found = _tensors(study.source, study.census, choice)
        tensors |= {f"{study.source.id}.{name}": t.contiguous() for name, t in found.items()}
    metadata = {
        "toc.version": __version__,
        "toc.criterion": options.criterion,
        "toc.weights": json.dumps(options.weights),
        "toc.normalize": options.normalize,
        "toc.keep": options.keep,
        "toc.seed": str(options.seed),
        "toc.inputs": json.dumps(list(inputs), sort_keys=True),
    }
    return Artefact(tensors, tuple(_description(study.source, choice) for study, choice in chosen), metadata)


def _tensors(source: Source, census: Census, choice: Choice) -> dict[str, torch.Tensor]:
    codes = stored_codes(source, choice)
    usage = [torch.from_numpy(table) for table in census.pooled]
    tensors = {
        **_by_level("codebook", codes),
        **_by_level("usage", usage),
        **_by_level("kept", choice.kept_by_level),
        "fill": torch.from_numpy(choice.fill if choice.fill.shape[:2] != (1, 1) else choice.fill[0, 0]),
        "order": choice.order,
        **{name: torch.from_numpy(choice.table(name)) for name in ("score", "similarity", "variance")},
    }
    rotation = choice.rotation_by_level
    if len(rotation) == 1 and len(rotation[0]) == 1:
        tensors["rotation"] = rotation[0][0]
    elif rotation:
        tensors |= _by_level("rotation", rotation)
    if source.codes is not None:
        tensors |= _by_level("code_map", source.codes.cut.maps) | _by_level("code_ids", source.codes.cut.ids)
    for name in _LAYERS:
        tensors |= _layer(name, getattr(source.parts, name))
    for name in ("level_in", "level_out"):
        for level, affine in enumerate(getattr(source.parts, name)):
            tensors |= _layer(f"{name}.{level}", affine)
    return tensors


def stored_codes(source: Source, choice: Choice) -> list[torch.Tensor]:
    """Per level the pruned codes (H, K_l, D') in the dtype of the codes read; float32 where a rotation overflows half precision."""
    codes = [level.codes.cpu() for level in choice.form.levels]
    stored = [table.to(read.dtype) for table, read in zip(codes, source.parts.tables, strict=True)]
    fits = all(bool(table.float().isfinite().all()) for table in stored)
    return stored if fits else [table.float() for table in codes]


def _by_level(name: str, tables: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """One stacked tensor (L, H, …), or one per level where their shapes differ: other K, other D'."""
    if len({table.shape for table in tables}) == 1:
        return {name: torch.stack(list(tables))}
    return {f"{name}.{level}": table for level, table in enumerate(tables)}


def _layer(name: str, layer: Affine | Norm | None) -> dict[str, torch.Tensor]:
    if layer is None:
        return {}
    return {f"{name}.weight": layer.weight} | ({} if layer.bias is None else {f"{name}.bias": layer.bias})


def _description(source: Source, choice: Choice) -> dict[str, Any]:
    book, parts, levels = source.book, source.parts, len(source.full.levels)
    return {
        "family": book.family,
        "keys": [list(level) for level in book.keys[:levels]],
        "metric": book.metric,
        "residual": book.residual,
        "unit_vectors": source.full.unit_vectors,
        "stored_unit": source.full.stored_unit,
        "unit_in": source.full.unit_in,
        "levels": levels,
        "heads": book.heads,
        "num_codes": list(book.num_codes[:levels]),
        "dim": book.dim,
        "kept_dim": choice.count,
        **({} if isinstance(choice.size, int) else {"kept_dims": choice.sizes}),
        **({} if source.codes is None else {"codes": source.codes.about}),
        "norm_eps": parts.norm_in.eps if parts.norm_in else None,
    }


def quantiser_of(artefact: Artefact, id: int) -> Quantiser:
    """The pruned quantiser of codebook `id`. UsageError for an id it does not hold; InputError where tensors are missing."""
    if not 0 <= id < len(artefact.codebooks):
        raise UsageError(
            f"--id {id}: the artefact holds codebooks 0 to {len(artefact.codebooks) - 1}.", "toc inspect lists them."
        )
    book = artefact.codebooks[id]
    own = {
        key.partition(".")[2]: tensor for key, tensor in artefact.tensors.items() if key.partition(".")[0] == str(id)
    }
    try:
        return _rebuild(book, own)
    except (KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
        raise InputError(
            f"Codebook {id} of the artefact is damaged: {error}.", "Write it again with toc optimize."
        ) from None


def quantisers_by_key(artefact: Artefact) -> dict[str, Quantiser]:
    """The codebooks of an artefact by the key of the tensor that each was cut from."""
    return {book["keys"][0][0]: quantiser_of(artefact, id) for id, book in enumerate(artefact.codebooks)}


def _rebuild(book: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> Quantiser:
    levels, heads, dim = book["levels"], book["heads"], book["dim"]
    codes = _by_levels("codebook", own, levels)
    if len(codes) != levels or book["metric"] not in (*METRICS, "logits"):
        raise ValueError(f"{len(codes)} levels of {levels!r}, metric {printable(book['metric'], 40)}")
    rotation = _by_levels("rotation", own, levels)
    norm = _read_layer("norm_in", own)
    return quantiser(
        codes,
        fill=own["fill"].reshape(levels, heads, dim).numpy(),
        kept=None if rotation else _by_levels("kept", own, levels),
        rotation=rotation or None,
        metric=book["metric"],
        residual=book["residual"],
        unit_vectors=book["unit_vectors"],
        stored_unit=book["stored_unit"],
        unit_in=book.get("unit_in", False),
        project_in=_read_layer("project_in", own),
        norm_in=None if norm is None else Norm(norm.weight, norm.bias, float(book["norm_eps"])),
        level_in=_read_levels("level_in", own, levels),
        level_out=_read_levels("level_out", own, levels),
        logits=_read_layer("logits", own),
        project_out=_read_layer("project_out", own),
    )


def _by_levels(name: str, own: Mapping[str, torch.Tensor], levels: int) -> list[torch.Tensor]:
    """The reverse of `_by_level`: one tensor for each level, or one for all; none where there is no such. A lone table's rotation
    is stored as (D, D')."""
    if name not in own:
        return [own[f"{name}.{level}"] for level in range(levels) if f"{name}.{level}" in own]
    return [own[name][None]] if own[name].ndim == 2 else list(own[name])


def _read_layer(name: str, own: Mapping[str, torch.Tensor]) -> Affine | None:
    weight = own.get(f"{name}.weight")
    return None if weight is None else Affine(weight, own.get(f"{name}.bias"))


def _read_levels(name: str, own: Mapping[str, torch.Tensor], levels: int) -> tuple[Affine, ...]:
    found = (_read_layer(f"{name}.{level}", own) for level in range(levels))
    return tuple(layer for layer in found if layer is not None)
