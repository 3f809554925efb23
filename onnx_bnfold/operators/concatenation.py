"""Changes of parts as one change of the tensor that is made of them along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from onnx_bnfold.operators.affine import Affine, Float64


def joined(
    parts: Sequence[Affine | None], axis: int, sizes: Sequence[int], filler: Affine | None = None
) -> Affine:
    """Return changes concatenated along ``axis``.

    Args:
        parts: the changes, of size 1 or their part's size along ``axis``; None means ``filler``.
        axis: of the concatenation.
        sizes: of the parts along ``axis``.
        filler: varies only along axes that other parts vary along, and not along ``axis``; the
            identity by default.
    """
    whole = Affine.identity(0) if filler is None else filler
    some = [(i, part) for i, part in enumerate(parts) if part is not None]
    if whole.is_identity:  # most parts of a wide Concat do not change
        some = [(i, part) for i, part in some if not part.is_identity] or some[:1]
    scales = {i: part.scale for i, part in some}
    shifts = {i: part.shift for i, part in some}
    return Affine.of(
        _joined(scales, axis, sizes, whole.scale), _joined(shifts, axis, sizes, whole.shift)
    )


def _joined(
    arrays: Mapping[int, Float64], axis: int, sizes: Sequence[int], filler: Float64
) -> Float64:
    shapes = {(*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in arrays.values()}
    common = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    whole = np.empty((*common[:axis], sum(sizes), *common[axis + 1 :]))
    whole[...] = filler
    starts = list(accumulate(sizes, initial=0))
    for i, array in arrays.items():
        whole[(slice(None),) * axis + (slice(starts[i], starts[i + 1]),)] = array
    return whole
