"""Changes of parts as one change of the tensor that is made of them along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_bnfold.operators.affine import Affine, Float64


def joined(
    parts: Mapping[int, Affine], axis: int, starts: Sequence[int], filler: Affine | None = None
) -> Affine:
    """Return changes concatenated along ``axis``.

    Args:
        parts: the change of each part, counted from 0, of size 1 or the part's size along ``axis``;
            one that is missing has ``filler``.
        axis: of the concatenation.
        starts: of the parts along ``axis``, and the end of the last one.
        filler: varies only along axes that other parts vary along, and not along ``axis``; the
            identity by default.
    """
    whole = Affine.identity(0) if filler is None else filler
    some = [*parts.items()]
    if whole.is_identity:  # most parts of a wide Concat do not change
        some = [(i, part) for i, part in some if not part.is_identity] or some[:1]
    scales = {i: part.scale for i, part in some}
    shifts = {i: part.shift for i, part in some}
    return Affine.of(
        _joined(scales, axis, starts, whole.scale), _joined(shifts, axis, starts, whole.shift)
    )


def _joined(
    arrays: Mapping[int, Float64], axis: int, starts: Sequence[int], filler: Float64
) -> Float64:
    shapes = {(*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in arrays.values()}
    common = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    whole = np.empty((*common[:axis], starts[-1], *common[axis + 1 :]))
    whole[...] = filler
    for i, array in arrays.items():
        whole[(slice(None),) * axis + (slice(starts[i], starts[i + 1]),)] = array
    return whole
