"""Products of large arrays, in blocks that caches hold: read, multiplied, rounded and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_bnfold.arrays import Array, dtype_of
from onnx_bnfold.model.blocks import BlockIndex, Parted, Stored, blocks_of, part_of
from onnx_bnfold.model.float_formats import as_type

# Elements of a large constant that are multiplied at once, 1 MiB of float32: each of a few threads
# holds a block, and Python, for which they wait in turn, has little to do between two of them.
BLOCK = 1 << 18
# How many times a block takes its memory where the factor has a number for each of its elements:
# float64 is twice as large, and there are two quotients while the next is computed.
_FACTORS = 4
# Elements that numpy converts to float64 before it multiplies them: the first cache holds them.
_CONVERTED = 1 << 10


class Blocks:
    """A product in blocks that caches hold."""

    def __init__(
        self,
        source: Stored,
        shape: tuple[int, ...],
        factor: NDArray[np.float64] | Parted,
        data_type: int,
    ) -> None:
        self.data_type = data_type
        self.factor = factor
        self._source = source
        self._shape = shape

    def products(self, sizes: Array, axes: tuple[int, ...]) -> Iterator[tuple[BlockIndex, Array]]:
        """Yield where each block belongs and its product; raise ``sizes`` to its ``sizes_of``."""
        dtype = dtype_of(self.data_type)
        largest = min(BLOCK, math.prod(self._shape))
        rounded = None if self._source.dtype == dtype else np.empty(largest, dtype)
        # Once for all blocks: what Python does between two of them keeps other threads waiting.
        with _calculating():
            for where, values, factor in self.operands():
                out = values
                if rounded is not None:
                    out = rounded[: values.size].reshape(values.shape)
                block = _multiplied(values, factor, self.data_type, out)
                part = part_of(sizes, where)
                np.maximum(part, sizes_of(block, axes), out=part)
                yield where, block

    def operands(self) -> Iterator[tuple[BlockIndex, Array, NDArray[np.float64]]]:
        """Yield where each block belongs, its values and its factor."""
        factor = self.factor
        most = max(1, min(BLOCK, 4 * BLOCK // self._source.dtype.itemsize))  # 1 MiB of float64, too
        if isinstance(factor, np.ndarray):
            factor = factor.reshape((1,) * (len(self._shape) - factor.ndim) + factor.shape)
        else:
            most = max(1, most // _FACTORS)
        for where, values in blocks_of(self._source, self._shape, most):
            yield where, values, part_of(factor, where)

    def summed_shape(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the axes that are summed over reduced to 1."""
        return tuple(1 if axis in axes else size for axis, size in enumerate(self._shape))

    def whole(self, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the whole product, and its ``sizes_of``."""
        dtype = dtype_of(self.data_type)
        result, sizes = np.empty(self._shape, dtype), np.zeros(self.summed_shape(axes), dtype)
        for where, block in self.products(sizes, axes):
            result[where] = block
        return result, sizes


@contextmanager
def _calculating() -> Iterator[None]:
    """Let numpy not warn of what is judged afterwards, and convert a little at a time."""
    size = np.setbufsize(_CONVERTED)
    try:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            yield
    finally:
        np.setbufsize(size)


def _multiplied(values: Array, factor: NDArray[np.float64], data_type: int, out: Array) -> Array:
    """Do ``as_type`` in the memory of ``out``, which may be that of ``values``."""
    if data_type == TensorProto.BFLOAT16:
        return as_type(values, data_type, factor)
    # The factor makes it a product of float64; numpy rounds that to the type of ``out``.
    return np.multiply(values, factor, out=out, casting="same_kind")


def peaks_of(result: Array, axes: tuple[int, ...]) -> Array:
    """Return the largest magnitude in each sum, as ``(…, 1, …)``; NaN where a factor is NaN."""
    size = np.abs(result)
    return np.asarray(size.max(axis=axes, keepdims=True, initial=0) if axes else size)


def sizes_of(result: Array, axes: tuple[int, ...]) -> Array:
    """Return ``peaks_of``, or what tells the same: root mean squares, in the same shape.

    It is these only if all of them are finite and above 2**-64, and then the peaks are so, too.
    BLAS takes one pass for them; magnitudes take two, and several times as long.
    """
    lead = result.ndim - len(axes)
    if result.size and axes and axes[0] == lead and result.dtype in (np.float32, np.float64):
        rows = result.reshape(math.prod(result.shape[:lead]), 1, -1)
        mean = np.matmul(rows, rows.swapaxes(1, 2)) / rows.shape[2]
        # Else a square may be beyond the range of the type, on either side.
        if np.finfo(mean.dtype).tiny <= mean.min(initial=1) and mean.max(initial=1) < np.inf:
            size: Array = np.sqrt(mean)
            return size.reshape(result.shape[:lead] + (1,) * len(axes))
    return peaks_of(result, axes)
