"""faiss: product quantisers, residual quantisers, flat vectors, and the coarse level of inverted files.

Quantisers encode by squared distance whatever the metric of the search; a flat index searches by its own.
Sub-spaces are heads, each with its own dimensions.
"""

from __future__ import annotations

from itertools import accumulate

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.checkpoint.faiss import FLAT
from toc_cli.io.families.base import Affine, Codebook, Metric, Parts
from toc_cli.io.families.names import sized
from toc_cli.io.names import printable

PRODUCT = ("pq.centroids", "centroids")
INNER_PRODUCT = "the index searches by inner product; its codes are chosen by distance, and so are these tokens"
BEAM = "faiss encodes with a beam search; these tokens are the greedy ones, level by level"
OF_RESIDUALS = "it encodes what the coarse level leaves: give features with their coarse centroid subtracted"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """The quantisers of an index."""
    if ckpt.container != "faiss":
        return []
    books = []
    for key, info in ckpt.infos.items():
        leaf = key.rpartition("coarse.")[2]
        if leaf in PRODUCT:
            books.append(_product(ckpt, key, sized(info, "M K D")))
        elif leaf == "rq.codebooks":
            books.append(_residual(ckpt, key, sized(info, "K D")))
        elif leaf == "xb" and key != leaf:
            books.append(_table(ckpt, key, sized(info, "K D"), "faiss coarse quantiser", "euclidean"))
        elif leaf == "xb" and ckpt.values.get(("faiss", "fourcc")) in FLAT:
            books.append(_table(ckpt, key, sized(info, "K D"), "faiss flat index", _flat_metric(ckpt)))
    return books


def _product(ckpt: Checkpoint, key: str, shape: tuple[int, ...]) -> Codebook:
    heads, codes, dim = shape
    warnings = [INNER_PRODUCT] if ckpt.values.get(("faiss", "metric")) == "inner_product" else []
    if ckpt.values.get(("faiss", "by_residual")) and "coarse." not in key:
        warnings.append(OF_RESIDUALS)
    return Codebook(
        family="faiss product quantiser",
        keys=((key,) * heads,),
        num_codes=(codes,),
        dim=dim,
        heads=heads,
        metric="euclidean",
        dtype="float32",
        parts=lambda opened: Parts(tables=(opened.get(key),), project_in=_transform(opened)),
        outer_width=_outer_width(ckpt),
        warnings=tuple(warnings),
    )


def _residual(ckpt: Checkpoint, key: str, shape: tuple[int, ...]) -> Codebook:
    sizes = [1 << bits for bits in ckpt.values["faiss", "nbits"]]
    starts = [0, *accumulate(sizes)]

    def parts(opened: Checkpoint) -> Parts:
        rows = opened.get(key)
        tables = tuple(rows[start : start + size][None] for start, size in zip(starts, sizes, strict=False))
        return Parts(tables=tables, project_in=_transform(opened))

    return Codebook(
        family="faiss residual quantiser",
        keys=((key,),) * len(sizes),
        num_codes=tuple(sizes),
        dim=shape[1],
        heads=1,
        metric="euclidean",
        dtype="float32",
        parts=parts,
        residual=len(sizes) > 1,
        outer_width=_outer_width(ckpt),
        warnings=(BEAM,),
    )


def _flat_metric(ckpt: Checkpoint) -> Metric:
    searched = ckpt.values.get(("faiss", "metric"))
    if searched == "l2":
        return "euclidean"
    if searched == "inner_product":
        return "dot"
    raise InputError(
        f"{printable(ckpt.path)} is a flat index of faiss's metric {printable(searched)}, by which toc chooses no codes.",
        "toc knows METRIC_L2 and METRIC_INNER_PRODUCT; export the vectors with np.save, and say --metric.",
    )


def _table(ckpt: Checkpoint, key: str, shape: tuple[int, ...], family: str, metric: Metric) -> Codebook:
    return Codebook(
        family=family,
        keys=((key,),),
        num_codes=(shape[0],),
        dim=shape[1],
        heads=1,
        metric=metric,
        dtype="float32",
        parts=lambda opened: Parts(tables=(opened.get(key)[None],), project_in=_transform(opened)),
        outer_width=_outer_width(ckpt),
    )


def _rotations(ckpt: Checkpoint) -> list[str]:
    return [f"transform.{i}" for i in range(len(ckpt.infos)) if f"transform.{i}.A" in ckpt.infos]


def _outer_width(ckpt: Checkpoint) -> int | None:
    rotations = _rotations(ckpt)
    return ckpt.infos[f"{rotations[0]}.A"].shape[1] if rotations else None


def _transform(ckpt: Checkpoint) -> Affine | None:
    """The linear transforms before the index (OPQ), composed into one."""
    import torch

    total: Affine | None = None
    for name in _rotations(ckpt):
        weight = ckpt.get(f"{name}.A").double()
        bias = ckpt.get(f"{name}.b").double() if f"{name}.b" in ckpt.infos else torch.zeros(len(weight)).double()
        if total is not None and total.bias is not None:
            weight, bias = weight @ total.weight, weight @ total.bias + bias
        total = Affine(weight, bias)
    return total
