"""Changes of every structure, for a tensor of some shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_bnfold.operators.affine import VANISHING, Affine

STRUCTURES = ("uniform", "channel", "channel", "axis", "axis", "axes", "element")
SCALES = ("none", "positive", "positive", "mixed", "negative", "zeros", "ratios", "vanished")
SHIFTS = ("none", "none", "normal", "some", "large")


def draw_change(rng: np.random.Generator, shape: Sequence[int], *, itemsize: int) -> Affine:
    """Draw a change.

    Args:
        shape: of the tensor.
        itemsize: bytes per element of the narrowest type that it is computed in.
    """
    scale = _values(rng, SCALES[rng.integers(len(SCALES))], _structure(rng, shape), itemsize, 1.0)
    shift = _values(rng, SHIFTS[rng.integers(len(SHIFTS))], _structure(rng, shape), itemsize, 0.0)
    return Affine.of(scale, shift)


def _structure(rng: np.random.Generator, shape: Sequence[int]) -> list[int]:
    """A shape that has size 1 along the axes on which the change is the same."""
    rank, kind = len(shape), STRUCTURES[rng.integers(len(STRUCTURES))]
    if kind == "element":
        return list(shape)
    axes = [a for a, n in enumerate(shape) if n > 1] or list(range(rank))
    if kind == "uniform" or not rank:
        chosen = []
    elif kind == "channel" and rank > 1:
        chosen = [1]
    else:
        chosen = rng.permutation(axes)[: 2 if kind == "axes" else 1].tolist()
    return [n if a in chosen and n else 1 for a, n in enumerate(shape)]


def _values(
    rng: np.random.Generator, kind: str, shape: list[int], itemsize: int, neutral: float
) -> np.ndarray:
    if kind == "none":
        return np.full((1,) * len(shape), neutral)
    narrow = itemsize == 2
    sign = rng.choice([-1.0, 1.0], shape)
    positive = 2 ** rng.uniform(-2, 2, shape)
    some = rng.random(shape) < 0.4
    if kind == "positive":
        return positive
    if kind == "negative":
        return -positive
    if kind == "mixed":
        return positive * sign
    if kind == "zeros":
        return np.where(some, 0.0, positive * (sign if rng.random() < 0.5 else 1.0))
    if kind == "ratios":
        return positive * (2.0 if narrow else 10.0) ** rng.uniform(
            *((-3, 3) if narrow else (-8, 8)), shape
        )
    if kind == "vanished":  # the inverse of a zero scale: that channel is a constant, and unused
        return np.where(some, 1 / VANISHING, positive) if itemsize == 8 else positive
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "some":
        return np.where(some, rng.standard_normal(shape), 0.0)
    assert kind == "large"
    return rng.standard_normal(shape) * (4 if narrow else 1e3)


def disturbed(rng: np.random.Generator, change: Affine, dtype: np.dtype) -> Affine:
    """The change with one value off, by little or by much, as far as a type shows it."""
    scale, shift = change.scale.copy(), change.shift.copy()
    size = float(rng.choice([1e-6, 1e-3, 1.0] if dtype == np.float64 else [1.0]))
    array, neutral = (scale, 1.0) if rng.random() < 0.5 else (shift, 0.0)
    if array.size:
        flat = array.reshape(-1)
        where = int(rng.integers(flat.size))
        flat[where] += size * (abs(flat[where]) if flat[where] else 1.0 + neutral)
    return Affine.of(scale, shift)


def fitted(change: Affine, shape: Sequence[int]) -> Affine | None:
    """A change as one of a tensor of another rank, aligned from the right; None if it cannot be."""

    def fit(array: np.ndarray) -> np.ndarray | None:
        missing = len(shape) - array.ndim
        if missing >= 0:
            array = array.reshape((1,) * missing + array.shape)
        elif all(n == 1 for n in array.shape[:-missing]):
            array = array.reshape(array.shape[-missing:])
        else:
            return None
        fits = all(n in (1, m) for n, m in zip(array.shape, shape, strict=True))
        return array if fits else None

    scale, shift = fit(change.scale), fit(change.shift)
    return None if scale is None or shift is None else Affine.of(scale, shift)
