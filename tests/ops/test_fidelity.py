"""What comes out against what went in: each figure beside a slow reference, and what it must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toc_cli.ops import fidelity


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_change_of_the_output_counts_every_value() -> None:
    before, after = noise(2, 50), noise(2, 50, seed=1)
    signal = sum(float(v) ** 2 for v in before.ravel())
    error = sum((float(a) - float(b)) ** 2 for a, b in zip(after.ravel(), before.ravel(), strict=True))
    assert fidelity.output_snr_db(before, after) == pytest.approx(10 * math.log10(signal / error))
    assert fidelity.output_snr_db(before, before) == math.inf
    assert fidelity.output_snr_db(5 * before, 5 * after) == pytest.approx(fidelity.output_snr_db(before, after))


def test_psnr_is_of_full_scale_one() -> None:
    truth, made = noise(3, 9, 8).clip(0, 1), noise(3, 9, 8, seed=1).clip(0, 1)
    mse = np.mean([(float(a) - float(b)) ** 2 for a, b in zip(truth.ravel(), made.ravel(), strict=True)])
    assert fidelity.psnr_db(truth, made) == pytest.approx(-10 * math.log10(mse))


def test_ssim_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    truth, made = noise(3, 16, 16).clip(0, 1), noise(3, 16, 16, seed=1).clip(0, 1)
    expected = np.mean([metrics.structural_similarity(a, b, data_range=1.0) for a, b in zip(truth, made, strict=True)])
    assert fidelity.ssim(truth, made) == pytest.approx(expected)
    assert fidelity.ssim(truth, truth) == pytest.approx(1)
    assert math.isnan(fidelity.ssim(truth[:, :6], made[:, :6]))


def test_si_sdr_does_not_see_the_scale() -> None:
    truth, made = noise(2, 400), noise(2, 400) + 0.1 * noise(2, 400, seed=1)
    values = []
    for s, m in zip(truth, made, strict=True):
        a = sum(x * y for x, y in zip(m, s, strict=True)) / sum(x * x for x in s)
        values.append(
            10 * math.log10(sum((a * x) ** 2 for x in s) / sum((y - a * x) ** 2 for x, y in zip(s, m, strict=True)))
        )
    assert fidelity.si_sdr_db(truth, made) == pytest.approx(np.mean(values))
    assert fidelity.si_sdr_db(truth, 7 * made) == pytest.approx(np.mean(values))
    assert fidelity.si_sdr_db(0 * truth, made) == -math.inf


def test_log_mel_distance_is_the_level_where_only_the_level_differs() -> None:
    rate = 8000
    sound = 0.5 * noise(1, rate)
    assert fidelity.log_mel_db(sound, sound, rate) == 0
    assert fidelity.log_mel_db(sound, sound * 10 ** (-6 / 20), rate) == pytest.approx(6, abs=1e-6)
    assert fidelity.log_mel_db(sound[:, :100], sound[:, :100] * 0.5, rate) == pytest.approx(20 * math.log10(2), abs=0.2)


def test_mel_bands_are_triangles_with_one_peak() -> None:
    bands = fidelity.mel_bands(16000)
    assert bands.shape == (64, 513)
    assert bands.min() >= 0
    assert bands.max() <= 1
    peaks = bands.argmax(1)
    assert (np.diff(peaks) >= 0).all()
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)[None]
    loudest = fidelity._log_mel(tone, bands).mean(1)[0].argmax()
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 8000 / 700), 66) / 2595) - 1)
    assert edges[loudest] <= 1000 <= edges[loudest + 2]
