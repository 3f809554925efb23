"""Find out whether every window of a pooling layer covers an element of its input.

A window that is entirely in the padding has no maximum and no mean: a MaxPool returns the lowest
number or minus infinity there, an AveragePool 0 or NaN, however its input is scaled and shifted.
Source: ONNX MaxPool-22 and AveragePool-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.reasons import Refused

# Windows that begin in the leading padding are examined one by one, up to this number.
MOST_STARTS = 2**16


class _Axis(NamedTuple):
    """The windows along one spatial axis: ``kernel`` taps each, which are ``dilation`` apart.

    Attributes:
        front: elements of padding before the first element.
        back: elements of padding after the last element.
        rounds_up: whether the last window may reach beyond the padding.
    """

    kernel: int
    stride: int
    dilation: int
    front: int
    back: int
    rounds_up: bool

    def are_filled(self, size: int | None) -> bool:
        """Return whether every window covers an element of an axis of ``size`` (None: any size).

        A window that begins at an element does. One that begins in the leading padding may step
        over a short axis; one that begins in the trailing padding covers nothing.
        """
        reach = (self.kernel - 1) * self.dilation
        last = self._last_start(size, reach)
        if last >= (0 if size is None else size):
            return False
        starts = range(-self.front, min(last + 1, 0) if size is not None else 0, self.stride)
        return len(starts) <= MOST_STARTS and all(
            first < (1 if size is None else size) and first - start <= reach
            for start in starts
            for first in (start % self.dilation,)
        )

    def _last_start(self, size: int | None, reach: int) -> int:
        """Return where the last window begins; if ``size`` is None, a bound relative to the end."""
        over = self.stride - 1 if self.rounds_up else 0
        if size is None:
            return self.back - reach - 1 + over
        room = size + self.front + self.back - reach - 1 + over
        # Where the specification has no window, onnxruntime has one: it rounds towards zero.
        return max(room // self.stride, 0) * self.stride - self.front


def _axes(view: NodeView) -> list[_Axis] | None:
    """Return the windows along each spatial axis; None if their padding is not known."""
    kernel: list[int] = view.attribute("kernel_shape", [])
    ones = [1] * len(kernel)
    strides, dilations = view.attribute("strides", ones), view.attribute("dilations", ones)
    pads = view.attribute("pads", [0] * 2 * len(kernel))
    auto_pad = view.attribute("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = [0] * 2 * len(kernel)
    elif auto_pad != "NOTSET":
        # The padding is smaller than a window, so only a dilated window can miss the input.
        gaps = any(d > 1 and k > 1 for k, d in zip(kernel, dilations, strict=True))
        return None if gaps else []
    rounds_up = bool(view.attribute("ceil_mode", 0))
    sides = zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)
    return [
        _Axis(*window, *padding, rounds_up)
        for window, padding in zip(zip(kernel, strides, dilations, strict=True), sides, strict=True)
    ]


def are_filled(view: NodeView, *, whole: bool = False) -> bool:
    """Return whether every window of a MaxPool or AveragePool covers an element of the input.

    Where a size is not static, this has to hold for every size of at least 1.

    Args:
        view: the pool.
        whole: whether its windows have to lie in the image as a whole; it has no padding then.
    """
    axes = _axes(view)
    if axes is None or (whole and _is_larger(view, axes)):
        return False
    if all(axis.are_filled(None) for axis in axes):
        return True
    sizes = view.dims_in(0)[2:]
    return all(
        axis.are_filled(size if isinstance(size, int) else None)
        for axis, size in zip(axes, sizes, strict=True)
    )


def _is_larger(view: NodeView, axes: Sequence[_Axis]) -> bool:
    """Whether a window is larger than the image: the specification has none, onnxruntime one."""
    try:
        sizes = view.dims_in(0)[2:]
    except Refused:
        return False
    return any(
        isinstance(size, int) and size <= (axis.kernel - 1) * axis.dilation
        for axis, size in zip(axes, sizes, strict=False)
    )
