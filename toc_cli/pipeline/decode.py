"""Tokens to vectors, streamed: what the model goes on with, through the projection out of the codebook space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from toc_cli import __version__
from toc_cli.errors import UsageError
from toc_cli.io.atomic import check_target, write_errors
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.names import printable
from toc_cli.io.publish import published
from toc_cli.io.tokens import CODEBOOK_HASH, TokenFile, Tokens
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.options import Progress, silent
from toc_cli.pipeline.outputs import place_for
from toc_cli.pipeline.quantize import new_dataset
from toc_cli.pipeline.reading.chosen import read_book

ROWS = 2**16
"""Tokens decoded at once; fewer where their vectors would not fit into the budget."""


@dataclass(frozen=True)
class DecodeOptions:
    """The choices of `toc decode`; each field is a flag."""

    book: int = 0
    """Id of the codebook in the file."""
    space: Literal["auto", "codebook"] = "auto"
    """codebook: stop before the projection out."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """What the user says of a checkpoint: the arguments of `detect`."""
    max_memory: int = 2**30


def decode_tokens(
    tokens: Path,
    codebook: Path,
    output: Path | None,
    options: DecodeOptions = DecodeOptions(),
    *,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `<stem>.vectors.h5`: per dataset of tokens the vectors (…, W) float32 under its name, and what lay beside them.

    Raises:
        InputError: no tokens, tokens of another codebook (by their stamp), of another shape or outside of its codes.
    """
    folder, elsewhere = place_for(tokens)
    target = output or folder / f"{tokens.name.split('.')[0]}.vectors.h5"
    book = read_book(codebook, options.book, options.reading)
    source = TokenFile(tokens)
    try:
        check_target(target, force=force, inputs=[tokens, codebook])
        source.require(book.hash, book.name)
        for each in source.datasets:
            each.lead(len(book.form.levels), book.form.heads)
        if options.space == "codebook" and book.form.level_out:
            raise UsageError(
                "--space codebook: the levels have their own projections, so no sum of them lies in the codebook space.",
                "Leave --space out.",
            )
        with published(target, force=force) as aside, write_errors(target), NewHdf5(aside) as file:
            file.root.attrs["toc.version"] = __version__
            file.root.attrs[CODEBOOK_HASH] = book.hash
            done = [_write(file, each, book.form, options, progress) for each in source.datasets]
            for name in source.others():
                assert source.file is not None
                source.file.copy(name, file.root, name)
            file.check()
    finally:
        source.close()
    elsewhere = "" if output else elsewhere
    return {"output": str(target), "elsewhere": elsewhere, "codebook": book.name, "datasets": done}


def _write(
    file: NewHdf5, tokens: Tokens, form: Quantiser, options: DecodeOptions, progress: Progress
) -> dict[str, Any]:
    lead = tokens.lead(len(form.levels), form.heads)
    codes = tuple(level.codes.shape[1] for level in form.levels)
    projected = options.space != "codebook" and form.project_out is not None
    width = _decoded(form, torch.zeros(1, len(codes), form.heads, dtype=torch.int64), projected).shape[1]
    out = new_dataset(file.root, tokens.name, (*lead, width), np.dtype(np.float32))
    most = max(1, min(ROWS, options.max_memory // (32 * width)))
    with progress(f"decoding {printable(tokens.name, 60)}", math.prod(lead)) as advance:
        for start, stop, block in tokens.blocks(codes, form.heads, most):
            found = _decoded(form, torch.from_numpy(block.astype(np.int64)), projected)
            out[start:stop] = found.float().numpy().reshape(stop - start, *lead[1:], width)
            file.check()
            advance(len(block))
    return {
        "name": tokens.name,
        "shape": list(out.shape),
        "rows": math.prod(lead),
        "projected": projected or bool(form.level_out),
    }


def _decoded(form: Quantiser, tokens: torch.Tensor, projected: bool) -> torch.Tensor:
    return form.decoded(tokens) if projected else form.vectors(tokens)
