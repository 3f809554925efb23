"""Rules of operators of several operands that broadcast.

Sums, products, extrema, and Where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from onnx_bnfold.model.graph import Dims
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import AGREEMENT, CANCELLED, Affine, Float64, close, summed
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.rules import (
    MOST_BRANCHES,
    Known,
    Ports,
    Rule,
    Step,
    Variant,
    inputs,
    require,
    require_divisible,
    require_ordinary,
)
from onnx_bnfold.reasons import Reason, Refusal, Refused

# Elements up to which a constant may grow along several axes: less than 5 kB for a whole node.
LARGEST_GROWN = 1024
_NOTHING: Ports = MappingProxyType({})


def _lift(change: Affine, rank: int) -> Affine:
    """Write an operand's change in the rank of the broadcast result."""
    missing = rank - change.rank
    return change.map(lambda a: a.reshape((1,) * missing + a.shape)) if missing else change


def lower(view: NodeView, slot: int, change: Affine) -> Affine:
    """Write a change of the broadcast result as one of an operand.

    A constant may grow to one value per position of an axis, as the parameters of a BN are, but
    only if it stays small to one per element; a computed operand must have the change's axes.
    """
    constant = view.constant(slot)
    if constant is not None:
        require_ordinary(view, change)
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
    _require_broadcasting(view)
    rank = len(view.dims_out(0))
    return rank, {port: _lift(change, rank) for port, change in known.changes.items()}


def _require_broadcasting(view: NodeView) -> None:
    if view.opset < 7:
        raise Refused(
            Reason.OPAQUE,
            view.label,
            "before opset 7 operands broadcast by attributes; convert the model with "
            "onnx.version_converter first",
        )


def _completions(
    view: NodeView, proposals: Sequence[Ports], *, certain: bool, base: Ports = _NOTHING
) -> Step:
    """Keep the proposals whose changes their operands can carry.

    Args:
        view: the node.
        proposals: the changes of ports.
        certain: see ``Step``.
        base: the changes of ports that a proposal leaves out.
    """
    found: list[Ports] = []
    common, refused = _lowered(view, base)
    refusals: list[Refusal] = []
    for proposal in proposals:
        own, more = _lowered(view, proposal)
        wrong = {port: why for port, why in refused.items() if port not in proposal} | more
        if wrong:
            refusals += [wrong[port] for port in {**base, **proposal} if port in wrong][:1]
        else:
            found.append(Variant(common, own) if base else own)
    if found:
        return Step(tuple(found), certain)
    if refusals:
        raise Refused.again(refusals[0])
    raise Refused(Reason.CONFLICT, view.label, "none of its operands can take the shift")


def _lowered(view: NodeView, changes: Ports) -> tuple[dict[int, Affine], dict[int, Refusal]]:
    """Write changes of the broadcast result as those of the operands; or say why one cannot be."""
    found: dict[int, Affine] = {}
    refused: dict[int, Refusal] = {}
    for port, change in changes.items():
        try:
            found[port] = change if port == OUT else lower(view, port, change)
        except Refused as error:
            refused[port] = error.refusal
    return found, refused


def _cost_to_change(view: NodeView, port: int) -> tuple[int, int]:
    """Order ports by how cheaply they take a change: constants, then private tensors."""
    if port == OUT:
        return (3, port)
    if view.constant(port) is not None:
        return (0, port)
    return (1 if view.graph.only_reader(view.name_in(port)) else 2, port)


def sums(*signs: int, averages: bool = False) -> Rule:
    """Make the rule of Add, Sub, Sum and Mean: one common scale; the shifts add up.

    Args:
        signs: the sign of each operand; all 1 if left out.
        averages: whether the sum is divided by the number of operands.
    """

    def read(view: NodeView) -> _Sum:
        return _Sum.of(view, signs, averages=averages)

    def rule(view: NodeView, known: Known) -> Step:
        _require_broadcasting(view)
        node = view.once(read)
        weight, rank = node.weight, node.rank
        lifted = {p: _lift(c, rank) for p, c in known.changes.items() if p in weight}
        start = next(iter(lifted.values()))
        scale = start.scale
        _same_scales(view, lifted, scale)
        terms = [-weight[p] * c.shift for p, c in lifted.items() if c.has_shift]
        left = summed(*terms) if terms else np.zeros((1,) * rank)
        free = [p for p in node.order if p not in lifted]
        if not free:
            _balanced(view, terms, left)
            return Step((known.changes,))
        still = Affine.of(scale, np.zeros((1,) * rank)) if start.has_shift else start
        base = {**lifted, **dict.fromkeys(free, still)}
        base.update((slot, base[p]) for p, slots in node.slots.items() for slot in slots)
        proposals: list[Ports] = [_NOTHING]
        if left.any():
            # A tensor that is subtracted from itself takes no shift.
            takers = [p for p in free if weight[p]][: MOST_BRANCHES + 1]
            shares = {w: Affine.of(scale, left / w) for w in {weight[p] for p in takers}}
            proposals = [dict.fromkeys(node.slots[p], shares[weight[p]]) for p in takers]
        if proposals and node.is_level_for(scale, left):
            return Step(tuple(Variant(base, own) for own in proposals), len(free) == 1)
        return _completions(view, proposals, certain=len(free) == 1, base=base)

    return rule


class _Sum(NamedTuple):
    """What does not change of a node that adds up.

    Attributes:
        rank: of the result.
        weight: how often each operand counts in ``sum - output = 0``, by its first port. A tensor
            that is added to itself is one operand that counts twice.
        slots: the ports of each operand.
        order: the first ports in the order in which they take a change.
        level: the dims of all tensors if they are computed and agree, else none.
    """

    rank: int
    weight: dict[int, int]
    slots: dict[int, list[int]]
    order: list[int]
    level: Dims | None

    @classmethod
    def of(cls, view: NodeView, signs: tuple[int, ...], *, averages: bool) -> _Sum:
        """Read a node; see ``sums``."""
        weight: dict[int, int] = {}
        slots: dict[int, list[int]] = {}
        seen: dict[str, int] = {}
        for position, slot in enumerate(inputs(view)):
            constant = view.constant(slot) is not None
            port = slot if constant else seen.setdefault(view.name_in(slot), slot)
            weight[port] = weight.get(port, 0) + (signs[position] if signs else 1)
            slots.setdefault(port, []).append(slot)
        order = sorted((*weight, OUT), key=lambda p: _cost_to_change(view, p))
        weight[OUT], slots[OUT] = -len(inputs(view)) if averages else -1, [OUT]
        dims = view.dims_out(0)
        computed = len(seen) == len(slots) - 1
        level = dims if computed and all(view.dims_of(name) == dims for name in seen) else None
        return cls(len(dims), weight, slots, order, level)

    def is_level_for(self, *arrays: Float64) -> bool:
        """Whether every tensor takes arrays as they are, as nothing is broadcast."""
        dims = self.level
        return dims is not None and all(
            size in (1, dim) for a in arrays for size, dim in zip(a.shape, dims, strict=True)
        )


def _same_scales(view: NodeView, lifted: Ports, scale: Float64) -> None:
    if not all(c.scale is scale or close(scale, c.scale) for c in lifted.values()):
        raise Refused(Reason.CONFLICT, view.label, "its operands would need different scales")


def _balanced(view: NodeView, terms: Sequence[Float64], left: Float64) -> None:
    size = sum(map(np.abs, terms), np.zeros(()))
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
            require_divisible(view, change)
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
        if power > 0 and len(free) == 2 and OUT in lifted and _is_square(view):
            require(view, lifted[OUT], positive=True, shift=True)
            proposals = [{**scales, **dict.fromkeys(free, left**-0.5)}]
        else:
            takers = free if (left != 1).any() else free[:1]
            ones = dict.fromkeys(free, one)
            proposals = [{**scales, **ones, p: left ** -powers[p]} for p in takers] or [scales]
        return _completions(
            view,
            [_with_shifts(view, known, lifted, proposal, power) for proposal in proposals],
            certain=len(free) <= 1,
        )

    return rule


def _is_square(view: NodeView) -> bool:
    """Whether a node multiplies a computed tensor by itself."""
    return view.name_in(0) == view.name_in(1) and view.constant(0) is None


def require_divisor(view: NodeView, constant: Float64) -> None:
    """Refuse a node that divides by a constant of which some element is zero."""
    if not constant.all():
        raise Refused(
            Reason.OPAQUE, view.label, "the constant that it divides by is zero in some element"
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


def alike(*, slots: Sequence[int] = (), positive: bool = False) -> Rule:
    """Make the rule of an operator whose result is one of its operands: all carry one change.

    Args:
        slots: the operands; all inputs if left out.
        positive: only scales that are not negative pass: it compares them.
    """

    def rule(view: NodeView, known: Known) -> Step:
        _, lifted = _operands(view, known)
        change = next(iter(lifted.values()))
        require(view, change, positive=positive, shift=True)
        changes = dict.fromkeys((*(slots or inputs(view)), OUT), change)
        return _completions(view, [changes], certain=True)

    return rule
