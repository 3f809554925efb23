"""Reading the parameters of BatchNormalization nodes, of every version of the operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnx_bnfold.arrays import Array, data_type_of
from onnx_bnfold.model.node_view import FLOATS, NodeView, overridable
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.batchnorm import EQUAL_SCALES, PARAMETERS, BatchNorm
from onnx_bnfold.operators.entries import Absorbing
from onnx_bnfold.reasons import Reason, Refusal, Refused

VERSION = 15  # the newest of the operator that is known here
# The specification's default, as the float32 an attribute holds.
DEFAULT_EPSILON = float(np.float32(1e-5))


def read_bns(views: Sequence[NodeView]) -> list[BatchNorm | Refusal]:
    """Read BatchNormalizations; thousands of short vectors at a time are as soon done as one.

    Args:
        views: of the nodes, all of one graph.

    Returns:
        For each node its coefficients, or why it has none: it is in training mode, not per
        channel, or its parameters are unusable.
    """
    found: dict[int, BatchNorm | Refusal] = {}
    epsilons: dict[int, float] = {}
    for position, view in enumerate(views):
        try:
            epsilons[position] = _epsilon(view)
        except Refused as refused:
            found[position] = refused.refusal
    for positions, parameters in _parameters(views, [*epsilons], found):
        known = [epsilons[position] for position in positions]
        bns = _bns([views[position] for position in positions], parameters, known)
        for position, table, bn in zip(positions, parameters, bns, strict=True):
            found[position] = bn or _unusable(views[position], table, epsilons[position])
    return [found[position] for position in range(len(views))]


def read_bn(view: NodeView) -> BatchNorm:
    """Read one BatchNormalization.

    Raises:
        Refused: see ``read_bns``.
    """
    (found,) = read_bns([view])
    if isinstance(found, Refusal):
        raise Refused.again(found)
    return found


def _bns(
    views: Sequence[NodeView], parameters: Array, epsilons: Sequence[float]
) -> Iterator[BatchNorm | None]:
    """Yield the coefficients of BNs of one size, None where they are no finite numbers.

    Args:
        views: the nodes.
        parameters: ``(BNs, 4, C)``, as the operator takes them.
        epsilons: one per BN.
    """
    scale, bias, mean, variance = parameters.astype(np.float64).swapaxes(0, 1)
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + np.array(epsilons)[:, None])
        a = scale / deviation
        b = bias - mean * a
        spread = np.sqrt(np.maximum(variance, 0))
        offset, peak = np.abs(a * mean), np.abs(bias) + np.abs(a) * spread
        cancelled = np.where(offset > 0, offset / peak, 0)
    good = np.isfinite(deviation) & (deviation > 0) & np.isfinite(a) & np.isfinite(b)
    usable, worst = good.all(axis=1).tolist(), cancelled.max(axis=1, initial=0).tolist()
    tables = np.stack((a, b, mean, deviation, spread, bias), axis=1)
    for view, table, is_usable, epsilon, cancellation in zip(
        views, tables, usable, epsilons, worst, strict=True
    ):
        yield BatchNorm(view, table, epsilon, cancellation) if is_usable else None


def _parameters(
    views: Sequence[NodeView], positions: Sequence[int], found: dict[int, BatchNorm | Refusal]
) -> Iterator[tuple[list[int], Array]]:
    """Yield the parameters of BNs.

    Args:
        views: of nodes.
        positions: of those that are wanted.
        found: gets the reasons for which a BN has none.

    Yields:
        The positions of BNs of one size and type, and their parameters, ``(BNs, 4, C)``.
    """
    left = dict.fromkeys(positions)
    if positions:
        names = [views[position].reads[1:5] for position in positions]
        for rows, elements in views[0].constants.rows(names):
            if elements.ndim == 3 and data_type_of(elements.dtype) in FLOATS:
                some = [positions[row] for row in rows]
                for position in some:
                    del left[position]
                yield some, elements
    for position in left:
        try:
            yield [position], _parameters_of(views[position])[None]
        except Refused as refused:
            found[position] = refused.refusal


def _epsilon(view: NodeView) -> float:
    """Return the attribute of a node that has coefficients.

    Raises:
        Refused: it has none, whatever its parameters are.
    """
    _require_inference(view)
    if EQUAL_SCALES in str(view.node.doc_string):
        raise Refused(
            Reason.EQUALIZED,
            view.label,
            "--equalize has put its scale into its variance, which says no more how its input is "
            "spread; fold the original model",
        )
    return float(view.attribute("epsilon", DEFAULT_EPSILON))


def _parameters_of(view: NodeView) -> Array:
    """Return the parameters of any node, ``(4, C)`` float64.

    Raises:
        Refused: they are no constant vectors of one length.
    """
    values = [_parameter(view, i) for i in range(4)]
    shape = values[0].shape
    if len(shape) != 1 or any(value.shape != shape for value in values):
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "its four parameters are not vectors of one length; repair the model",
        )
    return np.array([value.astype(np.float64) for value in values])


def _unusable(view: NodeView, parameters: Array, epsilon: float) -> Refusal:
    """Say which of the parameters of a node, ``(4, C)``, are no usable numbers."""
    total = parameters[3].astype(np.float64) + epsilon
    if not np.isfinite(total).all():
        return Refusal(
            Reason.NOT_FINITE, view.label, "its variance is infinite or NaN; repair the model"
        )
    if (total <= 0).any():
        channel = int(np.argmin(total))
        return Refusal(
            Reason.BAD_VARIANCE,
            view.label,
            f"input_var + epsilon is not positive in channel {channel}; repair the model",
        )
    return Refusal(
        Reason.NOT_FINITE,
        view.label,
        "a parameter is infinite or NaN; retrain or repair the model",
    )


def _require_inference(view: NodeView) -> None:
    view.require_version(VERSION)
    if view.opset < 7:
        training = not view.attribute("is_test", 0)
    else:
        training = bool(view.attribute("training_mode", 0))
    if training:
        name = "is_test=0" if view.opset < 7 else "training_mode=1"
        if _writes_over_shared(view):
            raise Refused(
                Reason.PARAMETERS_NOT_CONSTANT,
                view.label,
                f"{name}: onnxruntime writes its statistics over its mean and variance, which are "
                "read elsewhere, too, so that results change from run to run; give it a mean and a "
                "variance that nothing else reads, and it is a constant",
            )
        why = "statistics are computed at run time; export the model in eval mode"
        raise Refused(Reason.TRAINING_MODE, view.label, f"{name}: {why}")
    if any(view.writes[1:]):
        raise Refused(
            Reason.EXTRA_OUTPUTS,
            view.label,
            "its statistics outputs are used, which makes it a training node; export the model "
            "in eval mode",
        )
    if view.opset < 9 and not view.attribute("spatial", 1):
        raise Refused(
            Reason.NOT_PER_CHANNEL,
            view.label,
            "spatial=0: it normalises every position on its own, not every channel",
        )


def _writes_over_shared(view: NodeView) -> bool:
    """Whether the results of a node of constants depend on how often the model has run."""
    are_constant = all(map(view.constant, range(len(view.reads))))
    return are_constant and not view.constants.is_computed(view.writes[0])


def _parameter(view: NodeView, index: int) -> Array:
    meaning, name = PARAMETERS[index], view.name_in(index + 1)
    data_type = view.constants.data_type(name)
    if data_type is None:
        if name in view.graph.overridable:
            raise Refused(Reason.OVERRIDABLE_INITIALIZER, view.label, overridable(name))
        if view.graph.is_of_function and name in view.graph.inputs:
            why = "is an input of its function and may differ from call to call"
        else:
            why = (
                "is not a constant of the model, so it may change from run to run; export the "
                "model with constant parameters"
            )
        raise Refused(Reason.PARAMETERS_NOT_CONSTANT, view.label, f"its {meaning} {name!r} {why}")
    if data_type not in FLOATS:
        raise Refused(
            Reason.UNSUPPORTED_TYPE, view.label, f"its {meaning} {name!r} is not of a float type"
        )
    return view.constants.value(name)


ENTRY = Absorbing(
    read_bn,
    linear_in=((1, 2),),
    parameters=(3, 4),
    data_slot=0,
    version=VERSION,
    multiply_adds=costs.per_element,
    depth=costs.ONE_LEVEL,
)
