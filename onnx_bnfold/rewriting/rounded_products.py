"""Rounding new constants to their data type, once, and refusing what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_bnfold.arrays import Array, dtype_of
from onnx_bnfold.model.blocks import InMemory, Parted, Stored, part_of
from onnx_bnfold.model.float_formats import FORMATS, as_type
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import VANISHED, Float64
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.rewriting.blocked_products import Blocks, peaks_of
from onnx_bnfold.storage.tensors import MOST_AXES

if TYPE_CHECKING:
    from onnx_bnfold.planning.output_sizes import OutputSize

ONE = np.ones(())
_LEAST_DATA = 1.0  # magnitude that data have, whatever statistics say


# Returns what stands beside the sums of a product's factors; see ``product``.
Beside = Callable[[], "Sequence[OutputSize]"]


def _nothing() -> Sequence[OutputSize]:
    return ()


class Product:
    """A constant to be computed; see ``product``."""

    # A NamedTuple would take twice as long to make, and every changed constant needs one.
    __slots__ = ("beside", "data_type", "factor", "sums_over", "values", "view")

    def __init__(
        self,
        values: Array,
        factor: NDArray[np.float64],
        data_type: int,
        view: NodeView,
        sums_over: tuple[int, ...] | None = None,
        beside: Beside = _nothing,
    ) -> None:
        self.values = values
        self.factor = factor
        self.data_type = data_type
        self.view = view
        self.sums_over = sums_over
        self.beside = beside

    def compute(self) -> Array:
        """Return what ``product`` does."""
        return product(
            self.values, self.factor, self.data_type, self.view, self.sums_over, self.beside
        )


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
        # In one array they have an axis more.
        if data_type in FORMATS and math.prod(shape) and len(shape) < MOST_AXES:
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
    values, sums_over = wanted.values, wanted.sums_over
    blocks = Blocks(InMemory(values), values.shape, wanted.factor, wanted.data_type)
    sizes = peaks_of(result, _summed(values, sums_over))
    try:
        _judge(blocks, sizes, wanted.view, sums_over, wanted.beside)
    except Refused:
        return False
    return True


def product(
    values: Array,
    factor: NDArray[np.float64],
    data_type: int,
    view: NodeView,
    sums_over: tuple[int, ...] | None = None,
    beside: Beside = _nothing,
) -> Array:
    """Multiply in float64 and round once to a float type.

    Args:
        values: of any float type and shape; the result has its shape.
        factor: broadcasts against ``values``.
        data_type: ONNX element type of the result.
        view: the node that reads the constant, for messages.
        sums_over: for factors, the axes over which one output sums; None for summands, whose
            absolute error is what counts.
        beside: returns how large the outputs are beside their sums, where that is known.

    Raises:
        Refused: a value is not finite or overflows the type, or so much of an output's factors is
            lost below the smallest normal number that ordinary rounding would be better, and the
            output shows it.
    """
    _require_float(data_type, view)
    blocks = Blocks(InMemory(values), values.shape, factor, data_type)
    result, sizes = blocks.whole(_summed(values, sums_over))
    _judge(blocks, sizes, view, sums_over, beside)
    return result


def product_blocks(
    stored: Stored,
    shape: tuple[int, ...],
    factor: NDArray[np.float64] | Parted,
    data_type: int,
    view: NodeView,
    *,
    sums_over: tuple[int, ...],
    beside: Beside = _nothing,
) -> Iterator[Array]:
    """Yield the elements of ``product`` in flat blocks, which follow each other in C order.

    Args:
        stored: the values, of any float type.
        shape: they have.
        factor, sums_over, beside: see ``product``.

    Yields:
        A block, which is there until the next one is asked for.

    Raises:
        Refused: like ``product``, perhaps after the last block; none of them can be used then.
    """
    _require_float(data_type, view)
    blocks = Blocks(stored, shape, factor, data_type)
    sizes = np.zeros(blocks.summed_shape(sums_over), dtype_of(data_type))
    for _, block in blocks.products(sizes, sums_over):
        yield block.reshape(-1)
    _judge(blocks, sizes, view, sums_over, beside)


def _summed(values: Array, sums_over: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(range(values.ndim)) if sums_over is None else sums_over


def _require_float(data_type: int, view: NodeView) -> None:
    if data_type not in FORMATS:
        name = TensorProto.DataType.Name(data_type).lower()
        raise Refused(
            Reason.UNSUPPORTED_TYPE, view.label, f"one of its constants is of the type {name}"
        )


def _judge(
    blocks: Blocks,
    sizes: Array,
    view: NodeView,
    sums_over: tuple[int, ...] | None,
    beside: Beside,
) -> None:
    """Refuse a product that overflows or loses precision, by the sizes of its sums at first."""
    if not np.isfinite(sizes).all():
        raise _not_finite(blocks, view)
    if sums_over is not None and not (sizes >= _enough(blocks.data_type, sums_over)).all():
        _require_precision(blocks, view, sums_over, beside)


def _enough(data_type: int, sums_over: tuple[int, ...] | None) -> float:
    """Return how large a sum's largest factor is when what underflows beside it is nothing."""
    if sums_over is None:
        return 0.0
    _, smallest, unit = FORMATS[data_type]
    return smallest / unit if sums_over else smallest


def _not_finite(blocks: Blocks, view: NodeView) -> Refused:
    largest, data_type = 0.0, blocks.data_type
    for _, values, factor in blocks.operands():
        if not (np.isfinite(values).all() and np.isfinite(factor).all()):
            return Refused(
                Reason.NOT_FINITE,
                view.label,
                "one of its constants is infinite or NaN, and nothing is folded into such a "
                "number; repair the model unless it is meant, as that of a mask is",
            )
        with np.errstate(over="ignore"):
            size = np.abs(values.astype(np.float64) * factor)
        largest = max(largest, float(size.max(initial=0)))
    name = TensorProto.DataType.Name(data_type).lower()
    return Refused(
        Reason.OVERFLOW,
        view.label,
        f"a folded constant would be {largest:.3g}, beyond the range of its type {name} (at most "
        f"{FORMATS[data_type][0]:.6g}); convert the model to a wider type before folding",
    )


def _require_precision(
    blocks: Blocks, view: NodeView, axes: tuple[int, ...], beside: Beside
) -> None:
    _, smallest, unit = FORMATS[blocks.data_type]
    error, size = (np.zeros(blocks.summed_shape(axes)) for _ in range(2))
    for where, values, factor in blocks.operands():
        result = as_type(values, blocks.data_type, factor).astype(np.float64)
        exact = values.astype(np.float64) * np.where(np.abs(factor) <= 1 / VANISHED, 0, factor)
        for total, part in ((error, result - exact), (size, exact)):
            here = part_of(total, where)
            here += np.abs(part).sum(axis=axes, keepdims=True)
    coarse = error > 2 * unit * size
    if coarse.any() and not _is_hidden(error, size, coarse, blocks.data_type, beside()):
        raise Refused(
            Reason.PRECISION,
            view.label,
            "a folded constant would lose precision below the smallest normal number of its type "
            f"({smallest:.3g}), and its channel would show it; convert the model to float32 before "
            "folding",
        )


def _is_hidden(
    error: Float64, size: Float64, coarse: Array, data_type: int, beside: Sequence[OutputSize]
) -> bool:
    """Whether what is lost is not seen beside the rest of the outputs, which are rounded, too.

    Args:
        error: sum of the magnitudes of the factors' errors, per output.
        size: of the factors.
        coarse: the outputs that matter.
        data_type: of factors and outputs.
        beside: see ``product``.
    """
    _, smallest, unit = FORMATS[data_type]
    for output in beside:
        with np.errstate(divide="ignore", invalid="ignore"):  # of factors that are all zero
            # Statistics may take data for smaller than they are.
            lost = error * np.fmax(output.products / size, _LEAST_DATA)
        if (coarse & (lost > unit * np.maximum(output.whole, smallest))).any():
            return False
    return bool(beside)
