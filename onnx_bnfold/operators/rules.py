"""What the rule of a transparent operator is asked, and what it answers.

A rule looks at a node, of some of whose ports a change is known, and returns every way to complete
it: the changes of all its data ports. A port is an input slot (0, 1, …) or, for outputs, ``~slot``
(-1 is output 0). A rule that has no choice, whatever becomes known later, says so with ``certain``;
the planner leaves the others for last. A rule refuses by raising ``Refused``.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import data_movement
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.entries import OUT, Operator
from onnx_bnfold.reasons import Reason, Refused

Ports = Mapping[int, Affine]
Attributes = tuple[tuple[str, float], ...]


MOST_BRANCHES = 256  # alternatives that a search tries at most


class Variant(Mapping[int, Affine]):
    """The changes of a wide node's ports, most of which other alternatives give, too.

    Attributes:
        base: the changes of most.
        own: those of the others, which go before.
        still: whether all of the base are identities.
    """

    def __init__(self, base: Ports, own: Ports, *, still: bool = False) -> None:
        self.base = base
        self.own = own
        self.still = still

    def items(self) -> ItemsView[int, Affine]:
        """Return all ports, each with its change."""
        return {**self.base, **self.own}.items()

    def __getitem__(self, port: int) -> Affine:
        return self.own[port] if port in self.own else self.base[port]

    def __iter__(self) -> Iterator[int]:
        return iter({**self.base, **self.own})

    def __len__(self) -> int:
        return len(self.base.keys() | self.own)


class Step(NamedTuple):
    """The ways to complete a node: each gives every data port its change."""

    alternatives: tuple[Ports, ...]
    certain: bool = True


UNDECIDED = Step((), certain=False)


class Known(NamedTuple):
    """What is known of a node's ports when its rule is asked.

    Attributes:
        changes: the ports whose change is decided.
        constant: returns the present elements of a constant input, float64.
        before: returns the change of input 0 that is decided already, None if there is none.
        deciding: False while there is a choice that may be taken away by what follows; a rule may
            then return ``UNDECIDED`` and save the work of listing the alternatives.
    """

    changes: Ports
    constant: Callable[[int], Float64]
    before: Callable[[], Affine | None]
    deciding: bool = True


Rule = Callable[[NodeView, Known], Step]


@dataclass(eq=False, repr=False)
class Transparent(Operator):
    """An operator through which changes pass.

    Attributes:
        rule: says how.
        symmetric: whether all of its inputs are data.
        data: those that are if not all of them; the others are parameters.
        parted: whether all of its outputs are data; else the first is, the others tell of it, as
            a mask or indices do, and stay as they are.
        own: inputs that are no data, and whose constants the rule may change along.
        attributes: tells what attributes a node gets by a change of input 0, if it gets any.
    """

    rule: Rule
    symmetric: bool = False
    data: tuple[int, ...] = (0,)
    parted: bool = False
    own: tuple[int, ...] = ()
    attributes: Callable[[NodeView, Affine], Attributes] | None = None

    def data_slots(self, view: NodeView) -> tuple[int, ...]:
        """Return the inputs of a node that carry data; the others are parameters."""
        return tuple(inputs(view)) if self.symmetric else self.data

    def own_constants(self, view: NodeView) -> tuple[int, ...]:
        """Return the inputs of a node that are no data and that its rule may change."""
        return tuple(slot for slot in self.own if view.constant(slot) is not None)

    def data_outputs(self, view: NodeView) -> tuple[int, ...]:
        """Return the outputs of a node that carry data; none that stay as they are."""
        if self.swallows:
            return ()
        return tuple(range(len(view.writes))) if self.parted else (0,)


Mover = Callable[[NodeView, Affine, bool], Affine]


def passes(
    move: Mover = data_movement.unmoved,
    *,
    positive: bool = False,
    shift: bool | Callable[[NodeView], bool] = True,
    drops: bool = False,
) -> Rule:
    """Make the rule of an operator whose input 0 and output 0 carry the same change.

    Args:
        move: moves a change from the input to the output (``True``) or back, as the data is moved.
        positive: only scales that are not negative pass.
        shift: whether a shift passes.
        drops: whether elements of the input may be left out. On the way back nothing is said of
            these; they are not changed, unless another reader of the input requires it.
    """

    def rule(view: NodeView, known: Known) -> Step:
        source = 0 if 0 in known.changes else OUT
        change = known.changes[source]
        other = move(view, change, source == 0)
        require(view, change, positive, shift if isinstance(shift, bool) else shift(view))
        return Step(({source: change, ~source: other},), certain=source == 0 or not drops)

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


def require_divisible(view: NodeView, change: Affine) -> None:
    """Refuse a scale that is divided by, or stands for the inverse of one that is zero."""
    if not change.is_invertible or not change.is_ordinary:
        raise Refused(
            Reason.PRECISION, view.label, "the scale is zero or too small to be divided by"
        )


def require_ordinary(view: NodeView, change: Affine) -> None:
    """Refuse a scale that stands for the inverse of zero where constants stand beside the data.

    What such a channel holds is taken back as the constant that it was, wherever it came from.
    """
    if not change.is_ordinary:
        raise Refused(
            Reason.PRECISION, view.label, "a scale of zero cannot be taken out of its constant"
        )


def require_order(view: NodeView, change: Affine) -> None:
    """Refuse a scale that does not leave the order of all elements as it is."""
    require(view, change, positive=True, shift=True)
    if not (change.is_invertible and change.is_ordinary):
        raise Refused(
            Reason.PRECISION,
            view.label,
            "a scale of zero, or one that is very small or large, would make its elements equal",
        )


def inputs(view: NodeView) -> list[int]:
    """Return the inputs of a node that are not left out."""
    return [slot for slot, name in enumerate(view.reads) if name]
