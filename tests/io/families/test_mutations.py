"""One or two tensors of a valid checkpoint altered or left out: read as before, or refused in a sentence, never an internal error."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from conftest import fixture_entries, shared_folder
from memory_checkpoint import MemoryCheckpoint
from published_layouts import PUBLISHED
from toc_cli.errors import TocError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect, emit
from toc_cli.io.families.base import MODES, Codebook
from toc_cli.pipeline.source import Source, sources

SEED = int(os.environ.get("TOC_MUTATION_SEED", "0"))
COUNT = int(os.environ.get("TOC_MUTATIONS", "200"))
FOLDER = shared_folder("TOC_FIXTURES", "fixtures")


def altered(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The tensor with another shape or type."""
    shape = list(tensor.shape)
    axis = rng.randrange(len(shape)) if shape else 0
    kind = rng.choice(
        ["cut", "grown", "empty", "flat", "one", "scalar", "turned", "lead", "tail", "whole", "half", "merged"]
    )
    if kind == "scalar" or not shape:
        return torch.zeros(()) if shape else torch.zeros(rng.randint(1, 3))
    if kind in ("cut", "grown", "empty", "one"):
        length = {"cut": max(1, shape[axis] - 1), "grown": shape[axis] + 1, "empty": 0, "one": 1}[kind]
        shape[axis] = length
        return torch.rand(shape).to(tensor.dtype)
    if kind == "flat":
        return tensor.flatten()
    if kind == "turned":
        return tensor.movedim(axis, 0 if axis else -1).contiguous()
    if kind == "merged":
        return tensor.reshape(shape[0], -1) if tensor.numel() else tensor
    if kind in ("lead", "tail"):
        return tensor.unsqueeze(0 if kind == "lead" else -1)
    return tensor.long() if kind == "whole" else tensor.half()


def mutated(ckpt: MemoryCheckpoint, rng: random.Random) -> tuple[MemoryCheckpoint, str]:
    """A copy with one or two mutations, and what they were."""
    tensors, told = dict(ckpt.tensors), []
    near = [
        key
        for key in tensors
        if any(word in key for word in ("quant", "code", "embed", "proj", "conv", "weight", "scale"))
    ]
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(near if near and rng.random() < 0.8 else list(tensors)) if tensors else ""
        if key not in tensors:
            continue
        if rng.random() < 0.25:
            del tensors[key]
            told.append(f"{key} left out")
        else:
            tensors[key] = altered(tensors[key], rng)
            told.append(f"{key} {tuple(ckpt.tensors[key].shape)} -> {tuple(tensors[key].shape)} {tensors[key].dtype}")
    made = MemoryCheckpoint(tensors, ckpt.config)
    made.container, made.values = ckpt.container, ckpt.values
    return made, "; ".join(told)


def in_memory(path: object) -> MemoryCheckpoint | None:
    """A small fixture in memory; None for files that are refused."""
    try:
        ckpt = open_checkpoint(str(path))
        made = MemoryCheckpoint({key: ckpt.get(key) for key in ckpt.infos}, ckpt.config)
    except (TocError, OSError):
        return None
    made.container, made.values = ckpt.container, ckpt.values
    return made


@pytest.fixture(scope="module")
def originals() -> list[MemoryCheckpoint]:
    found = [MemoryCheckpoint(layout.tensors(), layout.config, **layout.values) for layout in PUBLISHED]
    for ckpt, layout in zip(found, PUBLISHED, strict=True):
        ckpt.container = layout.container
    entries = fixture_entries(FOLDER)
    read = (
        [in_memory(FOLDER / entry["path"]) for entry in entries if entry["expect"].startswith("ok")] if FOLDER else []
    )
    return found + [ckpt for ckpt in read if ckpt is not None]


def whole_road(ckpt: MemoryCheckpoint) -> None:
    """What inspect, optimize and every emit mode do with a checkpoint."""
    books = detect(ckpt, assume=True)
    offered = [emit.supported(ckpt, book) for book in books]
    for source, reasons in zip(sources(ckpt, books), offered, strict=True):
        tokens(source)
        for mode in MODES:
            if not reasons[mode]:
                edited(ckpt, source.book, mode)


def tokens(source: Source) -> None:
    x = np.random.default_rng(0).standard_normal((5, source.full.width)).astype(np.float32)
    found = source.full.tokens(x)
    source.full.vectors(found)


def edited(ckpt: MemoryCheckpoint, book: Codebook, mode: emit.Mode) -> None:
    size = max(1, (book.dim + 1) // 2)
    if emit.supported(ckpt, book, size)[mode]:
        return
    rows = book.levels if book.own_dims_per_level else 1
    kept = torch.arange(size).expand(rows, book.heads, size).clone()
    fill = torch.zeros(book.levels, book.heads, book.dim).double()
    after = ckpt.edited(emit.edits(ckpt, book, mode, kept=kept, fill=fill))
    after.container, after.values = ckpt.container, ckpt.values
    for other in detect(after, assume=True):
        other.parts(after)


def mutations(originals: list[MemoryCheckpoint]) -> Iterator[tuple[MemoryCheckpoint, str]]:
    rng = random.Random(SEED)
    for n in range(COUNT):
        yield mutated(originals[n % len(originals)], rng)


def test_no_mutation_is_an_internal_error(originals: list[MemoryCheckpoint]) -> None:
    torch.manual_seed(SEED)
    broken = []
    for number, (ckpt, told) in enumerate(mutations(originals)):
        try:
            whole_road(ckpt)
        except TocError as error:
            if error.exit_code not in (2, 3):
                broken.append(f"{number}: {told}: {error}")
        except Exception as error:  # every other error is the fault that is looked for
            import traceback

            place = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in place if "toc_cli" in frame.filename]
            last = ours[-1] if ours else place[-1]
            where = f"{last.filename.split('toc_cli/')[-1]}:{last.lineno} {last.name}"
            broken.append(f"{where} · {type(error).__name__}: {error} · {number}: {told}")
    assert not broken, "\n".join(sorted(broken))
