"""Build AV-Digits, the benchmark of paired video, sound and text that `toc` ships, from scikit-learn's digits and espeak-ng.

    python examples/avdigits/build.py toc_cli/demo/avdigits.h5

A clip has ten seconds. In one or two events of some seconds a handwritten digit is seen, its name is heard, and the caption says it;
the other seconds show strokes and noise, and may hold another word. Near or far is seen (large, small) and heard (loud, quiet), never
told. Sound starts and ends a second off now and then, in the two-event splits more often.

Splits: `train` (no labels), `val` (one event: all choices), `ave_train`, `ave_test` (one event), `avvp_train`, `avvp_val`, `avvp_test`
(two events), and `other_test` (one event; a second domain: other writers, other accents, twice the noise). Train, validation and test
share neither a digit's image nor a voice. scikit-learn's images are the part of the UCI set that thirteen writers gave; taking their
order in the file for that of the writers, the last 397 images are mostly other writers' (the file does not name them).

The same arrays on every run under one version of espeak-ng; the file names the versions that made it, and the sources.
Layout: `toc_cli/fcid/data.py`; also `image` and `voice` (N, 2) of each event, and `frames` and `waveform` of the first clips.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy
import sight
import sklearn
import speech
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from toc_cli.io.atomic import atomic_file, check_target

SECONDS, WORDS, WORD_DIM = 10, 10, 64
BACKGROUND = 10  # the class of a second without a digit
SCALE, WORD_SCALE = 2, 16  # stored = value x scale: half a standard deviation is told apart
FRAMES, WAVEFORMS = 16, 2  # clips of each labelled split to look at and to listen to
LATEST = 2400  # samples into its second that a word may begin
OTHER_IMAGES = 1400  # from here on the images are other writers'
ONE = (
    "there is a {0} here",
    "a {0} appears",
    "someone says {0} then silence",
    "after a pause the number {0}",
    "only {0}",
)
TWO = ("first {0} and later {1}", "a {0} then a {1}", "number {0} comes before {1}", "we hear a {0} followed by a {1}")
SOURCES = """Handwritten digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning \
Repository, 1998, doi:10.24432/C50P49, CC BY 4.0; as shipped by scikit-learn (BSD-3-Clause). Speech: made with espeak-ng \
(GPL-3.0-or-later; the program is not part of this file). Arrangement and captions: the toc project, under its licence."""


@dataclass(frozen=True)
class Plan:
    """A split: how many clips, how many events each (0: one or two), whose digits and voices, how often sound is off, how noisy."""

    clips: int
    events: int
    part: str
    off: float = 0.25
    noise: float = 1.0


PLANS = {
    "train": Plan(1500, 0, "train"),
    "val": Plan(500, 1, "val"),
    "ave_train": Plan(350, 1, "train"),
    "ave_test": Plan(1000, 1, "test"),
    "avvp_train": Plan(250, 2, "train", off=0.5),
    "avvp_val": Plan(150, 2, "val", off=0.5),
    "avvp_test": Plan(300, 2, "test", off=0.5),
    "other_test": Plan(400, 1, "other", noise=2.0),
}


@dataclass(frozen=True)
class Part:
    """Digits' images by class, indices into scikit-learn's, and voices with their words, that no other part has."""

    images: list[NDArray[np.int64]]
    voices: list[int]


def make_parts(target: NDArray[np.int64], rng: np.random.Generator) -> tuple[dict[str, Part], list[str]]:
    """Images and voices dealt to the parts, and the names of the voices."""
    order = rng.permutation(OTHER_IMAGES)
    images = dict(zip(("train", "val", "test"), np.split(order, [800, 1060]), strict=True))
    images["other"] = np.arange(OTHER_IMAGES, len(target))
    names = [f"{accent}+{variant}" for accent in speech.ACCENTS for variant in speech.VARIANTS]
    voices = dict(zip(("train", "val", "test"), np.split(rng.permutation(len(names)), [39, 52]), strict=True))
    others = [f"{accent}+{variant}" for accent in speech.OTHER_ACCENTS for variant in speech.VARIANTS]
    voices["other"] = len(names) + np.arange(len(others))
    parts = {
        name: Part([rows[target[rows] == digit] for digit in range(10)], voices[name].tolist())
        for name, rows in images.items()
    }
    return parts, names + others


def word_vector(word: str) -> NDArray[np.int64]:
    """(64,) of standard deviation near 16: random signs of the word's letters in ones, twos and threes, as its hash draws them."""
    whole = f"<{word}>"
    grams = [whole[at : at + size] for size in (1, 2, 3) for at in range(len(whole) - size + 1)] + [whole]
    bits = [np.unpackbits(np.frombuffer(hashlib.sha256(gram.encode()).digest()[:8], np.uint8)) for gram in grams]
    return np.rint(WORD_SCALE * (2.0 * np.array(bits) - 1).sum(axis=0) / np.sqrt(len(grams))).astype(np.int64)


def place_events(count: int, off: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which event each second shows and which it sounds, (T,) each: 0 or 1, and -1 for none."""
    shown, heard = np.full(SECONDS, -1), np.full(SECONDS, -1)
    room = SECONDS // count
    for event in range(count):
        length = int(rng.integers(3, room + 1 if count > 1 else 7))
        start = event * room + int(rng.integers(0, room - length + 1))
        shown[start : start + length] = event
        begin, end = (at + int(rng.choice((-1, 1))) * (rng.random() < off) for at in (start, start + length))
        heard[max(begin, 0) : end] = event
    return shown, heard


class Builder:
    """Draws clips; one generator of random numbers per split, so that no split depends on another."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images, rng = digits.images, np.random.default_rng(20260701)
        self.parts, self.voices = make_parts(digits.target, rng)
        self.spoken = speech.vocabulary(self.voices, rng)

    def split(self, name: str, most: int | None = None) -> dict[str, NDArray[np.generic]]:
        """All arrays of a split, or of its first clips alone; features not yet standardised."""
        plan, rng = PLANS[name], np.random.default_rng([20260701, list(PLANS).index(name)])
        clips = [self.clip(plan, rng) for _ in range(min(plan.clips, most or plan.clips))]
        first = {"frames": FRAMES, "waveform": WAVEFORMS}
        return {key: np.stack([clip[key] for clip in clips[: first.get(key)]]) for key in clips[0]}

    def clip(self, plan: Plan, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        """One clip: what is seen, heard and said, and what is true of it."""
        part, count = self.parts[plan.part], plan.events or int(rng.integers(1, 3))
        digits, near = rng.choice(10, count, replace=False), rng.random(count) < 0.5
        image, voice = np.full(2, -1), np.full(2, -1)
        image[:count] = [rng.choice(part.images[digit]) for digit in digits]
        voice[:count] = rng.choice(part.voices, count)
        shown, heard = place_events(count, plan.off, rng)
        frames = np.empty((SECONDS, sight.SIDE, sight.SIDE), np.uint8)
        wave = 0.006 * plan.noise * rng.uniform(0.5, 1.5) * speech.pink(SECONDS, rng)
        other = rng.choice(part.voices)
        for second in range(SECONDS):
            event = shown[second]
            digit = None if event < 0 else sight.draw_digit(self.images[image[event]], bool(near[event]), rng)
            frames[second] = sight.draw_frame(digit, 0.08 * plan.noise, rng)
            event = heard[second]
            if event >= 0:
                word, loud = self.spoken[self.voices[voice[event]]][digits[event]], 1.0 if near[event] else 0.4
            elif rng.random() < 0.3:
                word, loud = self.spoken[self.voices[other]][10 + rng.integers(4)], rng.choice((0.4, 1.0))
            else:
                continue
            start = second * speech.RATE + int(rng.integers(0, min(LATEST, speech.RATE - len(word)) + 1))
            wave[start : start + len(word)] += loud * rng.uniform(0.8, 1.25) * word
        templates = ONE if count == 1 else TWO
        caption = str(rng.choice(templates)).format(*(speech.NUMBERS[digit] for digit in digits))
        words = caption.split()
        text = np.zeros((WORDS, WORD_DIM), np.int8)
        text[: len(words)] = [word_vector(word) for word in words]
        names = np.array([*digits, *[BACKGROUND] * (3 - count)])  # of events 0 and 1, and of none (-1)
        single = count == 1
        return {
            "video": sight.see(frames), "audio": speech.hear(wave), "text": text, "text_length": np.int8(len(words)),
            "caption": np.bytes_(caption), "frames": frames,
            "waveform": np.rint(127 * wave / np.abs(wave).max()).astype(np.int8),
            "image": image.astype(np.int16), "voice": voice.astype(np.int8),
            "label_clip": np.int8(digits[0] if single else -1),
            "label_attribute": np.int8(digits[0] + 10 * near[0] if single else -1),
            "label_second.video": names[shown].astype(np.int8), "label_second.audio": names[heard].astype(np.int8),
        }  # fmt: skip


def standardise(
    values: NDArray[np.generic], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Each channel less its mean, in half standard deviations, rounded; at most 15 standard deviations."""
    return np.clip(np.rint(SCALE * ((values - mean) / deviation)), -30, 30).astype(np.int8)


def attributes(name: str) -> dict[str, object]:
    """What the file says beside an array."""
    numbers = list(speech.NUMBERS)
    far_near = [f"{number} {place}" for place in ("far", "near") for number in numbers]
    known: dict[str, dict[str, object]] = {
        "video": {"scale": float(SCALE)}, "audio": {"scale": float(SCALE)}, "text": {"scale": float(WORD_SCALE)},
        "waveform": {"rate": speech.RATE}, "label_clip": {"classes": 10, "names": numbers},
        "label_attribute": {"classes": 20, "names": far_near},
    }  # fmt: skip
    if name.startswith("label_second"):
        return {"classes": 11, "names": [*numbers, "background"], "background": BACKGROUND}
    return known.get(name, {})


def build(file: h5py.File) -> None:
    """Write every split, standardised by the means and deviations of `train`, which the file holds too."""
    builder = Builder()
    train = builder.split("train")
    for key in ("video", "audio"):
        axes = tuple(range(train[key].ndim - 1))
        file[f"{key}_mean"], file[f"{key}_deviation"] = train[key].mean(axis=axes), train[key].std(axis=axes)
    for name in PLANS:
        arrays = train if name == "train" else builder.split(name)
        group = file.create_group(name)
        for key, values in arrays.items():
            if name == "train" and (key.startswith("label") or key in ("frames", "waveform")):
                continue
            known = key in ("video", "audio")
            stored = standardise(values, file[f"{key}_mean"][:], file[f"{key}_deviation"][:]) if known else values
            chunks = (min(50, len(stored)), *stored.shape[1:]) if stored.ndim > 1 else None
            kept = group.create_dataset(key, data=stored, chunks=chunks, compression="gzip", compression_opts=9)
            for attribute, value in attributes(key).items():
                kept.attrs[attribute] = value
    file.attrs["sources"] = SOURCES
    file.attrs["voices"] = builder.voices
    file.attrs["espeak-ng"] = speech.version()
    file.attrs["versions"] = [
        f"{package.__name__} {package.__version__}" for package in (np, scipy, sklearn)
    ] + [f"python {platform.python_version()}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    check_target(arguments.output)
    with atomic_file(arguments.output) as temporary, h5py.File(temporary, "w") as file:
        build(file)
    print(f"Wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB).")


if __name__ == "__main__":
    main()
