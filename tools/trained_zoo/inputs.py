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
