"""Features to tokens, streamed, with the structure of the datasets they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch

from toc_cli import __version__
from toc_cli.errors import UsageError
from toc_cli.io.artefact import RECORD_SCHEMA, write_record
from toc_cli.io.atomic import check_target, write_errors
from toc_cli.io.features import Features, Stream, open_features
from toc_cli.io.features.places import local_file
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.hub import here
from toc_cli.io.names import printable
from toc_cli.io.publish import published
from toc_cli.io.tokens import CODEBOOK_HASH, VECTORS
from toc_cli.ops.quantiser import Quantiser
from toc_cli.ops.usage import collisions, table_usage, usage
from toc_cli.pipeline.counting import tally, zeros
from toc_cli.pipeline.options import Progress, silent
from toc_cli.pipeline.outputs import place_for
from toc_cli.pipeline.provenance import hash_inputs, inputs_of
from toc_cli.pipeline.ranks import Ranks
from toc_cli.pipeline.reading.chosen import choose_codebook
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.source import device_of, form_for


@dataclass(frozen=True)
class QuantizeOptions:
    """The choices of `toc quantize`; each field is a flag."""

    book: int | None = None
    """Id of the codebook in the file; None: the first, saying so where there are others."""
    vectors: bool = False
    modalities: tuple[str, ...] = ()
    channel_axis: int | None = None
    space: Literal["auto", "encoder", "codebook"] = "auto"
    reading: Mapping[str, Any] = field(default_factory=dict)
    """What the user says of a checkpoint: the arguments of `detect`."""
    max_memory: int = 2**30
    device: str = "auto"


def quantize_features(
    features: Sequence[str | Path],
    codebook: Path,
    output: Path | None,
    options: QuantizeOptions,
    *,
    record: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `<stem>.tokens.h5`: a dataset per modality, tokens in the smallest unsigned dtype that fits, and what was counted.

    `record` is where a run record of what was counted goes, for `toc report` and its checks.
    Token axes: the features' own without the channel axis, then levels (if several), then heads (if several).
    """
    source = local_file(str(features[0]).partition("=")[2] or str(features[0]))
    folder, elsewhere = place_for(source)
    stem = re.sub(r"[*?@\[\]]+", "", source.name.split(".")[0]).strip("-_ ") or "features"
    target = output or folder / f"{stem}.tokens.h5"
    opened = open_features(
        features, modalities=options.modalities, channel_axis=options.channel_axis, max_memory=options.max_memory
    )
    check_target(target, force=force, inputs=[codebook, *opened.files])
    if record is not None:
        if record.resolve() == target.resolve():
            raise UsageError(f"{printable(target)} is to hold the tokens.", "Name another file for --record.")
        check_target(record, force=force, inputs=[codebook, *opened.files])
    device = device_of(options.device)
    codebook = here(codebook)
    said = Said(options.reading, options.space, options.channel_axis)
    chosen = choose_codebook(codebook, opened, options.book, said)
    done = []
    hashed = None if record is None else hash_inputs(chosen.checkpoint, opened, Ranks())
    with published(target, force=force) as aside, write_errors(target), NewHdf5(aside) as file:
        file.root.attrs["toc.version"] = __version__
        file.root.attrs[CODEBOOK_HASH] = chosen.hash
        for fit in chosen.fits:
            with progress(f"quantising {printable(fit.dataset.name, 60)}", fit.dataset.rows) as advance:
                side = form_for(chosen.form, fit).to(device)
                done.append(_write(file, opened, fit.dataset, side, options, advance))
                _write_parts(file, fit.dataset)
        for name, labels in opened.labels.items():
            if name not in file.root:
                file.root.create_dataset(name, data=labels.read(), track_times=False)
        chosen.checkpoint.refuse_changes()
        opened.refuse_changes()
    elsewhere = "" if output else elsewhere
    if record is not None and hashed is not None:
        counted = {"codebook": codebook.name, "id": options.book or 0, "evidence": chosen.evidence, "datasets": done}
        inputs = inputs_of([hashed.result()], opened)
        write_record(record, _record(inputs, options, counted))
    return {
        "output": str(target), "elsewhere": elsewhere, "codebook": codebook.name, "id": options.book or 0,
        "evidence": chosen.evidence, "warnings": chosen.warnings, "datasets": done,
    }  # fmt: skip


def _record(
    inputs: Sequence[Mapping[str, Any]], options: QuantizeOptions, counted: Mapping[str, Any]
) -> dict[str, Any]:
    """The run record of what was counted: what decided it, and nothing of how fast."""
    about = {name: value for name, value in asdict(options).items() if name not in ("max_memory", "device", "reading")}
    about |= {name: value for name, value in options.reading.items() if value is not None}
    return {
        "schema_version": RECORD_SCHEMA, "tool": {"name": "toc", "version": __version__}, "inputs": list(inputs),
        "options": about | {"modalities": list(options.modalities)}, "outputs": [], "warnings": [], "codebooks": [],
        "tokens": dict(counted),
    }  # fmt: skip


def _write_parts(file: NewHdf5, stream: Stream) -> None:
    """Where each part of a modality of several begins, and its name: `NAME.starts` (P + 1,) and `NAME.files` (P,)."""
    if len(stream.parts) == 1:
        return
    names = [f"{part.path.name}/{part.key}".rstrip("/").encode("utf-8", "surrogateescape") for part in stream.parts]
    file.root.create_dataset(f"{stream.name}.starts", data=stream.firsts, track_times=False)
    file.root.create_dataset(f"{stream.name}.files", data=names, dtype=h5py.string_dtype(), track_times=False)


def _write(
    file: NewHdf5, features: Features, dataset: Stream, form: Quantiser, options: QuantizeOptions, advance: Any
) -> dict[str, Any]:
    counts = zeros(form)
    most = max(level.codes.shape[1] for level in form.levels)
    axes = tuple(n for n in (len(form.levels), form.heads) if n > 1)
    tokens = new_dataset(file.root, dataset.name, (*dataset.lead_shape, *axes), smallest_unsigned(most))
    tokens.attrs["levels"], tokens.attrs["heads"] = len(form.levels), form.heads
    tokens.attrs["num_codes"] = [level.codes.shape[1] for level in form.levels]
    rows_each = math.prod(dataset.lead_shape[1:])
    out = None
    for first, x in features.blocks(dataset.name, rows_multiple=rows_each):
        found = form.tokens(torch.from_numpy(x))
        tally(counts, found)
        start, stop = first // rows_each, (first + len(x)) // rows_each
        tokens[start:stop] = found.numpy().astype(tokens.dtype).reshape(stop - start, *tokens.shape[1:])
        if options.vectors:
            rows = quantised(form, found)
            if out is None:
                out = new_dataset(
                    file.root, f"{dataset.name}{VECTORS}", (*dataset.lead_shape, rows.shape[1]), np.dtype(np.float32)
                )
            out[start:stop] = rows.numpy().reshape(stop - start, *out.shape[1:])
        file.check()
        advance(len(x))
    return {
        "name": dataset.name,
        "shape": list(tokens.shape),
        "dtype": str(tokens.dtype),
        "rows": dataset.rows,
        "codes": int(sum(table.size for table in counts)),
        "used_codes": int(sum(np.count_nonzero(table) for table in counts)),
        "perplexity": usage(counts)["perplexity"],
        "tables": [
            {"level": level, "head": head, **table_usage(row)}
            for level, table in enumerate(counts)
            for head, row in enumerate(table)
        ],
        "tuples": _tuples(tokens, len(form.levels) * form.heads, options.max_memory),
    }


def _tuples(tokens: h5py.Dataset, columns: int, budget: int) -> list[dict[str, Any]] | None:
    """Collisions of the tokens as ids, by prefix; none for ids of one token, None where they do not fit into the budget."""
    if columns == 1:
        return []
    if tokens.size * (tokens.dtype.itemsize + 8) > budget:
        return None
    return collisions(np.asarray(tokens[...]).reshape(-1, columns))


def new_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """A chunked dataset of about 1 MiB chunks along the first axis, without time stamps."""
    row = max(1, math.prod(shape[1:])) * dtype.itemsize
    chunks = (max(1, min(shape[0], 2**20 // row)), *shape[1:])
    try:
        return file.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, track_times=False)
    except (ValueError, TypeError):
        raise UsageError(
            f"There is no room for {printable(name)} beside the other datasets.", "Name them: NAME=PATH."
        ) from None


def smallest_unsigned(codes: int) -> np.dtype:
    """The smallest unsigned dtype that holds tokens 0 … codes - 1."""
    return np.min_scalar_type(codes - 1)


def quantised(form: Quantiser, tokens: torch.Tensor) -> torch.Tensor:
    """The pruned codebook's own vectors (N, H*D') float32, summed over the levels of a residual chain;
    (N, W) in the outer space where levels have their own projections."""
    if form.level_out:
        return form.vectors(tokens).float()
    parts = [codes.float().flatten(1) for codes in form.kept_codes(tokens)]
    return torch.stack(parts).sum(0) if form.residual else torch.cat(parts, 1)
