"""The table of transparent operators: what each asks of its tensors when one of them changes.

What a rule is stands in ``rules``, and what an entry says beside it in ``entries.Operator``. An
entry speaks for the versions of its operator up to the one that it names: read what a newer one
changes before you raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs, data_movement, picks
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.broadcasting import alike, products, sums
from onnx_bnfold.operators.constant_operand import minus, over, plus, times
from onnx_bnfold.operators.entries import OUT, Combines, ConstantOperand, HandsOn, Rank
from onnx_bnfold.operators.late import late
from onnx_bnfold.operators.parts import concat, split
from onnx_bnfold.operators.rules import (
    Attributes,
    Known,
    Mover,
    Rule,
    Step,
    Transparent,
    passes,
)
from onnx_bnfold.reasons import Reason, Refused

if TYPE_CHECKING:
    from onnx_bnfold.operators.clamps import BoundsOf


def _mean_takes_shift(view: NodeView) -> bool:
    """Whether an AveragePool divides by the number of real elements, one or more, everywhere."""
    pads = view.attribute("auto_pad", "NOTSET")
    padded = pads.startswith("SAME") or (pads == "NOTSET" and any(view.attribute("pads", [])))
    counted = view.attribute("count_include_pad", 0) or view.opset < 7
    if counted and (padded or view.attribute("ceil_mode", 0)):
        return False
    return _fills_windows(view, whole=bool(counted))


def _fills_windows(view: NodeView, *, whole: bool = False) -> bool:
    from onnx_bnfold.operators.windows import are_filled  # many models pool nothing

    return are_filled(view, whole=whole)


def _samples_inside(view: NodeView) -> bool:
    """Whether a GridSample takes what lies outside of the image from its border."""
    return view.attribute("padding_mode", "zeros") in ("border", "reflection")


def _maxpool(view: NodeView, known: Known) -> Step:
    if len(view.writes) > 1 and view.graph.is_read(view.writes[1]):
        raise Refused(Reason.OPAQUE, view.label, "its indices output is used")
    if not _fills_windows(view):
        raise Refused(
            Reason.PADDING,
            view.label,
            "a window may lie wholly in its padding, where it gives the lowest number",
        )
    return passes(data_movement.windowed, positive=True)(view, known)


def _dropout(view: NodeView, known: Known) -> Step:
    training: Any
    if view.opset < 7:
        training = not view.attribute("is_test", 0)
    else:
        training = view.value(2)
    if training is not None and np.any(training):
        raise Refused(Reason.OPAQUE, view.label, "it is in training mode")
    return passes()(view, known)


def _clip(view: NodeView, known: Known) -> Step:
    """Clip to [0, ∞) is a ReLU; a bound that is neither 0 nor beyond all numbers does not pass."""
    bounded = [_is_bounded(view, 1, "min", -1.0), _is_bounded(view, 2, "max", 1.0)]
    return passes(positive=any(bounded), shift=not any(bounded))(view, known)


def _is_bounded(view: NodeView, slot: int, name: str, sign: float) -> bool:
    """Whether a side of Clip has the bound 0; otherwise no number of the tensor's type exceeds it.

    Args:
        view, slot, name, sign: see ``clamps.clip_bound``.

    Raises:
        Refused: it is another number, which a scale would have to move.
    """
    from onnx_bnfold.operators.clamps import clip_bound  # many models clip nothing

    bound = clip_bound(view, slot, name, sign)
    if bound not in (0, np.inf):
        which = "upper" if sign > 0 else "lower"
        raise Refused(Reason.OPAQUE, view.label, f"its {which} bound does not scale along")
    return bound == 0


def _hard_sigmoid(view: NodeView, known: Known) -> Step:
    raise Refused(Reason.OPAQUE, view.label, "its bounds, 0 and 1, do not scale along")


def _neg(view: NodeView, known: Known) -> Step:
    source = 0 if 0 in known.changes else OUT
    change = known.changes[source]
    return Step(({source: change, ~source: change.with_shift(-change.shift)},))


# --- the table ------------------------------------------------------------------------------


def _sum(rule: Rule, version: int, operand: ConstantOperand | None = None) -> Transparent:
    return Transparent(
        rule,
        symmetric=True,
        version=version,
        combines=Combines.SUM,
        operand=operand,
        rank=Rank.KEPT,
    )


def _product(
    rule: Rule, version: int, depth: costs.Depth | costs.DepthOf, operand: ConstantOperand
) -> Transparent:
    return Transparent(
        rule,
        symmetric=True,
        version=version,
        combines=Combines.PRODUCT,
        operand=operand,
        multiply_adds=costs.per_element,
        depth=depth,
        rank=Rank.KEPT,
    )


def _bent(
    rule: Rule,
    version: int,
    *,
    symmetric: bool = False,
    rectifies: bool = False,
    bounds: BoundsOf | None = None,
    own: tuple[int, ...] = (),
    attributes: Callable[[NodeView, Affine], Attributes] | None = None,
    is_alike: bool = False,
) -> Transparent:
    return Transparent(
        rule,
        symmetric,
        own=own,
        attributes=attributes,
        version=version,
        depth=costs.NO_POLYNOMIAL,
        rectifies=rectifies,
        bounds=bounds,
        is_alike=is_alike,
        rank=Rank.KEPT if rectifies or is_alike else None,
    )


def _homogeneous(
    rule: str, version: int, depth: costs.Depth | costs.DepthOf = costs.NO_POLYNOMIAL
) -> Transparent:
    return Transparent(late("homogeneous", rule), version=version, depth=depth, only_scales=True)


def _extremum(bounds: str) -> Transparent:
    rule = alike(positive=True)
    return _bent(rule, 13, symmetric=True, bounds=late("clamps", bounds), is_alike=True)


def _extremes(rule: Rule, version: int, *, picks_maxima: bool = False) -> Transparent:
    return Transparent(
        rule,
        version=version,
        depth=costs.NO_POLYNOMIAL,
        hands_on=HandsOn.SOME,
        picks_maxima=picks_maxima,
    )


def _swallower(rule: Rule, version: int, *, only_shifts: bool = False) -> Transparent:
    return Transparent(
        rule,
        version=version,
        swallows=True,
        only_shifts=only_shifts,
        depth=costs.NO_POLYNOMIAL,
    )


def _scattering(rule: Rule, version: int) -> Transparent:
    return Transparent(rule, data=(0, 2), version=version, depth=costs.scattering)


def _mean(rule: Rule, version: int) -> Transparent:
    return Transparent(rule, version=version, depth=costs.ONE_LEVEL, hands_on=HandsOn.BETWEEN)


def _moved(move: Mover, version: int, rank: Rank | None = None) -> Transparent:
    return Transparent(passes(move), version=version, hands_on=HandsOn.ALL, rank=rank)


def _converted(move: Mover, version: int) -> Transparent:
    return Transparent(
        passes(move), version=version, hands_on=HandsOn.ALL, retypes=True, rank=Rank.KEPT
    )


def _picked(
    move: Mover,
    version: int,
    depth: costs.Depth | costs.DepthOf = costs.FREE,
    *,
    drops: bool = False,
    rank: Rank | None = None,
) -> Transparent:
    rule = passes(move, drops=drops)
    return Transparent(rule, version=version, depth=depth, hands_on=HandsOn.SOME, rank=rank)


def _interpolated(version: int) -> Transparent:
    return Transparent(
        passes(data_movement.resized),
        version=version,
        depth=costs.interpolation,
        hands_on=HandsOn.BETWEEN,
    )


_rectifier = passes(positive=True, shift=False)

RULES: Mapping[str, Transparent] = {
    "Abs": _homogeneous("magnitude", 13),
    "Add": _sum(sums(1, 1), 14, ConstantOperand(plus)),
    "ArgMax": _swallower(late("swallowing", "argmax"), 13),
    "ArgMin": _swallower(late("swallowing", "argmax"), 13),
    "AveragePool": _mean(passes(data_movement.windowed, shift=_mean_takes_shift), 22),
    "Cast": _converted(data_movement.cast, 28),
    "CastLike": _converted(data_movement.cast_like, 25),
    "Clip": _bent(_clip, 13, rectifies=True, bounds=late("clamps", "of_clip")),
    "Compress": _picked(late("positions", "compressed"), 28),
    "Concat": Transparent(concat, version=13, symmetric=True, hands_on=HandsOn.ALL, rank=Rank.KEPT),
    "CumSum": Transparent(passes(late("positions", "summed_up"), shift=False), version=14),
    "DepthToSpace": _moved(data_movement.depth_to_space, 28),
    "Div": _product(products(-1), 14, costs.division, ConstantOperand(over, data=(0,))),
    "Dropout": Transparent(_dropout, version=22, hands_on=HandsOn.ALL, rank=Rank.KEPT),
    "Expand": _moved(data_movement.expanded, 13, Rank.KEPT),
    "Flatten": _moved(data_movement.reshaped, 25),
    "Gather": _picked(picks.gathered, 13, costs.lookup, drops=True, rank=Rank.PICKED),
    "GatherElements": _picked(late("positions", "picked_elements"), 13, costs.lookup),
    "GatherND": _picked(late("positions", "picked_slices"), 13, costs.lookup),
    "GlobalAveragePool": _mean(passes(data_movement.windowed), 22),
    "GlobalLpPool": _homogeneous("norm_of_windows", 22),
    "GlobalMaxPool": _extremes(
        passes(data_movement.windowed, positive=True), 22, picks_maxima=True
    ),
    "GridSample": Transparent(
        passes(data_movement.windowed, shift=_samples_inside), version=22, depth=costs.sampling
    ),
    "HardSigmoid": _bent(_hard_sigmoid, 22, bounds=late("clamps", "of_hard_sigmoid")),
    "Hardmax": _swallower(late("swallowing", "hardmax"), 13),
    "Identity": _moved(data_movement.unmoved, 25, Rank.KEPT),
    "LeakyRelu": _bent(
        late("slopes", "leaky"),
        16,
        rectifies=True,
        attributes=late("slopes", "leaky_attributes"),
    ),
    "LogSoftmax": _swallower(late("swallowing", "softmax"), 13, only_shifts=True),
    "LpPool": _homogeneous("norm_of_windows", 22),
    "Max": _extremum("of_max"),
    "MaxPool": _extremes(_maxpool, 22, picks_maxima=True),
    "Mean": Transparent(
        sums(averages=True),
        symmetric=True,
        version=13,
        combines=Combines.SUM,
        averages=True,
        depth=costs.ONE_LEVEL,
    ),
    "Min": _extremum("of_min"),
    "Mul": _product(products(1), 14, costs.ONE_LEVEL, ConstantOperand(times)),
    "Neg": Transparent(_neg, version=13),
    "PRelu": _bent(late("slopes", "sloped"), 16, rectifies=True, own=(1,)),
    "Pad": _picked(picks.padded, 25, drops=True, rank=Rank.KEPT),
    "Pow": _homogeneous("power", 15, costs.power),
    "Reciprocal": _homogeneous("reciprocal", 13),
    "ReduceL1": _homogeneous("sum_of_magnitudes", 18),
    "ReduceL2": _homogeneous("norm", 18),
    "ReduceMax": _extremes(passes(data_movement.reduced, positive=True), 20),
    "ReduceMean": _mean(passes(data_movement.reduced), 18),
    "ReduceMin": _extremes(passes(data_movement.reduced, positive=True), 20),
    "ReduceSum": Transparent(passes(data_movement.summed), version=13),
    "ReduceSumSquare": _homogeneous("sum_of_squares", 18, costs.ONE_LEVEL),
    "Relu": _bent(_rectifier, 14, rectifies=True, bounds=late("clamps", "of_relu")),
    "Reshape": _moved(data_movement.reshaped, 25, Rank.LISTED),
    "Resize": _interpolated(19),
    "ReverseSequence": _moved(late("positions", "reversed_in_time"), 28),
    "RoiAlign": Transparent(late("positions", "pooled_regions"), version=22, depth=costs.regions),
    "Scatter": _scattering(late("positions", "scattered_elements"), 9),
    "ScatterElements": _scattering(late("positions", "scattered_elements"), 18),
    "ScatterND": _scattering(late("positions", "scattered_slices"), 18),
    "Sign": _homogeneous("sign", 13),
    "Slice": _picked(picks.sliced, 13, drops=True, rank=Rank.KEPT),
    "Softmax": _swallower(late("swallowing", "softmax"), 13, only_shifts=True),
    "SpaceToDepth": _moved(data_movement.space_to_depth, 28),
    "Split": Transparent(split, version=18, parted=True, hands_on=HandsOn.ALL, rank=Rank.KEPT),
    "Sqrt": _homogeneous("square_root", 13),
    "Squeeze": _moved(data_movement.squeezed, 25),
    "Sub": _sum(sums(1, -1), 14, ConstantOperand(minus)),
    "Sum": _sum(sums(), 13),
    "Tile": _moved(picks.tiled, 13),
    "TopK": _bent(late("swallowing", "topk"), 24),
    "Transpose": _moved(data_movement.transposed, 25, Rank.KEPT),
    "Unsqueeze": _moved(data_movement.unsqueezed, 25, Rank.ADDED),
    "Upsample": _interpolated(9),
    "Where": Transparent(
        alike(slots=(1, 2)),
        data=(1, 2),
        version=16,
        depth=costs.selection,
        is_alike=True,
        rank=Rank.KEPT,
    ),
}
