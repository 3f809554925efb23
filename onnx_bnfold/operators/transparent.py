"""The rule table: what a transparent operator asks of its tensors when one of them changes.

A rule looks at a node, of some of whose ports a change is known, and returns every way to complete
it: the changes of all its data ports. A port is an input slot (0, 1, …) or, for outputs, ``~slot``
(-1 is output 0). A rule that has no choice, whatever becomes known later, says so with ``certain``;
the planner leaves the others for last. A rule refuses by raising ``Refused``.

To support an operator, add one entry to ``RULES`` and its must-fold and must-refuse tests. What an
entry says beside its rule is in ``entries.Operator``. It
speaks for the versions of its operator up to the one that it names: read what a newer one changes
before you raise it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_bnfold.model.float_formats import FORMATS
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs, data_movement, picks
from onnx_bnfold.operators.affine import (
    AGREEMENT,
    CANCELLED,
    Affine,
    Float64,
    close,
    joined,
    summed,
)
from onnx_bnfold.operators.entries import OUT, Combines, ConstantOperand, Operator
from onnx_bnfold.reasons import Reason, Refusal, Refused

Ports = Mapping[int, Affine]


@dataclass(frozen=True)
class Step:
    """The ways to complete a node: each gives every data port its change."""

    alternatives: tuple[Ports, ...]
    certain: bool = True


UNDECIDED = Step((), certain=False)


@dataclass(frozen=True)
class Known:
    """What is known of a node's ports when its rule is asked.

    Attributes:
        changes: the ports whose change is decided.
        constant: returns the present elements of a constant input, float64.
        deciding: False while there is a choice that may be taken away by what follows; a rule may
            then return ``UNDECIDED`` and save the work of listing the alternatives.
    """

    changes: Ports
    constant: Callable[[int], Float64]
    deciding: bool = True


Rule = Callable[[NodeView, Known], Step]


@dataclass(eq=False, repr=False)
class Transparent(Operator):
    """An operator through which changes pass.

    Attributes:
        rule: says how.
        symmetric: whether all of its inputs are data; else the first is, the others are parameters.
        parted: whether all of its outputs are data; else the first is, the others tell of it, as
            a mask or indices do, and stay as they are.
    """

    rule: Rule
    symmetric: bool = False
    parted: bool = False


Mover = Callable[[NodeView, Affine, bool], Affine]


def passes(
    move: Mover = data_movement.unmoved,
    *,
    positive: bool = False,
    shift: bool | Callable[[NodeView], bool] = True,
) -> Rule:
    """Make the rule of an operator whose input 0 and output 0 carry the same change.

    Args:
        move: moves a change from the input to the output (``True``) or back, as the data is moved.
        positive: only scales that are not negative pass.
        shift: whether a shift passes.
    """

    def rule(view: NodeView, known: Known) -> Step:
        source = 0 if 0 in known.changes else OUT
        change = known.changes[source]
        other = move(view, change, source == 0)
        require(view, change, positive, shift if isinstance(shift, bool) else shift(view))
        certain = source == 0 or move not in picks.PARTIAL
        return Step(({source: change, ~source: other},), certain)

    return rule


def require(view: NodeView, change: Affine, positive: bool, shift: bool) -> None:
    """Refuse a negative scale or a shift where the operator takes none."""
    if positive and (change.scale < 0).any():
        raise Refused(
            Reason.NEEDS_POSITIVE_SCALE,
            view.label,
            "only a positive scale passes it, and gamma is negative in some channel",
        )
    if not shift and change.has_shift:
        raise Refused(Reason.NO_SHIFT, view.label, "a scale passes it but a shift does not")


# --- several operands -----------------------------------------------------------------------


def _inputs(view: NodeView) -> list[int]:
    return [slot for slot, name in enumerate(view.reads) if name]


def _lift(change: Affine, rank: int) -> Affine:
    """Write an operand's change in the rank of the broadcast result."""
    missing = rank - change.rank
    return change.map(lambda a: a.reshape((1,) * missing + a.shape)) if missing else change


# Elements up to which a constant may grow along several axes: less than 5 kB for a whole node.
LARGEST_GROWN = 1024


def _lower(view: NodeView, slot: int, change: Affine) -> Affine:
    """Write a change of the broadcast result as one of an operand.

    A constant may grow to one value per position of an axis, as the parameters of a BN are, but
    only if it stays small to one per element; a computed operand must have the change's axes.
    """
    constant = view.constant(slot)
    if constant is not None:
        if not change.is_ordinary:
            raise Refused(
                Reason.PRECISION, view.label, "a scale of zero cannot be taken out of its constant"
            )
        grown = np.broadcast_shapes(constant.dims, change.shape)  # ValueError where they disagree
        if math.prod(grown) > max(constant.size, LARGEST_GROWN, *change.shape):
            raise Refused(
                Reason.NOT_SMALLER,
                view.label,
                "its constant would have to grow to one value per element of the tensor",
            )
        return change
    dims = view.dims_in(slot)
    missing = change.rank - len(dims)
    aligned: tuple[Any, ...] = (1,) * missing + dims
    for size, dim in zip(change.shape, aligned, strict=True):
        if size > 1 and dim != size:
            raise Refused(
                Reason.UNKNOWN_SHAPE if not isinstance(dim, int) else Reason.AXES,
                view.label,
                f"its operand {view.name_in(slot)!r} is broadcast, or of unknown size, along an "
                "axis on which the change varies",
            )
    return change.map(lambda a: a.reshape(a.shape[missing:])) if missing else change


def _operands(view: NodeView, known: Known) -> tuple[int, dict[int, Affine]]:
    """Return the rank of the result and all known changes in that rank."""
    if view.opset < 7:
        raise Refused(
            Reason.OPAQUE,
            view.label,
            "before opset 7 operands broadcast by attributes; convert the model with "
            "onnx.version_converter first",
        )
    rank = len(view.dims_out(0))
    return rank, {port: _lift(change, rank) for port, change in known.changes.items()}


def _complete(view: NodeView, lifted: Mapping[int, Affine]) -> Ports:
    return {p: c if p == OUT else _lower(view, p, c) for p, c in lifted.items()}


def _completions(view: NodeView, proposals: list[dict[int, Affine]], *, certain: bool) -> Step:
    """Keep the proposals whose changes their operands can carry."""
    found: list[Ports] = []
    refusal: Refusal | None = None
    for proposal in proposals:
        try:
            found.append(_complete(view, proposal))
        except Refused as refused:
            refusal = refusal or refused.refusal
    if found:
        return Step(tuple(found), certain)
    if refusal is not None:
        raise Refused.again(refusal)
    raise Refused(Reason.CONFLICT, view.label, "none of its operands can take the shift")


def _cost_to_change(view: NodeView, port: int) -> tuple[int, int]:
    """Order ports by how cheaply they take a change: constants, then private tensors."""
    if port == OUT:
        return (3, port)
    if view.constant(port) is not None:
        return (0, port)
    return (1 if view.graph.only_reader(view.name_in(port)) else 2, port)


def sums(*signs: int) -> Rule:
    """Make the rule of Add, Sub and Sum: one common scale; the shifts add up.

    Args:
        signs: the sign of each operand; all 1 if left out.
    """

    def rule(view: NodeView, known: Known) -> Step:
        rank, lifted = _operands(view, known)
        weight, first = _weights(view, signs)
        lifted = {p: c for p, c in lifted.items() if p in weight}
        scale = next(iter(lifted.values())).scale
        _same_scales(view, lifted, scale)
        terms = [-weight[p] * c.shift for p, c in lifted.items()]
        left = summed(*terms)
        free = sorted(
            (p for p in weight if p not in lifted), key=lambda p: _cost_to_change(view, p)
        )
        if not free:
            _balanced(view, terms, left)
            return Step((known.changes,))
        still = {p: Affine.of(scale, np.zeros((1,) * rank)) for p in free}
        proposals = [{**lifted, **still}]
        if left.any():
            # A tensor that is subtracted from itself takes no shift.
            takers = [p for p in free if weight[p]]
            proposals = [{**lifted, **still, p: Affine.of(scale, left / weight[p])} for p in takers]
        whole = [{**p, **{slot: p[rep] for slot, rep in first.items()}} for p in proposals]
        return _completions(view, whole, certain=len(free) == 1)

    return rule


def _weights(view: NodeView, signs: tuple[int, ...]) -> tuple[dict[int, int], dict[int, int]]:
    """Return how often each operand counts in ``sum - output = 0``, and each slot's first port.

    A tensor that is added to itself is one operand that counts twice.
    """
    weight: dict[int, int] = {}
    first: dict[int, int] = {}
    seen: dict[str, int] = {}
    for position, slot in enumerate(_inputs(view)):
        name = view.name_in(slot)
        first[slot] = slot if view.constant(slot) is not None else seen.setdefault(name, slot)
        sign = signs[position] if signs else 1
        weight[first[slot]] = weight.get(first[slot], 0) + sign
    return weight | {OUT: -1}, first


def _same_scales(view: NodeView, lifted: Ports, scale: Float64) -> None:
    if not all(close(scale, c.scale) for c in lifted.values()):
        raise Refused(Reason.CONFLICT, view.label, "its operands would need different scales")


def _balanced(view: NodeView, terms: Sequence[Float64], left: Float64) -> None:
    size = sum(map(np.abs, terms[1:]), np.abs(terms[0]))
    if (np.abs(left) > AGREEMENT * size).any():
        raise Refused(Reason.CONFLICT, view.label, "the shifts of its operands do not add up")


def products(power: int) -> Rule:
    """Make the rule of Mul (``power`` 1) and Div (``power`` -1): scales multiply.

    A shift passes only to or from an operand that the other, a constant, multiplies.
    """

    def rule(view: NodeView, known: Known) -> Step:
        rank, lifted = _operands(view, known)
        if power < 0 and view.constant(1) is not None:
            require_divisor(view, known.constant(1))
        powers = {0: 1, 1: power, OUT: -1}
        for change in lifted.values():
            _divisible(view, change)
        scales = {p: c.scale for p, c in lifted.items()}
        free = sorted(
            (p for p in powers if p not in lifted), key=lambda p: _cost_to_change(view, p)
        )
        left = one = np.ones((1,) * rank)
        for port, scale in scales.items():
            left = left * scale ** powers[port]
        left = np.where(np.abs(left - 1) <= CANCELLED, 1.0, left)
        if not free and not close(left, np.broadcast_to(one, left.shape)):
            raise Refused(Reason.CONFLICT, view.label, "the scales of its operands disagree")
        takers = free if (left != 1).any() else free[:1]
        ones = dict.fromkeys(free, one)
        proposals = [{**scales, **ones, p: left ** -powers[p]} for p in takers] or [scales]
        return _completions(
            view,
            [_with_shifts(view, known, lifted, proposal, power) for proposal in proposals],
            certain=len(free) <= 1,
        )

    return rule


def require_divisor(view: NodeView, constant: Float64) -> None:
    """Refuse a node that divides by a constant of which some element is zero."""
    if not constant.all():
        raise Refused(
            Reason.OPAQUE, view.label, "the constant that it divides by is zero in some element"
        )


def _divisible(view: NodeView, change: Affine) -> None:
    if not change.is_invertible or not change.is_ordinary:
        raise Refused(
            Reason.PRECISION, view.label, "the scale is zero or too small to be divided by"
        )


def _with_shifts(
    view: NodeView, known: Known, lifted: Ports, scales: dict[int, Float64], power: int
) -> dict[int, Affine]:
    """Give the data operand and the result of a product by a constant their shifts."""
    rank = next(iter(scales.values())).ndim
    zero = np.zeros((1,) * rank)
    shifts = {p: (lifted[p].shift if p in lifted else zero) for p in scales}
    if not any(s.any() for s in shifts.values()):
        return {p: Affine.of(s, zero) for p, s in scales.items()}
    constants = [p for p in (0, 1) if view.constant(p) is not None]
    if len(constants) != 1 or (power < 0 and constants[0] == 0):
        raise Refused(Reason.NO_SHIFT, view.label, "a scale passes it but a shift does not")
    factor = known.constant(constants[0]) ** power
    factor = factor.reshape((1,) * (rank - factor.ndim) + factor.shape)
    data = 1 - constants[0]
    # With y = f * x and t' = s * (t + e) for both, e_y = f * e_x.
    if data in lifted:
        moved = scales[OUT] * factor * lifted[data].shift / scales[data]
        if OUT in lifted and not close(moved, shifts[OUT]):
            raise Refused(Reason.CONFLICT, view.label, "the shifts of its sides do not agree")
        shifts[OUT] = moved
    else:
        if not Affine(factor, zero).is_invertible:
            raise Refused(Reason.PRECISION, view.label, "its constant is zero or very small")
        shifts[data] = scales[data] * shifts[OUT] / (scales[OUT] * factor)
    return {p: Affine.of(s, shifts[p]) for p, s in scales.items()}


def _extremum(view: NodeView, known: Known) -> Step:
    """Max and Min: all operands and the result carry one change, its scale positive."""
    _, lifted = _operands(view, known)
    change = next(iter(lifted.values()))
    require(view, change, positive=True, shift=True)
    return _completions(view, [dict.fromkeys((*_inputs(view), OUT), change)], certain=True)


def _concat(view: NodeView, known: Known) -> Step:
    slots = _inputs(view)
    if _is_open(known, len(slots), OUT):
        return UNDECIDED
    axis = data_movement.axis_of(view, view.attribute("axis", 1), len(view.dims_out(0)))
    sizes = [data_movement.size(view, view.dims_in(slot), axis) for slot in slots]
    return _parts(known, slots, OUT, axis, sizes)


def _split(view: NodeView, known: Known) -> Step:
    dims = view.dims_in(0)
    axis = data_movement.axis_of(view, view.attribute("axis", 0), len(dims))
    slots = [slot for slot, name in enumerate(view.writes) if name]
    if len(slots) != len(view.writes):
        raise Refused(Reason.OPAQUE, view.label, "one of its outputs is left out")
    if _is_open(known, len(slots), 0):
        return UNDECIDED
    sizes = [data_movement.size(view, view.dims_out(slot), axis) for slot in slots]
    return _parts(known, [~slot for slot in slots], 0, axis, sizes)


def _is_open(known: Known, parts: int, whole: int) -> bool:
    return not known.deciding and whole not in known.changes and len(known.changes) < parts


def _parts(known: Known, parts: list[int], whole: int, axis: int, sizes: list[int]) -> Step:
    """Complete a tensor and its parts along an axis (Concat, and Split its mirror image)."""
    if whole in known.changes:
        change = known.changes[whole]
        offsets = np.cumsum([0, *sizes])
        found = {
            part: _cut(change, axis, int(offsets[i]), int(offsets[i + 1]))
            for i, part in enumerate(parts)
        }
        return Step(({whole: change, **found},))
    change = next(iter(known.changes.values()))
    fillers = [Affine.identity(change.rank)]
    if change.shape[axis] == 1 and len(known.changes) < len(parts):
        fillers.insert(0, change)  # the same change for all, which need not vary along the axis
    alternatives = []
    for filler in fillers:
        complete = {p: known.changes.get(p, filler) for p in parts}
        total = joined([known.changes.get(p) for p in parts], axis, sizes, filler)
        alternatives.append({**complete, whole: total})
    return Step(tuple(alternatives), certain=len(known.changes) == len(parts))


def _cut(change: Affine, axis: int, start: int, stop: int) -> Affine:
    return change.map(lambda a: data_movement.cut(a, axis, slice(start, stop)))


def _mean_takes_shift(view: NodeView) -> bool:
    """Whether an AveragePool divides by the number of real elements, one or more, everywhere."""
    pads = view.attribute("auto_pad", "NOTSET")
    padded = pads.startswith("SAME") or (pads == "NOTSET" and any(view.attribute("pads", [])))
    counted = view.attribute("count_include_pad", 0) or view.opset < 7
    if counted and (padded or view.attribute("ceil_mode", 0)):
        return False
    return _fills_windows(view)


def _fills_windows(view: NodeView) -> bool:
    from onnx_bnfold.operators.windows import are_filled  # many models pool nothing

    return are_filled(view)


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


# Before opset 11 a bound that is left out is float32's largest number, whatever the tensor's type.
_DEFAULT_BOUND = float(np.finfo(np.float32).max)


def _is_bounded(view: NodeView, slot: int, name: str, sign: float) -> bool:
    """Whether a side of Clip has the bound 0; otherwise no number of the tensor's type exceeds it.

    Args:
        view: the node.
        slot, name: of the input (opset 11 on) or the attribute.
        sign: 1 for the upper bound, -1 for the lower.

    Raises:
        Refused: it is another number, which a scale would have to move.
    """
    if view.opset >= 11:
        given = view.value(slot)
        if given is None:
            return False
        bound = float(given.astype(np.float64).reshape(()))
    else:
        bound = float(view.attribute(name, sign * _DEFAULT_BOUND))
    known = FORMATS.get(view.type_of(view.name_in(0)))
    if bound != 0 and known is None:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its input is not known to be a float")
    if known is not None and bound != 0 and not sign * bound >= known[0]:
        which = "upper" if sign > 0 else "lower"
        raise Refused(Reason.OPAQUE, view.label, f"its {which} bound does not scale along")
    return bound == 0


def _abs(view: NodeView, known: Known) -> Step:
    source = 0 if 0 in known.changes else OUT
    change = known.changes[source]
    require(view, change, positive=source == OUT, shift=False)
    return Step(({source: change, ~source: change.map(np.abs)},))


def _neg(view: NodeView, known: Known) -> Step:
    source = 0 if 0 in known.changes else OUT
    change = known.changes[source]
    return Step(({source: change, ~source: change.with_shift(-change.shift)},))


def data_slots(view: NodeView) -> tuple[int, ...]:
    """Return the inputs of a transparent node that carry data; the others are parameters."""
    return tuple(_inputs(view)) if RULES[str(view.op)].symmetric else (0,)


def data_outputs(view: NodeView) -> tuple[int, ...]:
    """Return the outputs of a transparent node that carry data."""
    return tuple(range(len(view.writes))) if RULES[str(view.op)].parted else (0,)


# --- a constant operand ---------------------------------------------------------------------


def _plus(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    return np.ones((1,) * value.ndim), value


def _minus(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    one = np.ones((1,) * value.ndim)
    return (one, -value) if data == 0 else (-one, value)


def _times(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    return value, np.zeros((1,) * value.ndim)


def _over(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    require_divisor(view, value)
    return 1 / value, np.zeros((1,) * value.ndim)


# --- the table ------------------------------------------------------------------------------


def _sum(rule: Rule, version: int, operand: ConstantOperand | None = None) -> Transparent:
    return Transparent(
        rule, symmetric=True, version=version, combines=Combines.SUM, operand=operand
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
    )


def _bent(
    rule: Rule, version: int, *, symmetric: bool = False, rectifies: bool = False
) -> Transparent:
    return Transparent(
        rule, symmetric, version=version, depth=costs.NO_POLYNOMIAL, rectifies=rectifies
    )


def _mean(rule: Rule, version: int) -> Transparent:
    return Transparent(rule, version=version, depth=costs.ONE_LEVEL)


_rectifier = passes(positive=True, shift=False)

RULES: Mapping[str, Transparent] = {
    "Abs": _bent(_abs, 13),
    "Add": _sum(sums(1, 1), 14, ConstantOperand(_plus)),
    "AveragePool": _mean(passes(data_movement.windowed, shift=_mean_takes_shift), 22),
    "Cast": Transparent(passes(data_movement.cast), version=28, retypes=True),
    "Clip": _bent(_clip, 13, rectifies=True),
    "Concat": Transparent(_concat, version=13, symmetric=True),
    "DepthToSpace": Transparent(passes(data_movement.depth_to_space), version=28),
    "Div": _product(products(-1), 14, costs.division, ConstantOperand(_over, data=(0,))),
    "Dropout": Transparent(_dropout, version=22),
    "Expand": Transparent(passes(data_movement.expanded), version=13),
    "Flatten": Transparent(passes(data_movement.reshaped), version=25),
    "Gather": Transparent(passes(picks.gathered), version=13, depth=costs.lookup),
    "GlobalAveragePool": _mean(passes(data_movement.windowed), 22),
    "GlobalMaxPool": _bent(passes(data_movement.windowed, positive=True), 22),
    "Identity": Transparent(passes(), version=25),
    "LeakyRelu": _bent(_rectifier, 16, rectifies=True),
    "Max": _bent(_extremum, 13, symmetric=True),
    "MaxPool": _bent(_maxpool, 22),
    "Min": _bent(_extremum, 13, symmetric=True),
    "Mul": _product(products(1), 14, costs.ONE_LEVEL, ConstantOperand(_times)),
    "Neg": Transparent(_neg, version=13),
    "PRelu": _bent(_rectifier, 16, rectifies=True),
    "Pad": Transparent(passes(picks.padded), version=25),
    "ReduceMax": _bent(passes(data_movement.reduced, positive=True), 20),
    "ReduceMean": _mean(passes(data_movement.reduced), 18),
    "ReduceMin": _bent(passes(data_movement.reduced, positive=True), 20),
    "ReduceSum": Transparent(passes(data_movement.summed), version=13),
    "Relu": _bent(_rectifier, 14, rectifies=True),
    "Reshape": Transparent(passes(data_movement.reshaped), version=25),
    "Resize": Transparent(passes(data_movement.resized), version=19, depth=costs.interpolation),
    "Slice": Transparent(passes(picks.sliced), version=13),
    "SpaceToDepth": Transparent(passes(data_movement.space_to_depth), version=28),
    "Split": Transparent(_split, version=18, parted=True),
    "Squeeze": Transparent(passes(data_movement.squeezed), version=25),
    "Sub": _sum(sums(1, -1), 14, ConstantOperand(_minus)),
    "Sum": _sum(sums(), 13),
    "Tile": Transparent(passes(picks.tiled), version=13),
    "Transpose": Transparent(passes(data_movement.transposed), version=25),
    "Unsqueeze": Transparent(passes(data_movement.unsqueezed), version=25),
    "Upsample": Transparent(passes(data_movement.resized), version=9, depth=costs.interpolation),
}
