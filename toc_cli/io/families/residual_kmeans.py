"""Residual k-means of recommenders: OneRec's `centroids.N` and GRID's `quantization_layer_list.N.centroids`, each level (K, D)."""

from __future__ import annotations

from dataclasses import replace

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import generic
from toc_cli.io.families.base import Codebook, Stack
from toc_cli.io.families.layers import levels
from toc_cli.io.families.names import Section, sections
from toc_cli.io.families.tables import plain
from toc_cli.io.names import printable

READER = "what reads the centroids is code outside this file"
SETTING = "normalize_residuals"
UNSAID = f"GRID brings the residual of every level to unit length unless {SETTING} is false, which this file does not say: read without"


def find(ckpt: Checkpoint) -> list[Codebook]:
    """Every stack of GRID, and a section that holds nothing but OneRec's numbered centroids."""
    found = []
    for part in sections(ckpt):
        for names in levels(part, r"(?P<root>(?:.*\.)?)quantization_layer_list\.\d+\.centroids").values():
            found.append(_grid(ckpt, part, names))
        for names in levels(part, r"(?P<root>(?:module\.)?)centroids\.\d+").values():
            shapes = {part.shape(name) for name in names}
            if len(names) == len(list(part)) > 1 == len(shapes) and len(shapes.pop()) == 2:
                found.append(_one_rec(ckpt, part, names))
    return found


def _one_rec(ckpt: Checkpoint, part: Section, names: list[str]) -> Codebook:
    """Levels of a residual, as the only public code that saves such a file has them; `--stack` says otherwise."""
    asked = generic.stacked(ckpt, [part.key(name) for name in names], "euclidean")
    return replace(asked, family="OneRec residual k-means", stack="residual")


def _grid(ckpt: Checkpoint, part: Section, names: list[str]) -> Codebook:
    """Levels of a residual where the settings say that it is not brought to unit length; else a question.

    Raises:
        InputError: the settings say that it is.
    """
    said = [value for path, value in ckpt.values.items() if path[-1] == SETTING]
    keys = [part.key(name) for name in names]
    if True in said:
        raise InputError(
            f"{printable(keys[0])} is GRID's with {SETTING}: the residual of every level is brought to unit length before the"
            " lookup, which toc does not read level by level.",
            "--codebook KEY takes one table, with features of unit length.",
        )
    if False in said:
        return plain(
            part,
            names,
            family="GRID residual k-means",
            evidence="stated",
            residual=len(names) > 1,
            refusals={"sliced": READER, "consumer": READER},
        )
    if len(names) == 1:
        one = generic.table(ckpt, keys[0], metric="euclidean")
        return replace(one, warnings=(*one.warnings, UNSAID))
    asked = generic.stacked(ckpt, keys, "euclidean")

    def restack(how: Stack) -> list[Codebook]:
        answered = asked.restack(how) if asked.restack else []
        return [replace(book, warnings=(*book.warnings, UNSAID)) for book in answered]

    return replace(asked, restack=restack)
