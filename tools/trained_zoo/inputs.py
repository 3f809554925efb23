"""Realistic inputs: pictures that a package ships, cut to what a network reads, and sounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.trained_zoo.packages import member

Floats = npt.NDArray[np.float32]

_PAGES = ("page.png", "text.png")
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png")
_RATE = 16_000  # samples per second


def text(count: int, height: int, width: int, *, lines: int) -> Floats:
    """Return pieces of printed pages, ``(count, 3, height, width)`` from -1 to 1.

    Args:
        count: number of pieces.
        height, width: of each.
        lines: of the page that a piece is high, about.
    """
    return _cuts(_PAGES, count, height, width, high=20 * lines) * 2 - 1


def photographs(count: int, height: int, width: int) -> Floats:
    """Return pieces of photographs, normalised as for ImageNet."""
    mean, deviation = (
        np.array(v, np.float32).reshape(3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (_cuts(_PHOTOGRAPHS, count, height, width, high=250) - mean) / deviation


def faces(count: int, size: int) -> Floats:
    """Return faces, ``(count, 3, size, size)`` from 0 to 255, at most 100."""
    found = np.load(member("pictures", "skimage/data/lfw_subset.npy"))[:count]
    grey = [Image.fromarray((255 * face).astype(np.uint8)).resize((size, size)) for face in found]
    return np.repeat(np.array(grey, np.float32)[:, None], 3, axis=1)


def tones(count: int, samples: int) -> Floats:
    """Return sung notes with a little noise, ``(count, samples)`` of mean 0 and deviation 1."""
    rng = np.random.default_rng(0)
    time = np.arange(samples) / _RATE
    notes = []
    for pitch in rng.uniform(90, 700, count):
        phase = 2 * np.pi * pitch * (time + 2e-4 * np.sin(2 * np.pi * 6 * time))
        strengths = rng.uniform(0.2, 1, 8) / np.arange(1, 9)
        note = sum(s * np.sin(k * phase) for k, s in enumerate(strengths, 1))
        note = note + rng.uniform(0, 0.1) * rng.standard_normal(samples)
        notes.append((note - note.mean()) / note.std())
    return np.array(notes, np.float32)


def music(count: int) -> Floats:
    """Return three seconds of chords, ``(count, 187, 96)``: log10 of the power in 96 mel bands."""
    samples = 512 + 256 * 186
    notes = tones(3 * count, samples).reshape(count, 3, -1)
    rng = np.random.default_rng(1)
    beat = np.abs(np.sin(np.pi * np.arange(samples) / _RATE * rng.uniform(1, 4, (count, 1))))
    power = _spectrogram(notes.mean(1) * beat * 0.1, 512, 256) ** 2
    edges = 700 * (np.exp(np.linspace(0, np.log1p(_RATE / 2 / 700), 98)) - 1)
    bins = np.arange(257)[:, None] * _RATE / 512
    rising, falling = (
        (bins - edges[:-2]) / np.diff(edges)[:-1],
        (edges[2:] - bins) / np.diff(edges)[1:],
    )
    bands = np.maximum(np.minimum(rising, falling), 0) * 2 / (edges[2:] - edges[:-2])
    return np.log10(1e4 * (power @ bands) + 1).astype(np.float32)


def calls(count: int) -> Floats:
    """Return spectrograms of bats, ``(count, 1, 128, 256)``: sweeps from high to low in noise."""
    rng = np.random.default_rng(0)
    rate, samples = 256_000, 512 + 128 * 511
    time = np.arange(samples) / rate
    sounds = 0.02 * rng.standard_normal((count, samples))
    for sound in sounds:
        for start in rng.uniform(0, 0.2, rng.integers(2, 6)):
            since, length = time - start, rng.uniform(3e-3, 8e-3)
            high, low = rng.uniform(60e3, 110e3), rng.uniform(20e3, 50e3)
            within = (since > 0) & (since < length)
            phase = 2 * np.pi * (high * since - (high - low) * since**2 / (2 * length))
            sound += within * np.sin(np.pi * np.clip(since / length, 0, 1)) * np.sin(phase)
    spectra = np.log1p(_spectrogram(sounds, 512, 128)[:, :512, 20:240]).swapaxes(1, 2)[:, ::-1]
    spectra = np.maximum(spectra - spectra.mean(2, keepdims=True), 0)
    pictures = [Image.fromarray(each.astype(np.float32)) for each in spectra]
    found = [picture.resize((256, 128), Image.Resampling.BILINEAR) for picture in pictures]
    return np.array(found, np.float32)[:, None]


def _spectrogram(sounds: npt.NDArray[np.float64], size: int, step: int) -> npt.NDArray[np.float64]:
    """Return magnitudes ``(count, times, size // 2 + 1)`` of windows of so many samples."""
    windows = np.lib.stride_tricks.sliding_window_view(sounds, size, axis=1)[:, ::step]
    return np.abs(np.fft.rfft(windows * np.hanning(size), axis=2))


def _cuts(names: tuple[str, ...], count: int, height: int, width: int, *, high: int) -> Floats:
    """Return pieces of pictures, ``high`` pixels high before they are resized, from 0 to 1."""
    rng = np.random.default_rng(0)
    pictures = [Image.open(member("pictures", f"skimage/data/{n}")).convert("RGB") for n in names]
    found = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        wide = min(high * width // height, picture.width)
        left = rng.integers(0, picture.width - wide + 1)
        top = rng.integers(0, max(picture.height - high, 0) + 1)
        piece = picture.resize(
            (width, height), box=(left, top, left + wide, min(top + high, picture.height))
        )
        found.append(np.asarray(piece, np.float32).transpose(2, 0, 1) / 255)
    return np.array(found)
