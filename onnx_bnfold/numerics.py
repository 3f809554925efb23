"""Rounding new constants to their data type, once, and refusing what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_bnfold.affine import VANISHED
from onnx_bnfold.constants import Stored
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.view import NodeView

Array = np.ndarray[Any, Any]
Place = tuple[slice, ...]  # of a block in an array: slices of its leading axes

# Elements of a large constant that are multiplied at once: 1 MiB of float32, which caches hold.
BLOCK = 1 << 18
_PAGE = 1 << 12  # bytes
# Elements that numpy converts to float64 before it multiplies them: the first cache holds them.
_CONVERTED = 1 << 10

ONE = np.ones(())

# (largest finite value, smallest normal value, unit roundoff) of the float types.
_FORMATS: dict[int, tuple[float, float, float]] = {
    TensorProto.FLOAT: (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-24),
    TensorProto.DOUBLE: (float(np.finfo(np.float64).max), 2.0**-1022, 2.0**-53),
    TensorProto.FLOAT16: (65504.0, 2.0**-14, 2.0**-11),
    TensorProto.BFLOAT16: (float(2.0**128 * (1 - 2.0**-8)), 2.0**-126, 2.0**-8),
}


def unit_roundoff(data_type: int) -> float:
    """Return the largest relative error of rounding to a float type, float32's for others."""
    return _FORMATS.get(data_type, _FORMATS[TensorProto.FLOAT])[2]


class Product(NamedTuple):
    """A constant to be computed; see ``product``."""

    values: Array
    factor: NDArray[np.float64]
    data_type: int
    view: NodeView
    sums_over: tuple[int, ...] | None = None


def products(wanted: Sequence[Product]) -> list[Array | None]:
    """Compute small products; thousands of them at a time are as soon done as one.

    Args:
        wanted: the products.

    Returns:
        For each what ``product`` returns, flat; None where that refuses.
    """
    found: list[Array | None] = [None] * len(wanted)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, each in enumerate(wanted):
        form = each.values.shape, each.factor.shape, each.data_type, each.sums_over
        alike.setdefault(form, []).append(index)
    for (shape, _, data_type, _), indices in alike.items():
        if data_type in _FORMATS and math.prod(shape):
            some = [wanted[index] for index in indices]
            for index, result in zip(indices, _products(some), strict=True):
                found[index] = result
    return found


def _products(alike: Sequence[Product]) -> Iterator[Array | None]:
    """Compute products of the same shapes, type and sums in one array."""
    first, count = alike[0], len(alike)
    factors = np.array([each.factor for each in alike])
    missing = (1,) * (first.values.ndim - first.factor.ndim)
    factors = factors.reshape(count, *missing, *first.factor.shape)
    values = np.array([each.values for each in alike], np.float64)
    result = as_type(values, first.data_type, factors).reshape(count, -1)
    size = np.abs(result).astype(np.float64)
    # What holds for the least factor, holds for the largest one of every sum.
    good = size.max(axis=1) < np.inf
    good &= size.min(axis=1) >= _enough(first.data_type, first.sums_over)
    for each, flat, is_good in zip(alike, result, good.tolist(), strict=True):
        yield flat if is_good or _passes(each, flat.reshape(each.values.shape)) else None


def _passes(wanted: Product, result: Array) -> bool:
    values, factor, data_type, view, sums_over = wanted
    blocks = _Blocks(_InMemory(values), values.shape, values.dtype, factor, data_type)
    try:
        _judge(blocks, _peaks(result, _summed(values, sums_over)), view, sums_over)
    except Refused:
        return False
    return True


def product(
    values: Array,
    factor: NDArray[np.float64],
    data_type: int,
    view: NodeView,
    sums_over: tuple[int, ...] | None = None,
) -> Array:
    """Multiply in float64 and round once to a float type.

    Args:
        values: of any float type and shape; the result has its shape.
        factor: broadcasts against ``values``.
        data_type: ONNX element type of the result.
        view: the node that reads the constant, for messages.
        sums_over: for factors, the axes over which one output sums; None for summands, whose
            absolute error is what counts.

    Raises:
        Refused: a value is not finite or overflows the type, or so much of an output's factors is
            lost below the smallest normal number that ordinary rounding would be better.
    """
    _require_float(data_type, view)
    blocks = _Blocks(_InMemory(values), values.shape, values.dtype, factor, data_type)
    axes = _summed(values, sums_over)
    if values.size <= BLOCK:
        result = as_type(values, data_type, factor)
        peaks = _peaks(result, axes)
    else:
        result, peaks = blocks.whole(axes)
    _judge(blocks, peaks, view, sums_over)
    return result


def product_blocks(
    stored: Stored,
    shape: tuple[int, ...],
    factor: NDArray[np.float64],
    data_type: int,
    view: NodeView,
    *,
    sums_over: tuple[int, ...],
) -> Iterator[Array]:
    """Yield the elements of ``product`` in flat blocks, which follow each other in C order.

    Args:
        stored: the values, which lie in a file, in ``data_type``.
        shape: they have.
        factor, sums_over: see ``product``.

    Yields:
        A block, which is there until the next one is asked for.

    Raises:
        Refused: like ``product``, perhaps after the last block; none of them can be used then.
    """
    _require_float(data_type, view)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    blocks = _Blocks(stored, shape, dtype, factor, data_type)
    peaks = np.zeros(blocks.summed_shape(sums_over), dtype)
    for _, block in blocks.products(peaks, sums_over):
        yield block.reshape(-1)
    _judge(blocks, peaks, view, sums_over)


class _InMemory:
    """An array as ``Stored``."""

    def __init__(self, values: Array) -> None:
        self._flat = values.reshape(-1)

    def read_into(self, start: int, out: Array) -> None:
        out[:] = self._flat[start : start + len(out)]


class _Blocks:
    """A product in blocks that caches hold."""

    def __init__(
        self,
        source: Stored,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        factor: NDArray[np.float64],
        data_type: int,
    ) -> None:
        self.data_type = data_type
        self.factor = factor
        self._source = source
        self._shape = shape
        self._dtype = dtype

    def products(self, peaks: Array, axes: tuple[int, ...]) -> Iterator[tuple[Place, Array]]:
        """Yield where each block belongs and its product; raise ``peaks`` to its ``_sizes``."""
        dtype = helper.tensor_dtype_to_np_dtype(self.data_type)
        largest = min(BLOCK, math.prod(self._shape))
        rounded = None if self._dtype == dtype else np.empty(largest, dtype)
        # Once for all blocks: what Python does between two of them keeps other threads waiting.
        with _calculating():
            for where, values, factor in self.operands():
                out = values
                if rounded is not None:
                    out = rounded[: values.size].reshape(values.shape)
                block = _multiplied(values, factor, self.data_type, out)
                part = _part(peaks, where)
                np.maximum(part, _sizes(block, axes), out=part)
                yield where, block

    def operands(self) -> Iterator[tuple[Place, Array, NDArray[np.float64]]]:
        """Yield where each block belongs, its values and its factor."""
        buffer = _on_a_page(min(BLOCK, math.prod(self._shape)), self._dtype)
        factor = self.factor
        factor = factor.reshape((1,) * (len(self._shape) - factor.ndim) + factor.shape)
        start = 0
        for where in _places(self._shape):
            shape = tuple(s.stop - s.start for s in where) + self._shape[len(where) :]
            values = buffer[: math.prod(shape)]
            self._source.read_into(start, values)
            start += len(values)
            yield where, values.reshape(shape), _part(factor, where)

    def values(self) -> Array:
        """Return what is multiplied, in one array."""
        values = np.empty(math.prod(self._shape), self._dtype)
        self._source.read_into(0, values)
        return values.reshape(self._shape)

    def summed_shape(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the axes that are summed over reduced to 1."""
        return tuple(1 if axis in axes else size for axis, size in enumerate(self._shape))

    def whole(self, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the whole product, and its largest magnitudes over ``axes``."""
        dtype = helper.tensor_dtype_to_np_dtype(self.data_type)
        result, peaks = np.empty(self._shape, dtype), np.zeros(self.summed_shape(axes), dtype)
        for where, block in self.products(peaks, axes):
            result[where] = block
        return result, peaks


def _part(array: Array, where: Place) -> Array:
    """Return the part of an array that broadcasts against a block."""
    for axis, part in enumerate(where):
        if array.shape[axis] > 1:
            array = array[(slice(None),) * axis + (part,)]
    return array


def _on_a_page(count: int, dtype: np.dtype[Any]) -> Array:
    """Allocate an array that begins on a page of memory.

    Large arrays of numpy begin 16 bytes behind one. What lies at such a place in a file as well
    is copied many times slower by systems whose ``rep movsb`` (AMD's) takes the two for one.
    """
    raw = np.empty(count * dtype.itemsize + _PAGE, np.uint8)
    start = -raw.__array_interface__["data"][0] % _PAGE
    return raw[start : start + count * dtype.itemsize].view(dtype)


def _places(shape: tuple[int, ...]) -> Iterator[Place]:
    """Divide a C-ordered array into runs of up to ``BLOCK`` elements."""
    if not shape:
        yield ()
        return
    axis = next(i for i in range(len(shape)) if math.prod(shape[i + 1 :]) <= BLOCK)
    rows = BLOCK // max(1, math.prod(shape[axis + 1 :]))
    for lead in np.ndindex(*shape[:axis]):
        fixed = tuple(slice(i, i + 1) for i in lead)
        for start in range(0, shape[axis], rows):
            yield (*fixed, slice(start, min(start + rows, shape[axis])))


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
    # The factor makes it a product of float64; numpy rounds that to the type of `out`.
    return np.multiply(values, factor, out=out, casting="same_kind")


def _summed(values: Array, sums_over: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(range(values.ndim)) if sums_over is None else sums_over


def _peaks(result: Array, axes: tuple[int, ...]) -> Array:
    """Return the largest magnitude in each sum, as ``(…, 1, …)``; NaN where a factor is NaN."""
    size = np.abs(result)
    return np.asarray(size.max(axis=axes, keepdims=True, initial=0) if axes else size)


def _sizes(result: Array, axes: tuple[int, ...]) -> Array:
    """Return what is not above the largest magnitude in each sum; else like ``_peaks``.

    A root mean square takes BLAS one pass, magnitudes take two, and several times as long.
    """
    lead = result.ndim - len(axes)
    if axes and axes[0] == lead and result.dtype in (np.float32, np.float64):
        rows = result.reshape(math.prod(result.shape[:lead]), 1, -1)
        mean = np.matmul(rows, rows.swapaxes(1, 2)) / rows.shape[2]
        if np.isfinite(mean).all():  # else a square is beyond the range of the type
            size: Array = np.sqrt(mean)
            return size.reshape(result.shape[:lead] + (1,) * len(axes))
    return _peaks(result, axes)


def _require_float(data_type: int, view: NodeView) -> None:
    if data_type not in _FORMATS:
        name = TensorProto.DataType.Name(data_type).lower()
        raise Refused(
            Reason.UNSUPPORTED_TYPE, view.label, f"one of its constants is of the type {name}"
        )


def _judge(
    blocks: _Blocks, peaks: Array, view: NodeView, sums_over: tuple[int, ...] | None
) -> None:
    """Refuse a product that overflows or loses precision, by its largest magnitudes at first."""
    if not np.isfinite(peaks).all():
        raise _not_finite(blocks.values(), blocks.factor, blocks.data_type, view)
    if sums_over is not None and not (peaks >= _enough(blocks.data_type, sums_over)).all():
        _require_precision(blocks, view, sums_over)


def _enough(data_type: int, sums_over: tuple[int, ...] | None) -> float:
    """Return how large a sum's largest factor is when what underflows beside it is nothing."""
    if sums_over is None:
        return 0.0
    _, smallest, unit = _FORMATS[data_type]
    return smallest / unit if sums_over else smallest


def as_type(values: Array, data_type: int, factor: NDArray[np.float64] | None = None) -> Array:
    """Multiply in float64, if by anything, and round once; what overflows becomes infinite."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = values.astype(np.float64, copy=False)
        if factor is not None:
            exact = exact * factor
        if data_type == TensorProto.BFLOAT16:
            return _to_bfloat16(exact, dtype)
        return np.asarray(exact, dtype)


def _to_bfloat16(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """Round float64 to bfloat16 once: the cast goes by way of float32 and would round twice.

    Rounding to float32 "to odd" in between (Boldo and Melquiond 2008) keeps the last rounding
    exact.
    """
    single = values.astype(np.float32)
    wide = single.astype(np.float64)
    single = np.where(np.abs(wide) > np.abs(values), np.nextafter(single, np.float32(0)), single)
    bits = single.view(np.uint32) | (wide != values)
    rounded_once: Array = bits.astype(np.uint32).view(np.float32).astype(dtype)
    return rounded_once


def _not_finite(
    values: Array, factor: NDArray[np.float64], data_type: int, view: NodeView
) -> Refused:
    if not (np.isfinite(values).all() and np.isfinite(factor).all()):
        return Refused(
            Reason.NOT_FINITE,
            view.label,
            "one of its constants is infinite or NaN; repair the model",
        )
    with np.errstate(over="ignore"):
        largest = float(np.abs(values.astype(np.float64) * factor).max())
    name = TensorProto.DataType.Name(data_type).lower()
    return Refused(
        Reason.OVERFLOW,
        view.label,
        f"a folded constant would be {largest:.3g}, beyond the range of its type {name} (at most "
        f"{_FORMATS[data_type][0]:.6g}); convert the model to a wider type before folding",
    )


def _require_precision(blocks: _Blocks, view: NodeView, axes: tuple[int, ...]) -> None:
    _, smallest, unit = _FORMATS[blocks.data_type]
    error, size = (np.zeros(blocks.summed_shape(axes)) for _ in range(2))
    for where, values, factor in blocks.operands():
        result = as_type(values, blocks.data_type, factor).astype(np.float64)
        exact = values.astype(np.float64) * np.where(np.abs(factor) <= 1 / VANISHED, 0, factor)
        for total, part in ((error, result - exact), (size, exact)):
            here = _part(total, where)
            here += np.abs(part).sum(axis=axes, keepdims=True)
    if (error > 2 * unit * size).any():
        raise Refused(
            Reason.PRECISION,
            view.label,
            "a folded constant would lose precision below the smallest normal number of its type "
            f"({smallest:.3g}); convert the model to float32 before folding",
        )
