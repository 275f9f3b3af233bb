"""Old tokens under the ids of a codebook with fewer codes, streamed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toc_cli import __version__
from toc_cli.errors import InputError, UsageError
from toc_cli.io.artefact import Artefact, read_artefact
from toc_cli.io.atomic import check_target, sha256, write_errors
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.names import printable
from toc_cli.io.publish import published
from toc_cli.io.tokens import CODEBOOK_HASH, TokenFile, Tokens, joined_hash
from toc_cli.pipeline.options import Progress, silent
from toc_cli.pipeline.outputs import place_for
from toc_cli.pipeline.quantize import new_dataset, smallest_unsigned

TOKENS = 2**19
"""Tokens rewritten at once."""


def remap_tokens(
    tokens: Path,
    codebook: Path,
    output: Path | None = None,
    *,
    book: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `<stem>.remapped.h5`: the tokens of the unpruned codebook as those of an artefact that `--codes` made, and what lay
    beside them.

    Raises:
        UsageError: the artefact has all of its codes.
        InputError: tokens that another codebook chose (by their stamp), that are outside of the map, or whose code has vanished.
    """
    artefact = read_artefact(codebook)
    if not 0 <= book < len(artefact.codebooks):
        raise UsageError(
            f"--id {book}: the artefact holds codebooks 0 to {len(artefact.codebooks) - 1}.", "toc inspect lists them."
        )
    about = artefact.codebooks[book]
    maps = _maps(artefact, book, codebook)
    try:
        facts: dict[str, Any] = {"kept_dim": int(about["kept_dim"]), "dim": int(about["dim"])}
        facts["kept_least"] = min(map(int, about.get("kept_dims") or [about["kept_dim"]]))
        facts |= {"merged": int(about["codes"]["merged"]), "mapped_share": float(about["codes"]["mapped_share"])}
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{printable(codebook.name)} does not say what was cut.", "Write it again with toc optimize."
        ) from None
    folder, elsewhere = place_for(tokens)
    target = output or folder / f"{tokens.name.split('.')[0]}.remapped.h5"
    source = TokenFile(tokens)
    try:
        check_target(target, force=force, inputs=[tokens, codebook])
        source.require(_origin(artefact), f"the one that {codebook.name} was made of")
        for each in source.datasets:
            each.lead(len(maps), maps[0].shape[0])
        with published(target, force=force) as aside, write_errors(target), NewHdf5(aside) as file:
            file.root.attrs["toc.version"] = __version__
            file.root.attrs[CODEBOOK_HASH] = sha256(codebook)
            done = [_write(file, each, maps, progress) for each in source.datasets]
            for name in source.others():
                assert source.file is not None
                source.file.copy(name, file.root, name)
            file.check()
    finally:
        source.close()
    return {
        "output": str(target),
        "elsewhere": "" if output else elsewhere,
        "codebook": codebook.name,
        **facts,
        "datasets": done,
    }


def _maps(artefact: Artefact, book: int, path: Path) -> list[torch.Tensor]:
    """Per level (H, K_l) old id to new id."""
    levels = artefact.codebooks[book].get("levels", 0)
    stacked = artefact.tensors.get(f"{book}.code_map")
    found = (
        list(stacked)
        if stacked is not None
        else [artefact.tensors.get(f"{book}.code_map.{level}") for level in range(levels)]
    )
    maps = [one for one in found if one is not None]
    if not maps or "codes" not in artefact.codebooks[book]:
        raise UsageError(
            f"{printable(path.name)} has all of its codes: there is nothing to map.",
            "toc optimize --codes makes a codebook with fewer.",
        )
    if len(maps) != levels or any(one.dtype != torch.int64 or one.dim() != 2 for one in maps):
        raise InputError(f"The code map of {printable(path.name)} is damaged.", "Write it again with toc optimize.")
    return maps


def _origin(artefact: Artefact) -> str:
    """The hash of the checkpoint that the artefact was made of, "" where it does not say."""
    try:
        inputs: list[Mapping[str, Any]] = json.loads(artefact.metadata["toc.inputs"])
        return joined_hash([entry["sha256"] for entry in inputs if entry["role"] == "checkpoint"])
    except (KeyError, ValueError, TypeError):
        return ""


def _write(file: NewHdf5, tokens: Tokens, maps: list[torch.Tensor], progress: Progress) -> dict[str, Any]:
    codes, heads = tuple(one.shape[1] for one in maps), maps[0].shape[0]
    lead = tokens.lead(len(maps), heads)
    most = max(2, 1 + max(int(one.max()) for one in maps))
    out = new_dataset(file.root, tokens.name, tokens.shape, smallest_unsigned(most))
    out.attrs["levels"], out.attrs["heads"] = len(maps), heads
    out.attrs["num_codes"] = [1 + int(one.max()) for one in maps]
    vanish = any(int(one.min()) < 0 for one in maps)
    tables = [one.numpy().astype(np.int32 if vanish else out.dtype) for one in maps]
    changed = 0
    with progress(f"rewriting {printable(tokens.name, 60)}", math.prod(lead)) as advance:
        for start, stop, block in tokens.blocks(codes, heads, max(1, TOKENS // (len(maps) * heads))):
            new = np.empty(block.shape, tables[0].dtype)
            for level, table in enumerate(tables):
                for head in range(heads):
                    np.take(table[head], block[:, level, head], out=new[:, level, head], mode="clip")  # all are codes
            if vanish and new.min() < 0:
                row, level, head = (int(axis[0]) for axis in (new < 0).nonzero())
                raise InputError(
                    f"{printable(tokens.name)}: token {block[row, level, head]} of level {level} stands for a code that has vanished "
                    f"(first in row {start * math.prod(lead[1:]) + row}).",
                    "Run toc optimize --codes on features that use it, or quantise these rows anew.",
                )
            other = new != block
            changed += np.count_nonzero(other if other[0].size == 1 else other.any((1, 2)))
            out[start:stop] = new.astype(out.dtype, copy=False).reshape(stop - start, *tokens.shape[1:])
            file.check()
            advance(len(block))
    about = {"name": tokens.name, "shape": list(out.shape), "dtype": str(out.dtype)}
    return {**about, "rows": math.prod(lead), "rows_with_new_ids": changed}
