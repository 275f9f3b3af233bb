"""Convert features as AVE and VGGSound publish them to the HDF5 layout that `toc train-fcid` and `toc evaluate` read,
and checkpoints of the published code to runs of ours.

AVE: a folder with `visual_feature.h5`, `audio_feature.h5` and the like (any `*_feature.h5` is a modality), optionally
`labels.h5`, and one `*_order.h5` per split with the row numbers of its clips. Each file holds one dataset.

    python examples/convert_published.py ave AVE_FOLDER ave.h5

Zips: one zip per modality with one array per clip: `<clip>.npy`, or `<clip>.pkl` holding a plain array, for which the
reader here can build arrays and nothing else. Splits are text files, one clip name a line; with `name,label` (or a tab)
the label becomes `label_clip`. Clips of different lengths are padded and get `<modality>_length`; a clip that a zip
lacks gets `<modality>_present` 0.

    python examples/convert_published.py zips vgg.h5 --modality video=video.zip --modality audio=audio.zip \\
        --split train=train.txt

Checkpoints: a file that the published FCID (or DCID) code saved becomes a run folder, as if `toc train-fcid` had left it:

    python examples/convert_published.py checkpoint published.pt run
    toc evaluate run ave.h5                              # what its codes can do
    toc train-fcid ave.h5 -o more --init run             # train it further
    toc optimize run/model.safetensors --codebook codebook.coarse.embedding --features coarse.h5 --keep 0.5

with the features of the last line written by `toc evaluate run ave.h5 --level coarse --save-features coarse.h5`.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import torch

from toc_cli.errors import TocError
from toc_cli.fcid.convert import convert_published
from toc_cli.fcid.run_folder import RunFolder
from toc_cli.fcid.train_config import RunConfig, published_training
from toc_cli.io.atomic import atomic_file, check_target
from toc_cli.io.checkpoint import open_checkpoint

NAMES = {"visual": "video"}  # AVE's word for it
ROWS = 16  # clips copied at a time


def only_dataset(path: Path) -> tuple[h5py.File, h5py.Dataset]:
    """The file and the single dataset that it holds."""
    file = h5py.File(path, "r")
    datasets = [item for item in file.values() if isinstance(item, h5py.Dataset)]
    if len(datasets) != 1:
        raise SystemExit(f"{path} holds {len(datasets)} datasets; one was expected.")
    return file, datasets[0]


def convert_ave(folder: Path, target: h5py.File) -> None:
    """Every `*_feature.h5` of the folder, cut into the splits of its `*_order.h5`."""
    features = {path.name.removesuffix("_feature.h5"): path for path in sorted(folder.glob("*_feature.h5"))}
    orders = {path.name.removesuffix("_order.h5"): path for path in sorted(folder.glob("*_order.h5"))}
    if not features or not orders:
        raise SystemExit(f"{folder} needs at least one *_feature.h5 and one *_order.h5.")
    for split, order_path in orders.items():
        file, order = only_dataset(order_path)
        rows = order[:].astype(np.int64).reshape(-1)
        file.close()
        group = target.create_group(split)
        for name, path in features.items():
            copy_rows(path, rows, group, NAMES.get(name, name))
        if (folder / "labels.h5").is_file():
            write_ave_labels(folder / "labels.h5", rows, group)


def copy_rows(path: Path, rows: np.ndarray, group: h5py.Group, name: str) -> None:
    """The clips `rows` of one feature file, a few at a time."""
    file, source = only_dataset(path)
    outside = rows[(rows < 0) | (rows >= len(source))]
    if len(outside):
        raise SystemExit(f"The order names row {outside[0]}, {path} has {len(source)} rows.")
    target = group.create_dataset(
        name, (len(rows), *source.shape[1:]), np.float32, chunks=(min(ROWS, len(rows)), *source.shape[1:])
    )
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        ascending, back = np.unique(part, return_inverse=True)  # h5py reads ascending rows only
        target[start : start + len(part)] = source[ascending][back]
    file.close()


def write_ave_labels(path: Path, rows: np.ndarray, group: h5py.Group) -> None:
    """AVE's labels (clips, seconds, classes), 0/1 with the background as last class, as the class of each second and
    of the clip."""
    file, source = only_dataset(path)
    one_hot = source[:][rows]
    file.close()
    background = one_hot.shape[-1] - 1
    second = one_hot.argmax(axis=-1)
    events = one_hot[..., :background].sum(axis=1)  # (N, classes without background)
    clip = np.where(events.max(axis=-1) > 0, events.argmax(axis=-1), -1)
    for name, values, classes in (("label_second", second, background + 1), ("label_clip", clip, background)):
        group.create_dataset(name, data=values.astype(np.int16)).attrs["classes"] = classes
    group["label_second"].attrs["background"] = background
    group.create_dataset("caption", data=clip.astype(np.int16))  # the published text is the prompt of the clip's class


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled numpy array and refuses every other name, so that nothing in the file can run."""

    ALLOWED = re.compile(
        r"(numpy(\._?core)?(\.multiarray|\.numeric)?)\.(_reconstruct|ndarray|dtype|_frombuffer)|_codecs\.encode"
    )

    def find_class(self, module: str, name: str) -> object:
        if not self.ALLOWED.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a plain array")
        return super().find_class(module, name)


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, or a sentence."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{path} can't be read: {error}.") from error


def read_array(zipped: zipfile.ZipFile, entry: str) -> np.ndarray:
    """One clip's array (steps, ..., channels) out of a zip."""
    try:
        data = io.BytesIO(zipped.read(entry))
        array = np.load(data, allow_pickle=False) if entry.endswith(".npy") else ArrayUnpickler(data).load()
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise SystemExit(f"{entry!r} of {zipped.filename} can't be read: {error}.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim < 2:
        raise SystemExit(f"{entry!r} of {zipped.filename} is no array of numbers with two or more axes.")
    return array.astype(np.float32)


def read_split(path: Path) -> Iterator[tuple[str, str | None]]:
    """(clip, label or None) of each line of a split file."""
    for line in path.read_text().splitlines():
        if line.strip():
            clip, *label = re.split(r"[\t,]", line.strip(), maxsplit=1)
            yield clip, label[0].strip() if label else None


def convert_zips(zips: dict[str, Path], splits: dict[str, Path], target: h5py.File) -> None:
    """One group per split file, one padded dataset per zip; the classes are the labels of all splits, sorted."""
    clips = {split: list(read_split(path)) for split, path in splits.items()}
    classes = sorted({label for rows in clips.values() for _, label in rows if label is not None})
    for split, rows in clips.items():
        group = target.create_group(split)
        for modality, path in zips.items():
            with open_zip(path) as zipped:
                write_zip(zipped, [clip for clip, _ in rows], group, modality)
        if classes:
            labels = [classes.index(label) if label is not None else -1 for _, label in rows]
            group["label_clip"] = np.array(labels, np.int32)
            group["label_clip"].attrs["classes"] = len(classes)
            group["label_clip"].attrs["names"] = classes
            group["caption"] = group["label_clip"][:]


def write_zip(zipped: zipfile.ZipFile, clips: list[str], group: h5py.Group, modality: str) -> None:
    """The clips of one zip, padded to the longest: headers of all first, so that one array at a time is held."""
    entries = {PurePosixPath(name).stem: name for name in zipped.namelist() if name.endswith((".npy", ".pkl"))}
    here = [clip for clip in clips if clip in entries]
    if not here:
        raise SystemExit(f"{zipped.filename} holds none of the clips of split {group.name!r}.")
    shapes = {clip: read_array(zipped, entries[clip]).shape for clip in here}
    inner = {shape[1:] for shape in shapes.values()}
    if len(inner) != 1:
        raise SystemExit(f"The clips of {zipped.filename} have different shapes after the first axis: {sorted(inner)}.")
    longest = max(shape[0] for shape in shapes.values())
    shape = (len(clips), longest, *inner.pop())
    dataset = group.create_dataset(modality, shape, np.float32, chunks=(min(ROWS, len(clips)), *shape[1:]))
    for row, clip in enumerate(clips):
        if clip in entries:
            array = read_array(zipped, entries[clip])
            dataset[row, : len(array)] = array
    group[f"{modality}_length"] = np.array([shapes[clip][0] if clip in shapes else 0 for clip in clips])
    group[f"{modality}_present"] = np.array([clip in shapes for clip in clips], np.int8)


def convert_checkpoint(path: Path, run: Path, length: int, size: tuple[int, int], codebook: str) -> None:
    """The run folder of a published checkpoint; what the file lacks (an encoder alone) keeps its initial weights."""
    checkpoint = open_checkpoint(path)
    state = {".".join((*info.section, info.name)): checkpoint.get(info.key) for info in checkpoint.infos.values()}
    found = convert_published(state, length=length, spatial=size, codebook=codebook)
    double = next(found.model.parameters()).dtype == torch.float64
    train = replace(published_training(), precision="float64" if double else "float32")
    folder = RunFolder(run)
    folder.create(settings := RunConfig(found.model.config, train).table())
    folder.write_model(found.model, settings)
    for what, names in (("not in the checkpoint, so as initialised", found.fresh), ("not needed", found.unused)):
        if names:
            print(f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}.")


def map_size(text: str) -> tuple[int, int]:
    """`7x7` as (7, 7)."""
    height, width = text.split("x")
    return int(height), int(width)


def pairs(values: list[str]) -> dict[str, Path]:
    """`name=path` arguments as a dictionary."""
    for value in values:
        if "=" not in value:
            raise SystemExit(f"{value!r} should be NAME=PATH.")
    return {name: Path(path) for name, path in (value.split("=", 1) for value in values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="layout", required=True)
    ave = commands.add_parser("ave", help="*_feature.h5 and *_order.h5")
    ave.add_argument("folder", type=Path)
    ave.add_argument("output", type=Path)
    zips = commands.add_parser("zips", help="one zip of arrays per modality")
    zips.add_argument("output", type=Path)
    zips.add_argument("--modality", action="append", required=True, metavar="NAME=ZIP")
    zips.add_argument("--split", action="append", required=True, metavar="NAME=LIST")
    checkpoint = commands.add_parser("checkpoint", help="a checkpoint of the published code, as a run")
    checkpoint.add_argument("checkpoint", type=Path)
    checkpoint.add_argument("output", type=Path, help="folder of the run")
    checkpoint.add_argument("--length", type=int, default=10, help="seconds of a clip (10)")
    checkpoint.add_argument("--map", type=map_size, default=(7, 7), help="height x width of the video maps (7x7)")
    checkpoint.add_argument("--codebook", default="", help="prefix of the codebook, where the encoder holds several")
    arguments = parser.parse_args()
    try:
        convert(arguments)
    except TocError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"Wrote {arguments.output}.")


def convert(arguments: argparse.Namespace) -> None:
    if arguments.layout == "checkpoint":
        options = arguments.length, arguments.map, arguments.codebook
        convert_checkpoint(arguments.checkpoint, arguments.output, *options)
        return
    check_target(arguments.output)
    with atomic_file(arguments.output) as temporary, h5py.File(temporary, "w") as target:
        if arguments.layout == "ave":
            convert_ave(arguments.folder, target)
        else:
            convert_zips(pairs(arguments.modality), pairs(arguments.split), target)


if __name__ == "__main__":
    main()
