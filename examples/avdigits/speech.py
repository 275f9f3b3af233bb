"""What AV-Digits hears: words spoken by espeak-ng in many voices, in pink noise, and their log-mel energies.

A second is 8,000 samples; its features are 8 slots of 125 ms by 16 mel bands, in decibels.
"""

from __future__ import annotations

import subprocess

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

RATE, SLOTS, BANDS = 8000, 8, 16
WINDOW, HOP = 256, 125  # samples of a spectrum, and from one to the next: eight spectra per slot
FLOOR = 1e-9  # power below which all is silence
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DISTRACTORS = ("yes", "maybe", "hello", "please")
ACCENTS = ("en-gb", "en-us", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd")
OTHER_ACCENTS = ("en-gb-scotland", "en-029")  # of the second domain
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")


def version() -> str:
    """Of espeak-ng, as it says itself; FileNotFoundError where it is not installed."""
    said = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("Data at")[0].split(":")[1].strip()


def speak(word: str, voice: str, speed: int, pitch: int) -> NDArray[np.float64]:
    """The word as samples at 8 kHz, without the silence around it, of root mean square 0.1."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    rate = int.from_bytes(
        said[24:28], "little"
    )  # of a WAV header, whose length is a guess: it was written before the sound
    samples = resample_poly(np.frombuffer(said[44:], "<i2") / 32768, RATE // 50, rate // 50)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1][:RATE]
    return 0.1 * samples / np.sqrt(np.mean(samples**2))


def vocabulary(voices: list[str], rng: np.random.Generator) -> dict[str, list[NDArray[np.float64]]]:
    """Every voice's ten numbers and its distractors, each voice at a speed and a pitch of its own."""
    spoken = {}
    for voice in voices:
        speed, pitch = int(rng.integers(130, 200)), int(rng.integers(25, 76))
        spoken[voice] = [speak(word, voice, speed, pitch) for word in (*NUMBERS, *DISTRACTORS)]
    return spoken


def pink(seconds: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(seconds x 8,000,) of noise whose power falls as 1 / f, of root mean square 1."""
    length = seconds * RATE
    spectrum = np.fft.rfft(rng.normal(size=length)) / np.sqrt(np.maximum(np.arange(length // 2 + 1), 1))
    noise = np.fft.irfft(spectrum, length)
    return noise / np.sqrt(np.mean(noise**2))


def mel_bands() -> NDArray[np.float64]:
    """(16, 129): triangles that overlap by half, evenly spaced in mel = 2595 log10(1 + f / 700) from 80 Hz to 4 kHz."""
    low, high = 2595 * np.log10(1 + np.array([80, RATE / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    frequency = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    rise = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


def hear(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """Samples (T x 8,000,) to (T, 128): mean power of each slot and band, in decibels."""
    padded = np.pad(wave, (0, WINDOW - HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows)) ** 2 @ mel_bands().T / WINDOW  # (T x 64, 16)
    slots = power.reshape(-1, SLOTS, RATE // HOP // SLOTS, BANDS).mean(axis=2)
    return 10 * np.log10(slots + FLOOR).reshape(-1, SLOTS * BANDS)
