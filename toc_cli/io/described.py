"""Whether the description of a codebook in an artefact fits its tensors: types, counts and shapes, before anything is built.

Legend: L levels, H heads, K codes, D dimensions before, D' kept ones, W outer width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toc_cli.io.checkpoint.base import TensorInfo
from toc_cli.io.names import printable

METRICS = ("euclidean", "cosine", "dot", "logits")
LIMIT = 1 << 24
"""Of any one count: far above real ones, far below what a loop over it could not end."""


def flaw(infos: Mapping[str, TensorInfo], id: int, about: Any) -> str:
    """What is wrong with the description of codebook `id`; "" where it fits."""
    if not isinstance(about, dict):
        return f"codebook {id} is described by {printable(about, 40)}"
    for name in ("levels", "heads", "dim", "kept_dim"):
        if name in about and not _count(about[name]):
            return f"{name} of codebook {id} is {_shown(about[name])}"
    if not {"levels", "heads", "dim"} <= about.keys():
        return f"codebook {id} lacks its levels, heads or dim"
    if not isinstance(about.get("family"), str) or about.get("metric") not in METRICS:
        return (
            f"codebook {id} has the metric {_shown(about.get('metric'))} and the family {_shown(about.get('family'))}"
        )
    for name in ("residual", "unit_vectors", "stored_unit"):
        if not isinstance(about.get(name), bool):
            return f"{name} of codebook {id} is {_shown(about.get(name))}"
    eps = about.get("norm_eps")
    if eps is not None and not (isinstance(eps, float) and 0 <= eps < math.inf):
        return f"norm_eps of codebook {id} is {_shown(eps)}"
    own = {key.partition(".")[2]: info for key, info in infos.items() if key.partition(".")[0] == str(id)}
    return _misshapen(own, about, id)


def _misshapen(own: Mapping[str, TensorInfo], about: Mapping[str, Any], id: int) -> str:
    levels, heads, dim = about["levels"], about["heads"], about["dim"]
    tables = [own["codebook"]] if "codebook" in own else [own[name] for name in _numbered(own, "codebook", levels)]
    first = tables[0].shape if tables else ()
    sizes = [table.shape[-1] if table.shape else 0 for table in tables]
    if "codebook" in own:
        fits = len(first) == 4 and first[:2] == (levels, heads)
    else:
        fits = len(tables) == levels and all(len(t.shape) == 3 and t.shape[0] == heads for t in tables)
    uneven = len(set(sizes)) > 1
    fits = fits and all(0 < size <= dim and min(t.shape) > 0 for size, t in zip(sizes, tables, strict=True))
    if not fits or not all(table.is_floating for table in tables):
        shown = ", ".join(str(table.shape) for table in tables[:3])
        return f"codebook {id} of {levels} levels and {heads} heads has codes of shape {shown or 'none'}"
    if uneven != ("kept.0" in own):
        return (
            f"codebook {id} has levels of {printable(str(sizes[:8]))} dimensions, and kept dimensions of another kind"
        )
    if uneven:
        problem = _misshapen_levels(own, sizes, heads, dim, id)
        return problem or _misshapen_layers(own, about, id)
    kept = sizes[0]
    own_levels = [(count, heads) for count in {1, levels}]
    wanted: dict[str, list[tuple[int, ...]]] = {
        "kept": [(*lead, kept) for lead in own_levels],
        "rotation": [(dim, kept), *((*lead, dim, kept) for lead in own_levels)],
        "fill": [(dim,), *((*lead, dim) for lead in own_levels)],
    }
    for name, shapes in wanted.items():
        if name in own and own[name].shape not in shapes:
            return f"codebook {id} has {name} of shape {own[name].shape}, not {' or '.join(map(str, shapes))}"
    if "kept" not in own or own["kept"].stored != "int64" or "fill" not in own or not own["fill"].is_floating:
        return f"codebook {id} lacks its kept dimensions or their constant"
    if "rotation" in own and not own["rotation"].is_floating:
        return f"codebook {id} has a rotation of {own['rotation'].stored}"
    return _misshapen_layers(own, about, id)


def _misshapen_levels(own: Mapping[str, TensorInfo], sizes: Sequence[int], heads: int, dim: int, id: int) -> str:
    """Levels that keep unlike many dimensions: each has its own kept ones, and its own rotation if there is any."""
    turned = any(f"rotation.{level}" in own for level in range(len(sizes)))
    for level, size in enumerate(sizes):
        wanted = {f"kept.{level}": (heads, size)} | ({f"rotation.{level}": (heads, dim, size)} if turned else {})
        for name, shape in wanted.items():
            if name not in own or own[name].shape != shape:
                return f"codebook {id} has {name} of shape {own[name].shape if name in own else 'none'}, not {shape}"
        if own[f"kept.{level}"].stored != "int64" or (turned and not own[f"rotation.{level}"].is_floating):
            return f"codebook {id} has kept.{level} of {own[f'kept.{level}'].stored}"
    if "fill" not in own or not own["fill"].is_floating or own["fill"].shape != (len(sizes), heads, dim):
        return f"codebook {id} lacks the constant of its dropped dimensions"
    return ""


def _misshapen_layers(own: Mapping[str, TensorInfo], about: Mapping[str, Any], id: int) -> str:
    """Projections around the codebook: rows (or, on the way out, columns) are its dimensions or its logits."""
    levels, heads, dim = about["levels"], about["heads"], about["dim"]
    codes = own["codebook"].shape[2] if "codebook" in own else 0
    into, out = _numbered(own, "level_in", levels, ".weight"), _numbered(own, "level_out", levels, ".weight")
    if len(into) not in (0, levels) or len(out) != len(into):
        return f"codebook {id} has {len(into)} projections in and {len(out)} out for {levels} levels"
    rows = {"project_in.weight": heads * dim, "logits.weight": heads * codes, **dict.fromkeys(into, dim)}
    widths = {own[name].shape[1:] for name in into} | {own[name].shape[:1] for name in out}
    for name, length in rows.items():
        if name in own and (len(own[name].shape) != 2 or own[name].shape[0] != length or not own[name].shape[1]):
            return f"codebook {id} has {name} of shape {own[name].shape}; {length} rows were expected"
    if len(widths) > 1 or any(len(own[name].shape) != 2 or own[name].shape[1] != dim for name in out):
        return f"codebook {id} has level_out of shape {own[out[0]].shape}"
    for name, info in own.items():
        layer, _, part = name.rpartition(".")
        if part == "bias" and f"{layer}.weight" in own and info.shape != own[f"{layer}.weight"].shape[:1]:
            return f"codebook {id} has {printable(name)} of shape {info.shape}"
        if part in ("weight", "bias") and not info.is_floating:
            return f"codebook {id} has {printable(name)} of {info.stored}"
    norm = own.get("norm_in.weight")
    if norm is not None and norm.shape != (dim,) and norm.shape != (heads * dim,):
        return f"codebook {id} has norm_in.weight of shape {norm.shape}"
    return ""


def _numbered(own: Mapping[str, TensorInfo], stem: str, count: int, tail: str = "") -> list[str]:
    """The names `stem.0`, `stem.1`, … that are there, without a loop over a count that the file claims."""
    return [name for i in range(min(count, len(own))) if (name := f"{stem}.{i}{tail}") in own]


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < LIMIT


def _shown(value: Any) -> str:
    return printable(repr(value) if isinstance(value, (str, float, bool, type(None))) else type(value).__name__, 40)
