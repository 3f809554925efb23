"""The words of the table of operators: what an entry says, and what a node that absorbs answers.

An entry is *transparent* (``rules.Transparent``: a change passes through its nodes by a rule) or
*absorbing*: its nodes take changes into their constants. What one absorbing node does is asked of
its ``Absorber``, which the entry reads: a linear layer (``linear``), a BatchNormalization
(``batchnorm``). Nobody outside the table asks for an operator's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.affine import Affine, Float64

if TYPE_CHECKING:
    from onnx_bnfold.operators.clamps import BoundsOf
    from onnx_bnfold.operators.factors import Factor

OUT = ~0  # the port of a node's first output; its inputs are the ports 0, 1, …
# A constant as one node reads it: (node index, input index).
Read = tuple[int, int]


# --- entries --------------------------------------------------------------------------------


class Combines(Enum):
    """What an operator makes of its operands."""

    SUM = auto()
    PRODUCT = auto()


class HandsOn(IntEnum):
    """Which values of its data inputs an operator hands on to its outputs; the last says least."""

    ALL = auto()  # every value of the inputs and, but for zeros, no others
    SOME = auto()  # values of the inputs, and perhaps zeros; others are dropped
    BETWEEN = auto()  # each lies between values of the inputs, as a mean does


class Rank(Enum):
    """How many axes the first output has at the least."""

    KEPT = auto()  # as many as each data input
    ADDED = auto()  # more than input 0; so what has one axis has one element
    LISTED = auto()  # as many as input 1 has elements
    PICKED = auto()  # those of inputs 0 and 1 together, but for one
    MATRICES = auto()  # as many as each input, if these have two or more
    WEIGHT = auto()  # as many as input 1


class ConstantOperand(NamedTuple):
    """What an operator of two operands is where one of them is constant: an affine map.

    Attributes:
        map: from the node, the constant and the input that holds the other operand to the map's
            scale and shift.
        data: the inputs that may hold the other operand.
    """

    map: Callable[[NodeView, Float64, int], tuple[Float64, Float64]]
    data: tuple[int, ...] = (0, 1)


# Each method that dataclass would add is compiled at every start.
@dataclass(eq=False, repr=False, kw_only=True)
class Operator:
    """An entry of the table of operators.

    Attributes:
        version: the newest version of the operator for which the entry was read.
        multiply_adds: counts those of a node; see ``costs``.
        depth: its multiplicative depth, or what tells it; see ``costs``.
        combines: whether it adds or multiplies its operands.
        averages: whether it divides what it adds up by the number of operands.
        operand: what it is with a constant operand.
        hands_on: what its output says of the values of its inputs; None where they are others.
        rectifies: whether it hands on single channels, some of their elements cut off.
        retypes: whether its output is of another element type than its input.
        bounds: what it cuts its data off at, if it does nothing else; see ``clamps``.
        picks_maxima: whether each element of its output is the largest of some of its input.
        swallows: whether nothing of a change comes out: it takes those that alter no answer.
        only_shifts: whether no scale passes it, or is taken.
        only_scales: whether no shift is, whatever constants it may be written with.
        is_alike: whether all of its data tensors carry one and the same change.
        rank: what is sure of the rank of its first output, or of all if they are data.
    """

    version: int
    multiply_adds: costs.Count = costs.no_products
    depth: costs.Depth | costs.DepthOf = costs.FREE
    combines: Combines | None = None
    averages: bool = False
    operand: ConstantOperand | None = None
    hands_on: HandsOn | None = None
    rectifies: bool = False
    retypes: bool = False
    bounds: BoundsOf | None = None
    picks_maxima: bool = False
    swallows: bool = False
    only_shifts: bool = False
    only_scales: bool = False
    is_alike: bool = False
    rank: Rank | None = None


UNKNOWN = Operator(version=0)  # stands for an operator that has no entry


@dataclass(eq=False, repr=False)
class Absorbing(Operator):
    """An operator whose nodes take changes into their constants.

    Attributes:
        read: reads a node, or refuses one that has nothing to take a change.
        linear_in: inputs in which the output is linear if they change together, one choice after
            another; those of the first choice that are constants are the weights.
        parameters: further inputs that are weights.
        data_slot: the input that holds the data, if it is that of every node, even one that
            ``read`` refuses.
        squares: whether it adds up squares of the data, which a shift costs twice as many digits.
        is_linear: whether it is linear in its data: what int8 kernels are made for.
    """

    read: Callable[[NodeView], Absorber]
    linear_in: tuple[tuple[int, ...], ...]
    parameters: tuple[int, ...] = ()
    data_slot: int | None = None
    squares: bool = False
    is_linear: bool = False

    @property
    def weights(self) -> frozenset[int]:
        """All inputs that may be weights."""
        return frozenset(self.parameters).union(*self.linear_in)


# --- a node that absorbs --------------------------------------------------------------------


class Absorber(Protocol):
    """A node that takes changes of its data and of its output into its constants."""

    @property
    def data_slot(self) -> int:
        """The input that holds the data."""

    @property
    def factor_slot(self) -> int | None:
        """The input that multiplies; None if there is none, or it is quantised."""

    def require(self, port: int, change: Affine) -> None:
        """Refuse a change of the data or the output that the node does not take.

        Raises:
            Refused: it does not.
        """

    def passed_on(self, into: Affine, sides: Sides) -> Affine | None:
        """Return the change of the output that makes up for a shift of the data.

        Args:
            into: the change of the data.
            sides: the changes of both sides so far.

        Returns:
            None if a constant of the node can take the shift.
        """

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the constants that get new values by changes of the two sides."""

    def revised(self, sides: Sides) -> Iterator[Revised]:
        """Yield what becomes of the constants by changes of the two sides.

        Raises:
            Refused: the changes are fine one by one, but not together.
        """

    def peaks(self, magnitude: Array) -> Array:
        """Return the largest magnitude of the factors per output channel."""


class Sides(NamedTuple):
    """The changes of a node's data and of its output, None where there is none."""

    into: Affine | None
    out: Affine | None

    @property
    def have_scale(self) -> bool:
        """Whether any of them has a scale."""
        into, out = self
        return (into is not None and into.has_scale) or (out is not None and out.has_scale)


class BiasPlace(Enum):
    """Where the bias of a layer goes, or another constant that its node has no input for."""

    INPUT = auto()  # to an input of the node
    GEMM = auto()  # to the third input of the Gemm that the node becomes
    ADD = auto()  # into an Add behind the node
    BOUND = auto()  # into the Max or Min that the node, a clamp, becomes


# --- what becomes of a constant -------------------------------------------------------------


# Of what every changed constant needs one, a NamedTuple would take twice as long to make.
class Multiplied:
    """A constant times a factor.

    Attributes:
        name: of the constant.
        shape: in which its elements are read.
        sums_over: the axes of ``shape`` over which one output element sums.
        factor: computes what the elements are multiplied by; it broadcasts against ``shape``.
    """

    __slots__ = ("factor", "name", "shape", "sums_over")

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        sums_over: tuple[int, ...],
        factor: Callable[[], Factor],
    ) -> None:
        self.name = name
        self.shape = shape
        self.sums_over = sums_over
        self.factor = factor


class Computed:
    """Values that are rounded to the constant's type.

    Attributes:
        sums_over: for factors, the axes over which one output sums; None for summands.
    """

    __slots__ = ()
    sums_over: tuple[int, ...] | None

    def values(self) -> Float64:
        """Compute them."""
        raise NotImplementedError


class Given(Computed):
    """Values that are there, or that a function computes."""

    __slots__ = ("_given", "sums_over")

    def __init__(
        self,
        given: Float64 | Callable[[], Float64],
        sums_over: tuple[int, ...] | None = None,
    ) -> None:
        self._given = given
        self.sums_over = sums_over

    def values(self) -> Float64:
        """Return them."""
        return self._given() if callable(self._given) else self._given


class Exact(NamedTuple):
    """Elements that are of the constant's type already.

    Attributes:
        elements: computes them.
    """

    elements: Callable[[], Array]


class Revised:
    """What becomes of one constant that a node reads.

    Attributes:
        view: the node.
        slot: the input that reads it; one past the node's last is a new one.
        suffix: for its name, where it cannot keep the old one.
        dims, data_type: of the new constant.
        values: what it holds.
        attributes: of the node, to be set along with it; None takes one away.
        place: who reads it, if the node has no input for it.
    """

    __slots__ = ("attributes", "data_type", "dims", "place", "slot", "suffix", "values", "view")

    def __init__(
        self,
        view: NodeView,
        slot: int,
        suffix: str,
        dims: tuple[int, ...],
        data_type: int,
        values: Multiplied | Computed | Exact,
        attributes: tuple[tuple[str, float | None], ...] = (),
        place: BiasPlace = BiasPlace.INPUT,
    ) -> None:
        self.view = view
        self.slot = slot
        self.suffix = suffix
        self.dims = dims
        self.data_type = data_type
        self.values = values
        self.attributes = attributes
        self.place = place
