"""Flags that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from toc_cli.commands.places import features, place

Checkpoint = Annotated[
    Path,
    typer.Argument(
        callback=place,
        metavar="CHECKPOINT",
        help="A file (safetensors, torch, numpy, HDF5, joblib, GGUF, ONNX, faiss, …), a model's folder, or its hub name org/name.",
    ),
]
Features = Annotated[
    list[str],
    typer.Option(
        callback=features,
        help="A file, folder, 'glob' or @list of files, or hf://org/name/FILE; repeatable; name=path names a modality.",
        metavar="[NAME=]PATH",
    ),
]
Codebook = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="The tensor to take as the codebook, or a pattern: 'layers.*.codebook'; repeatable."
    ),
]
Layout = Annotated[
    str | None, typer.Option(metavar="AXES", help="Axis order of --codebook: KD, DK, HKD, KHD, LKD, '(HK)D,H=2', ….")
]
Metric = Annotated[str | None, typer.Option(help="euclidean, cosine or dot, where the file cannot say.")]
Rows = Annotated[
    Literal["unit", "as-is"] | None,
    typer.Option(help="unit: features (under cosine the codes passed on) have length one; as-is: they have not."),
]
Table = Annotated[
    Literal["raw", "mean"] | None, typer.Option(help="The table as stored, or the mean of its features: sums / counts.")
]
Scale = Annotated[
    str | None,
    typer.Option(metavar="KEY|none", help="Scale of a table stored as float8 or int8; none: take it as stored."),
]
Stack = Annotated[
    Literal["residual", "product", "independent"] | None,
    typer.Option(
        help="How numbered tables belong together, where the file cannot say: residual, product or independent."
    ),
]
Assume = Annotated[
    bool, typer.Option("--assume", help="Take a reading that is only assumed for true: offers the edited checkpoints.")
]
Modality = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Use only these datasets; repeatable.")]
ChannelAxis = Annotated[
    int | None, typer.Option(help="Axis of the feature dimensions: 1 for (N, C, H, W). Default: the last.")
]
Space = Annotated[
    Literal["auto", "encoder", "codebook"],
    typer.Option(help="Features stand before the checkpoint's projection (encoder) or past it (codebook)."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="ROWS", help="Take so many rows of each modality, spread over its clips.")
]
MaxMemory = Annotated[str, typer.Option(metavar="SIZE", help="Bytes for blocks of features.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where the nearest codes are searched.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of resampling and of the random baselines.")]
Force = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but warnings and errors.")]
