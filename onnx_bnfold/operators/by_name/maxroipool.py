"""MaxRoiPool: the largest element of each part of a region of an image."""

from __future__ import annotations

from onnx_bnfold.operators import costs
from onnx_bnfold.operators.positions import all_but_channels, along
from onnx_bnfold.operators.rules import Transparent, passes

ENTRIES = {
    # A part of a region that has no pixel is zero, which does not shift.
    "MaxRoiPool": Transparent(
        passes(along(all_but_channels), positive=True, shift=False),
        version=22,
        depth=costs.NO_POLYNOMIAL,
    ),
}
