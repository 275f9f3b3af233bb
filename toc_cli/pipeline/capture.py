"""`toc capture` as a function: files of a folder through a codec's own encoder, to features with the tokens that it chose.

Legend: F files, N rows over all files, W width, L levels, H heads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from toc_cli import __version__
from toc_cli.errors import InputError, UsageError
from toc_cli.io.atomic import atomic_file, check_target, sha256
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.names import printable
from toc_cli.io.stamps import Stamps
from toc_cli.libraries.media import MediaCodec, media_files, runnable
from toc_cli.media import MediaFile, Shape, holds_media, read_media
from toc_cli.media.listing import natural
from toc_cli.pipeline.options import Progress, one_of, silent

NAME = "features"
PART_FILES = 64
"""Files after which what was done is safe: an interrupted capture goes on from there."""
CHUNK_BYTES = 1 << 20
FROM_A_SCRIPT = "From a script of yours: toc_cli.capture(model.quantizer, 'feats.h5')."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class CaptureOptions:
    """The choices of `toc capture`; each field is a flag."""

    batch: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    """What the model computes in; features are stored in float32."""
    limit: int | None = None
    resize: int | None = None
    crop: int | None = None
    seconds: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        one_of("--dtype", self.dtype, tuple(DTYPES))
        for flag, value in (
            ("--batch", self.batch),
            ("--limit", self.limit),
            ("--resize", self.resize),
            ("--crop", self.crop),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} is no count.", "Use a whole number from 1.")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds {self.seconds} is no length.", "Use a number of seconds above 0.")


@dataclass
class Captured:
    """What a capture did."""

    output: Path
    model: str
    library: str
    files: int = 0
    rows: int = 0
    width: int = 0
    tokens: tuple[int, ...] = ()
    """Axes of the tokens behind the rows."""
    classes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of every file that could not be read."""
    reused: bool = False
    """Whether the output was there already, with the same stamps."""

    def as_record(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **asdict(self),
            "output": str(self.output),
            "tokens": list(self.tokens),
            "skipped": [list(s) for s in self.skipped],
        }


def capture_media(
    model: str | Path,
    data: str | Path,
    output: Path,
    options: CaptureOptions = CaptureOptions(),
    *,
    force: bool = False,
    reuse: bool = False,
    write: bool = True,
    progress: Progress = silent,
) -> Captured:
    """Run every picture or sound of `data` (files, or the items of a file of arrays) through the encoder of the codec `model`,
    and write what reaches its quantiser.

    Writes `features` (N, W) float32, `features.tokens` (N, L) or (N, L, H), the model's own choice, `features.starts` (F + 1,)
    with the first row of every file, `features.files` (F,), and `label` (N,) where folders name classes; `features` is stamped
    (`io.stamps`). Files that cannot be read are skipped and listed; with `strict` the first one stops the run.
    An interrupted run goes on where it stopped. With `reuse` an output of the same stamps and files is taken as it is; without
    `write` nothing else will do.

    Raises:
        UsageError: the class of the model is unknown here, its library is missing, or `output` exists (or does not, without `write`).
        InputError: no usable file, a model that does not load, or (`strict`) a file that cannot be read.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{printable(folder)} is no model folder: it has no config.json.", FROM_A_SCRIPT)
    weights = open_checkpoint(folder)
    if not runnable(folder):
        raise InputError(
            f"{printable(folder)} is no model that toc capture runs: it has no config.json, and is no file of encodec,"
            " descript-audio-codec or snac.",
            FROM_A_SCRIPT,
        )
    kind, files = media_files(folder, data, options.limit)
    identity = _identity(weights.files, files, options)
    if reuse and output.exists():
        if found := _same(output, identity):
            return found
        if write and not force:
            raise UsageError(
                f"{printable(output)} exists and is not of this model and these files.", "--force captures again."
            )
    if not write:
        raise UsageError(
            f"Nothing is written here, and {printable(data)} must be captured first.",
            f"toc capture {printable(folder)} {printable(data)} -o {printable(output)}",
        )
    check_target(output, force=force or reuse, inputs=weights.files)
    codec = MediaCodec(folder, device=options.device, dtype=DTYPES[options.dtype])
    if codec.kind != kind:
        raise InputError(f"{printable(data)} holds {_plural(kind)}; a {codec.name} reads {_plural(codec.kind)}.")
    shape = codec.shape(options.resize, options.crop, options.seconds)
    done = Captured(output, codec.name, codec.library)
    parts = _Parts(output, identity)
    with progress(f"capturing {_plural(kind)}", len(files)) as advance:
        for start in range(0, len(files), PART_FILES):
            some = files[start : start + PART_FILES]
            path = parts.path(start)
            if path.exists():
                advance(len(some))
            else:
                _write_part(path, codec, shape, some, options, advance)
            done.skipped += _skipped(path)
    _join(parts, output, codec, done, files, identity, Stamps(
        codec.name, codec.road.quantiser, "codebook" if kind == "image" else "encoder", codec.library,
        {file.name: sha256(file) for file in weights.files if file.suffix != ".json"},
    ))  # fmt: skip
    parts.remove()
    return done


def capture_features(
    checkpoint: Path,
    features: Sequence[str],
    stem: Path,
    options: CaptureOptions = CaptureOptions(),
    *,
    write: bool = True,
    progress: Progress = silent,
) -> tuple[list[str], list[Captured]]:
    """The `[NAME=]PATH` of `--features` with every folder or glob of pictures or sound captured first, into `<stem>.features.h5`
    (`<stem>.NAME.features.h5` for a named one), which is taken as it is where its stamps and files are the same."""
    given, done = [], []
    for entry in features:
        name, equals, path = entry.partition("=") if "=" in entry and not Path(entry).exists() else ("", "", entry)
        if not holds_media(path):
            given.append(entry)
            continue
        output = stem.with_name(f"{stem.name}.{name}.features.h5" if name else f"{stem.name}.features.h5")
        done.append(capture_media(checkpoint, path, output, options, reuse=True, write=write, progress=progress))
        given.append(f"{name}{equals}{output}")
    return given, done


class _Parts:
    """The folder beside the output that holds what an interrupted capture had done."""

    def __init__(self, output: Path, identity: str) -> None:
        self.folder = output.with_name(f".{output.name}.parts")
        told = self.folder / "identity"
        if self.folder.is_dir() and (not told.is_file() or told.read_text(encoding="utf-8") != identity):
            shutil.rmtree(self.folder)  # of another model, other files or other options
        self.folder.mkdir(exist_ok=True)
        told.write_text(identity, encoding="utf-8")

    def path(self, start: int) -> Path:
        """The part that begins with that file."""
        return self.folder / f"{start:09d}.h5"

    def all(self) -> list[Path]:
        """Every part, in order."""
        return sorted(self.folder.glob("*.h5"))

    def remove(self) -> None:
        """The output stands: the parts are no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _identity(weights: Sequence[Path], files: Sequence[MediaFile], options: CaptureOptions) -> str:
    """A hash of what decides the features: the weights' and the files' names, sizes and times, and the options."""
    digest = hashlib.sha256(
        f"{__version__} {json.dumps(asdict(options) | {'batch': 0, 'device': ''}, sort_keys=True)}".encode()
    )
    for path, name in [*((p, p.name) for p in weights), *((f.path, f.name) for f in files)]:
        known = path.stat()
        digest.update(f"\n{name}\0{known.st_size} {known.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _same(output: Path, identity: str) -> Captured | None:
    """What stands at `output`, where it is a capture of this identity."""
    try:
        with h5py.File(output, "r") as file:
            dataset = file[NAME]
            if dataset.attrs.get("toc.identity") != identity:
                return None
            stamps = Stamps.read(dataset.attrs, NAME)
            return Captured(
                output, stamps.model, stamps.library, len(file[f"{NAME}.files"]), dataset.shape[0], dataset.shape[1],
                tuple(file[f"{NAME}.tokens"].shape[1:]), len(file["label"].attrs["names"]) if "label" in file else 0,
                [(name, reason) for name, reason in json.loads(dataset.attrs.get("toc.skipped", "[]"))], True,
            )  # fmt: skip
    except (OSError, KeyError, ValueError, TypeError):
        return None


def _write_part(
    path: Path,
    codec: MediaCodec,
    shape: Shape,
    files: Sequence[MediaFile],
    options: CaptureOptions,
    advance: Callable[[int], None],
) -> None:
    rows: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    counts: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    for group, arrays in _batches(files, codec, shape, options, bad):
        observed = codec.observe(torch.from_numpy(np.stack(arrays)))
        for at, file in enumerate(group):
            rows.append(observed.rows[at].numpy())
            tokens.append(observed.tokens[at].numpy())
            counts.append((files.index(file), len(rows[-1])))
        advance(len(group))
    advance(len(bad))
    with atomic_file(path) as temporary, NewHdf5(temporary) as out:
        out.root.attrs["skipped"] = json.dumps(bad)
        out.root["at"] = np.array([at for at, _ in counts], np.int64)
        out.root["counts"] = np.array([count for _, count in counts], np.int64)
        if rows:
            out.root["rows"], out.root["tokens"] = np.concatenate(rows), np.concatenate(tokens)


def _batches(
    files: Sequence[MediaFile], codec: MediaCodec, shape: Shape, options: CaptureOptions, bad: list[tuple[str, str]]
) -> Iterator[tuple[list[MediaFile], list[np.ndarray]]]:
    """Neighbours of one shape together, up to the batch."""
    held: list[MediaFile] = []
    arrays: list[np.ndarray] = []
    for file in files:
        try:
            array = read_media(file, codec.kind, shape)
        except InputError as error:
            if options.strict:
                raise
            bad.append((file.name, error.what))
            continue
        if held and (len(held) == options.batch or arrays[0].shape != array.shape):
            yield held, arrays
            held, arrays = [], []
        held.append(file)
        arrays.append(array)
    if held:
        yield held, arrays


def _skipped(path: Path) -> list[tuple[str, str]]:
    with h5py.File(path, "r") as part:
        return [(name, reason) for name, reason in json.loads(part.attrs["skipped"])]


def _join(
    parts: _Parts,
    output: Path,
    codec: MediaCodec,
    done: Captured,
    files: Sequence[MediaFile],
    identity: str,
    stamps: Stamps,
) -> None:
    """All parts as one file, block by block."""
    every = parts.all()
    starts, used = [0], []
    for number, path in enumerate(every):
        with h5py.File(path, "r") as part:
            for at, count in zip(part["at"][:], part["counts"][:], strict=True):
                used.append(files[number * PART_FILES + int(at)])
                starts.append(starts[-1] + int(count))
            if "rows" in part:
                done.width, done.tokens = part["rows"].shape[1], tuple(part["tokens"].shape[1:])
    done.files, done.rows = len(used), starts[-1]
    if not used:
        first = f" The first: {done.skipped[0][1]}" if done.skipped else ""
        parts.remove()
        raise InputError(f"None of {len(files):,} files could be read.{first}", "No features are written.")
    with atomic_file(output) as temporary, NewHdf5(temporary) as out:
        chunk = max(1, CHUNK_BYTES // (4 * done.width))
        rows = out.root.create_dataset(
            NAME, (done.rows, done.width), np.float32, chunks=(min(chunk, done.rows), done.width), track_times=False
        )
        tokens = out.root.create_dataset(f"{NAME}.tokens", (done.rows, *done.tokens), np.int32, track_times=False)
        stamps.write(rows.attrs)
        rows.attrs["toc.identity"], rows.attrs["toc.skipped"] = identity, json.dumps(done.skipped)
        at = 0
        for path in every:
            with h5py.File(path, "r") as part:
                if "rows" in part:
                    stop = at + len(part["rows"])
                    rows[at:stop], tokens[at:stop] = part["rows"][:], part["tokens"][:]
                    at = stop
            out.check()
        out.root.create_dataset(f"{NAME}.starts", data=np.array(starts, np.int64), track_times=False)
        names = [file.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for file in used]
        out.root.create_dataset(f"{NAME}.files", data=names, dtype=h5py.string_dtype(), track_times=False)
        classes = sorted({file.label for file in used if file.label is not None}, key=natural)
        if len(classes) > 1:
            per_file = np.array([classes.index(file.label) for file in used if file.label is not None], np.int32)
            label = out.root.create_dataset("label", data=np.repeat(per_file, np.diff(starts)), track_times=False)
            label.attrs["names"] = classes
            done.classes = len(classes)


def _plural(kind: str) -> str:
    return {"image": "pictures", "sound": "sound"}[kind]
