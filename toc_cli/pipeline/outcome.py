"""What pruning does to what a model puts out: a sample of files decoded before and after, in every written form.

Legend: F files, S samples kept for the page.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.names import printable
from toc_cli.libraries.media import MediaCodec, media_files, runnable
from toc_cli.media import MediaFile, Shape, read_media
from toc_cli.ops import fidelity
from toc_cli.ops.bootstrap import interval, resample
from toc_cli.pipeline.options import Progress
from toc_cli.pipeline.outputs import Outputs

MOST_FILES = 64
"""Files that are decoded: enough for an interval, spread over the data."""
MOST_SECONDS = 30.0
"""Of each sound."""
SAMPLES = 8
SOUND_SAMPLES = 4
SAMPLE_SIDE = 160
SAMPLE_SECONDS = 2.0
WORST_DB = 120.0
"""An output that did not change at all counts as this, so that means stay finite."""


@dataclass(frozen=True)
class DataSample:
    """The files on which outputs are compared, found before anything is computed."""

    name: str
    kind: str
    files: tuple[MediaFile, ...]
    samples: bool
    """Whether pictures and sound of a few of them go into the record."""


def data_sample(folder: Path, outputs: Outputs) -> DataSample:
    """The files of `outputs.data`, and the refusals that need none of them decoded.

    UsageError where no form is written, the checkpoint is no folder that a library here runs, or its class has no decoder;
    InputError where the data hold nothing that it reads.
    """
    data = outputs.data or ""
    if not outputs.checkpoints:
        raise UsageError(
            "--data compares what written models put out, and none is written.",
            "Add --emit masked, sliced or consumer.",
        )
    if not runnable(folder):
        raise UsageError(
            f"--data runs the model, and {printable(folder)} is none that can be run: it has no config.json, and is no file of"
            " encodec, descript-audio-codec or snac.",
            "Leave out --data, or name the Hugging Face folder.",
        )
    kind, files = media_files(folder, data, MOST_FILES)
    codec = MediaCodec(folder)
    if codec.kind != kind:
        raise InputError(f"{printable(data)} holds {kind} files; a {codec.name} reads {codec.kind}.")
    if codec.road.decode is None:
        raise UsageError(f"{codec.name} of {codec.library} has no decoder to compare outputs by.", "Leave out --data.")
    return DataSample(Path(data.lstrip("@")).name or "data", kind, tuple(files), outputs.samples)


def outcome(folder: Path, forms: Mapping[str, Path], data: DataSample, seed: int, progress: Progress) -> dict[str, Any]:
    """The record's `outcome`: per form the change of the output and the reconstruction before and after, with intervals over files."""
    codec = MediaCodec(folder)
    edited = {mode: MediaCodec(path) for mode, path in forms.items()}
    shape = codec.shape(seconds=MOST_SECONDS if codec.kind == "sound" else None)

    def decoded() -> Iterator[Decoded]:
        with progress("decoding before and after", len(data.files)) as advance:
            for file in data.files:
                advance(1)
                try:
                    given = read_media(file, codec.kind, shape)
                except InputError:
                    continue
                batch = torch.from_numpy(given[None])
                outs = {"before": codec.output(batch)[0].numpy()}
                outs |= {mode: one.output(batch)[0].numpy() for mode, one in edited.items()}
                given = given[tuple(slice(size) for size in outs["before"].shape)]  # a codec may give whole frames only
                yield file.name, _natural(given, codec, shape), {k: _natural(v, codec, shape) for k, v in outs.items()}

    most = (SOUND_SAMPLES if data.kind == "sound" else SAMPLES) if data.samples else 0
    encode = png if codec.kind == "image" else _flac(codec.rate)
    found = compared(decoded(), tuple(forms), _measures(codec), encode, most, seed)
    return {"data": data.name, "kind": data.kind, "model": codec.name, "library": codec.library, **found}


Decoded: TypeAlias = tuple[str, np.ndarray, Mapping[str, np.ndarray]]
"""Name, input, and output by form, `before` among them; pictures (C, H, W) in 0 … 1, sound (C, T)."""


def compared(
    decoded: Iterable[Decoded],
    forms: Sequence[str],
    measures: Mapping[str, Callable[[np.ndarray, np.ndarray], float]],
    encode: Callable[[np.ndarray], str],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """`files`, `before`, `forms` and `samples` of the record's `outcome`. InputError where no file could be read."""
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in ("before", *forms)}
    kept: list[dict[str, Any]] = []
    read = 0
    for name, truth, outs in decoded:
        read += 1
        for side, made in outs.items():
            for measure, compute in measures.items():
                figures[side].setdefault(measure, []).append(_finite(compute(truth, made)))
            if side != "before":
                changed = _finite(fidelity.output_snr_db(outs["before"], made))
                figures[side].setdefault("output_snr_db", []).append(changed)
        if len(kept) < samples:
            kept.append({"name": name, "input": encode(truth), **{side: encode(made) for side, made in outs.items()}})
    if not read:
        raise InputError("None of the files of --data could be read.")
    weights = resample(read, seed)
    return {
        "files": read,
        "before": {name: _mean(values, weights) for name, values in figures["before"].items()},
        "forms": {form: _form(figures["before"], figures[form], weights) for form in forms},
        "samples": kept,
    }


def _measures(codec: MediaCodec) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    if codec.kind == "image":
        return {"psnr_db": fidelity.psnr_db, "ssim": fidelity.ssim}
    return {"si_sdr_db": fidelity.si_sdr_db, "log_mel_db": lambda a, b: fidelity.log_mel_db(a, b, codec.rate)}


def _natural(values: np.ndarray, codec: MediaCodec, shape: Shape) -> np.ndarray:
    """Pictures back in 0 … 1; sound as it is."""
    if codec.kind == "sound":
        return values
    mean, scale = (np.array(part, np.float32).reshape(-1, 1, 1) for part in (shape.mean, shape.scale))
    return (values * scale + mean).clip(0, 1)


def _finite(value: float) -> float:
    return max(-WORST_DB, min(WORST_DB, value)) if not math.isnan(value) else value


def _mean(values: Sequence[float], weights: np.ndarray) -> dict[str, Any]:
    """Mean and interval over files; None where a file has no such figure."""
    array = np.array(values)
    if not np.isfinite(array).all():
        return {"value": None, "ci95": None}
    many = weights @ array / weights.sum(1)
    bounds = interval(many, blocks=len(array))
    return {"value": float(array.mean()), "ci95": list(bounds) if bounds else None}


def _form(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], weights: np.ndarray
) -> dict[str, Any]:
    found = {name: _mean(values, weights) for name, values in after.items()}
    changes = {name: _mean(np.subtract(after[name], before[name]).tolist(), weights) for name in before}
    return {**found, **{f"{name}_change": change for name, change in changes.items()}}


def png(values: np.ndarray) -> str:
    """PNG in base64."""
    from PIL import Image

    pixels = (values * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _flac(rate: int) -> Callable[[np.ndarray], str]:
    def encode(values: np.ndarray) -> str:
        import soundfile

        buffer = io.BytesIO()
        start = values[:1, : int(SAMPLE_SECONDS * rate)].T.clip(-1, 1)
        soundfile.write(buffer, start, rate, format="FLAC", subtype="PCM_16")
        return base64.b64encode(buffer.getvalue()).decode()

    return encode
