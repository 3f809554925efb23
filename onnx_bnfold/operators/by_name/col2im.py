"""Col2Im: adds up the blocks of an image, which lie in the columns of a matrix."""

from __future__ import annotations

import math

import numpy as np

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.data_movement import bounded, refuse_axis, varying
from onnx_bnfold.operators.rules import Transparent, passes
from onnx_bnfold.reasons import Reason, Refused

_IMAGE, _BLOCK = 1, 2  # inputs


def _added_up(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Move a change of columns, ``(N, C * block, L)``, to the image, ``(N, C, H, W)``, or back."""
    for axis in varying(change):
        if axis > 1:
            raise refuse_axis(view, axis)
    elements = math.prod(_sizes(view, _BLOCK))
    if len(_sizes(view, _IMAGE)) != 2:
        sentence = "onnxruntime adds up blocks of three axes in other places than the specification"
        raise Refused(Reason.OPAQUE, view.label, sentence)

    def columns(array: Float64) -> Float64:
        array = np.squeeze(array, 3)
        return np.repeat(array, elements, axis=1) if array.shape[1] > 1 else array

    if forward:
        moved = change.map(lambda a: np.expand_dims(a[:, ::elements], 3))
        if not moved.map(columns).agrees_with(change):
            raise refuse_axis(view, 1)
    else:
        moved = change.map(columns)
    if not change.has_shift:
        return moved
    count = _overlap(view)
    return moved.with_shift(moved.shift * count if forward else moved.shift / count)


def _overlap(view: NodeView) -> int:
    """Return of how many elements each position is the sum.

    Raises:
        Refused: it is not the same number everywhere.
    """
    image, block = _sizes(view, _IMAGE), _sizes(view, _BLOCK)
    ones = [1] * len(image)
    strides, dilations = view.attribute("strides", ones), view.attribute("dilations", ones)
    pads = view.attribute("pads", [0] * 2 * len(image))
    ends = zip(pads[: len(image)], pads[len(image) :], strict=True)
    found = 1
    for size, taps, stride, dilation, (front, back) in zip(
        image, block, strides, dilations, ends, strict=True
    ):
        room = size + front + back - dilation * (taps - 1) - 1
        bounded(view, size + (room // stride + 1) * taps)
        starts = np.arange(0, room + 1, stride)[:, np.newaxis] - front
        reached = (starts + dilation * np.arange(taps)).ravel()
        inside = reached[(reached >= 0) & (reached < size)]
        counts = np.bincount(inside, minlength=size)
        if not counts.all() or (counts != counts[0]).any():
            raise Refused(
                Reason.NO_SHIFT,
                view.label,
                "its positions are sums of different numbers of elements, and a shift would differ "
                "between them",
            )
        found *= int(counts[0])
    return found


def _sizes(view: NodeView, slot: int) -> list[int]:
    sizes = view.integers(slot, None)
    if sizes is None:
        raise Refused(
            Reason.PARAMETERS_NOT_CONSTANT, view.label, "its image or block shape is not constant"
        )
    return sizes


ENTRIES = {"Col2Im": Transparent(passes(_added_up), version=18)}
