"""How near what comes out of a codec is to what went in, or to what came out before: one number per file.

Legend: C channels, H height, W width, T samples; all is float64.
"""

from __future__ import annotations

import math

import numpy as np

from toc_cli.errors import missing_extra

FFT, HOP, BANDS = 1024, 256, 64
FLOOR_DB = -100.0
"""Power below this, against full scale, counts as silence in the log-mel distance."""
SSIM_SIDE = 7


def output_snr_db(before: np.ndarray, after: np.ndarray) -> float:
    """10 log10(sum before^2 / sum (after - before)^2); inf where nothing changed."""
    return _ratio_db(float(np.sum(np.square(before, dtype=np.float64))), _square_error(before, after))


def psnr_db(truth: np.ndarray, made: np.ndarray) -> float:
    """10 log10(1 / mean (made - truth)^2) of pictures with values in 0 … 1; inf where they are equal."""
    return _ratio_db(float(truth.size), _square_error(truth, made))


def ssim(truth: np.ndarray, made: np.ndarray) -> float:
    """Structural similarity of pictures (C, H, W) in 0 … 1, by scikit-image (7 x 7 windows); NaN where a side is shorter.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise missing_extra("scikit-image", "images") from error
    if min(truth.shape[1:]) < SSIM_SIDE:
        return math.nan
    return float(structural_similarity(truth, made, channel_axis=0, data_range=1.0))


def si_sdr_db(truth: np.ndarray, made: np.ndarray) -> float:
    """Scale-invariant signal to distortion of sound (C, T), mean over channels.

    With a = <made, truth> / |truth|^2: 10 log10(|a truth|^2 / |made - a truth|^2). Source: Le Roux et al., SDR - half-baked
    or well done?, 2019.
    """
    values = []
    for s, m in zip(truth.astype(np.float64), made.astype(np.float64), strict=True):
        power = float(s @ s)
        part = (float(m @ s) / power if power else 0.0) * s
        values.append(_ratio_db(float(part @ part), _square_error(part, m)))
    return float(np.mean(values))


def log_mel_db(truth: np.ndarray, made: np.ndarray, rate: int) -> float:
    """Mean distance of the log-mel spectrograms of sound (C, T) in dB, 64 bands, floored at -100 dB."""
    bands = mel_bands(rate)
    return float(np.mean(np.abs(_log_mel(truth, bands) - _log_mel(made, bands))))


def mel_bands(rate: int, bands: int = BANDS, fft: int = FFT) -> np.ndarray:
    """(bands, fft / 2 + 1): triangles evenly spaced in mel = 2595 log10(1 + f / 700), from 0 to half the rate."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, fft // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(0, np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)))


def _log_mel(sound: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """(C, frames, bands) in dB."""
    padded = np.pad(sound.astype(np.float64), ((0, 0), (0, max(0, FFT - sound.shape[1]))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT, axis=1)[:, ::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FFT), axis=-1)) ** 2 / FFT
    return 10 * np.log10(np.maximum(power @ bands.T, 10 ** (FLOOR_DB / 10)))


def _square_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(np.square(a.astype(np.float64) - b)))


def _ratio_db(signal: float, error: float) -> float:
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else -math.inf
