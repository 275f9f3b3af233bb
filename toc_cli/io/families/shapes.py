"""The shapes that a family relies on, stated in H, K, D and W, and the one check that holds a file against them.

Legend: H heads, K codes, D dimensions, W outer width.
"""

from __future__ import annotations

from math import prod

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, TensorInfo
from toc_cli.io.families.base import Codebook, Relied, Site
from toc_cli.io.families.copies import copy_key
from toc_cli.io.families.names import misfit
from toc_cli.io.names import printable


def check(ckpt: Checkpoint, book: Codebook) -> None:
    """InputError that names the key, its shape and the shape expected, where a tensor does not fit the codebook.

    Held against the file: what the family states (`relies`), every site with its window, bias, magnitude and counts, and the
    copies of each site.
    """
    for relied in book.relies:
        _check_relied(ckpt, book, relied)
    for site in book.sites:
        _check_site(ckpt, book, site)
        for copy in book.copies:
            key = copy_key(ckpt, book.root, copy, site.key)
            if key and ckpt.infos[key].shape != ckpt.infos[site.key].shape:
                raise misfit(key, ckpt.infos[key].shape, ckpt.infos[site.key].shape)


def _check_relied(ckpt: Checkpoint, book: Codebook, relied: Relied) -> None:
    sizes = {
        "H": book.heads,
        "D": book.dim,
        "W": book.outer_width or book.heads * book.dim,
        "K": book.num_codes[relied.level],
    }
    expected = [
        prod(sizes[letter] for letter in axis.split("*")) if isinstance(axis, str) else axis for axis in relied.axes
    ]
    info = _floating(ckpt, relied.key)
    ones = all(n == 1 for n in info.shape[len(expected) :]) if relied.kernel else len(info.shape) == len(expected)
    if list(info.shape[: len(expected)]) != expected or not ones:
        raise misfit(relied.key, info.shape, expected)


def _check_site(ckpt: Checkpoint, book: Codebook, site: Site) -> None:
    info = _floating(ckpt, site.key)
    shape, axis = info.shape, site.axis
    wide = book.heads * book.dim if site.head is None else book.dim
    narrow = {site.offset + wide, site.offset + book.dim}  # a table that all heads share is D wide
    here = 0 <= axis < len(shape)
    length = shape[axis] if here else 0
    fits = length >= min(narrow) if site.role == "consumer" else length in narrow
    if not fits:
        named = [wide + site.offset if n == axis else size for n, size in enumerate(shape)] if here else ["…", wide]
        raise misfit(site.key, shape, named)
    for at, start, stop in site.window:
        if at >= len(shape) or not 0 <= start < stop <= shape[at]:
            raise misfit(site.key, shape, [f"at least {stop}" if n == at else size for n, size in enumerate(shape)])
    if site.role == "sums" and site.counts is not None:
        rows = [n for n, size in enumerate(shape) if n != axis]
        counts = ckpt.require(site.counts).shape
        if prod(counts) != prod(shape[n] for n in rows):
            raise misfit(site.counts, counts, [shape[n] for n in rows])
    if site.bias is not None:
        # rows of the layer before; outputs of the layer after, whose kernels have them first or, transposed, second
        if len(shape) < 2:
            raise misfit(site.key, shape, ("out", "in"))
        expected = length if site.role == "producer" else shape[1 if axis == 0 else 0]
        if _floating(ckpt, site.bias).shape != (expected,):
            raise misfit(site.bias, ckpt.infos[site.bias].shape, [expected])


def _floating(ckpt: Checkpoint, key: str) -> TensorInfo:
    info = ckpt.require(key)
    if not info.is_floating:
        name = info.reads
        raise InputError(f"{printable(key)} is {tuple(info.shape)} {name}, where floating-point numbers are expected.")
    return info
