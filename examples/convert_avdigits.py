"""Convert the AV-Digits prototype (one int8 file) to the HDF5 layout that `toc train-fcid` and `toc evaluate` read.

    python examples/convert_avdigits.py prototype.h5 avdigits.h5

The features stay int8 with the attribute `scale` (value = stored / 20). Captions become word vectors, (N, 10, 64), with
`text_length`. Labels are written for every split but `train`, whose clips are unlabelled by design:

    label_clip              (N,)     digit of a one-event clip, -1 where there are two events
    label_attribute         (N,)     digit + 10 * near of a one-event clip: what the text does not say
    label_second.video      (N, 10)  digit of each second as seen, 10 is background; label_second.audio as heard
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import numpy as np

from toc_cli.io.atomic import atomic_file, check_target

SCALE = 20.0  # the prototype stores int8 z-scores x 20
DIGITS = [str(digit) for digit in range(10)]
BACKGROUND = 10  # the label of a second without a digit
NO_EVENT = 10  # the second event of a one-event clip


def write_labels(source: h5py.Group, target: h5py.Group) -> None:
    """The three tasks of one split, from the labels per second and the list of events."""
    events, near = source["events"][:].astype(np.int64), source["near_v"][:].astype(np.int64)
    single = events[:, 1] == NO_EVENT
    happening = source["lab_v"][:] != BACKGROUND  # (N, T)
    is_near = (near * happening).sum(axis=1) * 2 > happening.sum(axis=1)  # majority of the event's seconds
    clip = np.where(single, events[:, 0], -1)
    attribute = np.where(single, events[:, 0] + 10 * is_near, -1)
    far_near = [f"{digit} {place}" for place in ("far", "near") for digit in DIGITS]
    for name, values, names in (("label_clip", clip, DIGITS), ("label_attribute", attribute, far_near)):
        write(target, name, values.astype(np.int8), classes=len(names), names=names)
    for modality, column in (("video", "lab_v"), ("audio", "lab_a")):
        names = [*DIGITS, "background"]
        write(target, f"label_second.{modality}", source[column][:], classes=11, names=names, background=BACKGROUND)


def write(group: h5py.Group, name: str, values: np.ndarray, **attributes: object) -> None:
    """One compressed dataset with its attributes; chunks of 32 clips for features."""
    chunks = (min(32, len(values)), *values.shape[1:]) if values.ndim > 2 else None
    dataset = group.create_dataset(name, data=values, compression="gzip", shuffle=True, chunks=chunks)
    for key, value in attributes.items():
        dataset.attrs[key] = value


def convert(source: h5py.File, target: h5py.File) -> None:
    words = source["word_emb"][:].astype(np.float32)  # (words, 64); word 0 is the padding
    for split in (name for name in source if isinstance(source[name], h5py.Group)):
        clips, group = source[split], target.create_group(split)
        for modality in ("video", "audio"):
            write(group, modality, clips[modality][:], scale=SCALE)
        tokens = clips["tok"][:]
        write(group, "text", words[tokens])
        group["text_length"] = (tokens > 0).sum(axis=1)
        group["caption"] = clips["caption"][:]
        if split != "train":
            write_labels(clips, group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prototype", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    check_target(arguments.output)
    with (
        atomic_file(arguments.output) as temporary,
        h5py.File(arguments.prototype, "r") as source,
        h5py.File(temporary, "w") as target,
    ):
        convert(source, target)
    print(f"Wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB).")


if __name__ == "__main__":
    main()
