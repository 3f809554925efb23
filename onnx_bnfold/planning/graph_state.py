"""One graph while it is planned: what was decided so far, and what each node does with a change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.constants import DIMS_ONLY, TYPE_ONLY, Constants
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.model.shape_inference import Shapes
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine, Float64, all_along
from onnx_bnfold.operators.batchnorm_parameters import read_bns
from onnx_bnfold.operators.entries import OUT, Absorber, Absorbing, ConstantOperand, Sides
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.operators.rules import Known, Step, Transparent
from onnx_bnfold.operators.table import entry_of
from onnx_bnfold.operators.transparent import data_outputs, data_slots
from onnx_bnfold.planning.merged_tensors import Groups
from onnx_bnfold.reasons import Reason, Refusal, Refused

# What a change belongs to: a computed tensor, by its name, or the constant that one node reads at
# one input, by (node index, input index). A constant that several nodes read is several keys:
# each of them gets its own copy if it has to change.
Key = str | tuple[int, int]

_ABSORBED = Step(({},))
# What arithmetic on the attributes and dims of a node raises that break its specification.
_MALFORMED = (ArithmeticError, IndexError, TypeError, ValueError)


class _Operands(NamedTuple):
    """The slots of the constant and of the data of an affine node, and the rank of its data."""

    constant: int
    data: int
    rank: int


class GraphState:
    """A graph with its decisions.

    Attributes:
        graph, constants, shapes: what is known of the graph.
        entries: what the table of operators says of each node's operator.
        total: the change decided so far for each key; a key that is missing is unchanged.
        removed: indices of the nodes that go; each is an identity by now.
        groups: the tensors that have become one by that.
        sizes: of original tensors, as far as they were asked for, and how many nodes had gone by
            then; see ``sizes.sizes``.
    """

    def __init__(self, graph: Graph, constants: Constants, shapes: Shapes) -> None:
        self.graph = graph
        self.constants = constants
        self.shapes = shapes
        entries = {op: entry_of(op) for op in {*graph.ops}}
        self.entries = [entries[op] for op in graph.ops]
        self.total: dict[Key, Affine] = {}
        self.removed: set[int] = set()
        self.groups = Groups(graph)
        self.sizes: dict[str, tuple[int, tuple[Affine, ...]]] = {}
        self._ports: dict[int, tuple[int, ...]] = {}
        self._keys: dict[int, tuple[tuple[int, Key], ...]] = {}
        self._neighbours: dict[str, tuple[int, ...]] = {}
        self._views: dict[int, NodeView] = {}
        self._absorbers: dict[int, Absorber | Refusal] = {}
        self._maps: dict[int, Affine] = {}
        self._operands: dict[int, _Operands] = {}

    def view(self, index: int) -> NodeView:
        """Return the view of a node."""
        view = self._views.get(index)
        if view is None:
            view = NodeView(self.graph, self.constants, self.shapes, index)
            self._views[index] = view
        return view

    def absorber(self, index: int) -> Absorber:
        """Return what a node does with changes that it takes into its constants.

        Raises:
            Refused: it takes none: its weights are computed at run time, for example.
        """
        found = self._absorbers.get(index) or self._read(index)
        if isinstance(found, Refusal):
            raise Refused.again(found)
        return found

    def _read(self, index: int) -> Absorber | Refusal:
        found: Absorber | Refusal
        view, entry = self.view(index), self.entries[index]
        assert isinstance(entry, Absorbing)
        try:
            view.require_version(entry.version)
            found = entry.read(view)
        except Refused as refused:
            found = refused.refusal
        except _MALFORMED:
            found = _malformed(view).refusal
        self._absorbers[index] = found
        return found

    def absorber_or_none(self, index: int) -> Absorber | None:
        """Return what a node does with changes that it takes into its constants, if it does."""
        found = self._absorbers.get(index)
        if found is None:
            if not isinstance(self.entries[index], Absorbing):
                return None
            found = self._read(index)
        return None if isinstance(found, Refusal) else found

    def layer(self, index: int) -> LinearLayer:
        """Return the linear layer a node is.

        Raises:
            Refused: it is one of run-time weights.
        """
        found = self.absorber(index)
        assert isinstance(found, LinearLayer)
        return found

    def layer_or_none(self, index: int) -> LinearLayer | None:
        """Return the linear layer with constant weights that a node is, if it is one."""
        found = self._absorbers.get(index) or self.absorber_or_none(index)
        return found if isinstance(found, LinearLayer) else None

    def bn(self, index: int) -> batchnorm.BatchNorm:
        """Return the original coefficients of a BatchNormalization.

        Raises:
            Refused: see ``batchnorm_parameters.read_bns``.
        """
        found = self._absorbers.get(index)
        if not isinstance(found, batchnorm.BatchNorm):
            found = self.absorber(index)
            assert isinstance(found, batchnorm.BatchNorm)
        return found

    @cached_property
    def bn_pairs(self) -> dict[int, list[tuple[int, int]]]:
        """BNs in a row, the second reading what the first writes, perhaps cut off; by either."""
        bns = (i for i, op in enumerate(self.graph.ops) if op == batchnorm.OPERATOR)
        pairs = [(front, i) for i in bns if (front := self._bn_in_front(i)) is not None]
        pairs = [pair for pair in pairs if all(map(self.is_bn, pair))]
        found: dict[int, list[tuple[int, int]]] = {}
        for side in (0, 1):
            for pair in pairs:
                found.setdefault(pair[side], []).append(pair)
        return found

    def _bn_in_front(self, index: int) -> int | None:
        graph, front = self.graph, self.graph.producer.get(self.graph.reads[index][0])
        while front is not None and self.entries[front].rectifies:
            front = graph.producer.get(graph.reads[front][0])
        return front

    def is_bn(self, index: int) -> bool:
        """Whether a node is a BN that has coefficients: one in training has none."""
        if self.graph.ops[index] != batchnorm.OPERATOR:
            return False
        try:
            self.bn(index)
        except Refused:
            return False
        return True

    def read_bns(self, indices: Sequence[int]) -> None:
        """Read BatchNormalizations that ``BN`` will be asked for all at once."""
        found = read_bns([self.view(index) for index in indices])
        self._absorbers.update(zip(indices, found, strict=True))

    def read_maps(self, indices: Iterable[int]) -> None:
        """Make the maps of BatchNormalizations that ``affine_of`` will be asked for all at once.

        Raises:
            Refused: the rank of an input is not known.
        """
        ranks = {index: self.rank(index) for index in indices}
        found = [index for index, rank in ranks.items() if rank >= 2]
        maps = [self.bn(index).map for index in found]
        changes = all_along(maps, 1, [ranks[index] for index in found])
        self._maps.update(zip(found, changes, strict=True))

    def type_of(self, name: str) -> int:
        """Return the element type of a computed tensor, float32 where it is not known."""
        return self.shapes.type_of(name) or int(TensorProto.FLOAT)

    def change(self, key: Key, rank: int) -> Affine:
        """Return the change decided so far for a key."""
        found = self.total.get(key)
        return Affine.identity(rank) if found is None else found

    def key(self, index: int, port: int) -> Key | None:
        """Return what a port of a node carries, None for a port that is left out."""
        if port < 0:
            return self.graph.writes[index][~port] or None
        name = self.graph.reads[index][port]
        if not name:
            return None
        return (index, port) if self.constants.get(name) is not None else name

    def present(self, index: int, slot: int) -> Float64:
        """Return the elements of a constant input as they are by now, float64."""
        value = self.original(index, slot)
        change = self.total.get((index, slot))
        return value if change is None else change.scale * value + change.shift

    def original(self, index: int, slot: int) -> Float64:
        """Return the elements of a constant input as they were, float64."""
        return self.constants.value(self.graph.reads[index][slot]).astype(np.float64)

    def ports(self, index: int) -> tuple[int, ...]:
        """Return the ports of a node that carry data.

        Raises:
            Refused: the operator is not known, or its weights are not constant.
        """
        found = self._ports.get(index)
        if found is None:
            found = self._ports[index] = self._find_ports(index)
        return found

    def keys(self, index: int) -> tuple[tuple[int, Key], ...]:
        """Return the ports of a node that carry data, each with its key; see ``ports``."""
        found = self._keys.get(index)
        if found is None:
            both = ((port, self.key(index, port)) for port in self.ports(index))
            found = self._keys[index] = tuple((port, key) for port, key in both if key is not None)
        return found

    def _find_ports(self, index: int) -> tuple[int, ...]:
        view, entry = self.view(index), self.entries[index]
        if isinstance(entry, Absorbing):
            slot = entry.data_slot
            return (self.absorber(index).data_slot if slot is None else slot, OUT)
        if index in self.removed:
            return (self.data_slot(index), OUT)
        if not isinstance(entry, Transparent):
            raise _opaque(view)
        view.require_version(entry.version)
        return (*data_slots(view), *(~slot for slot in data_outputs(view)))

    def step(self, index: int, known: Mapping[int, Affine], *, deciding: bool = True) -> Step:
        """Ask a node how the changes of some of its ports can be completed.

        Args:
            index: the node.
            known: the change per port, of one or more of them.
            deciding: see ``rules.Known``.

        Raises:
            Refused: they cannot.
        """
        if index in self.removed:  # an identity by now
            change = next(iter(known.values()))
            return Step((dict.fromkeys(self.ports(index), change),))
        entry = self.entries[index]
        if isinstance(entry, Absorbing):
            return self._absorb(index, known)
        assert isinstance(entry, Transparent)
        view = self.view(index)
        asked = Known(known, lambda slot: self.present(index, slot), deciding)
        try:
            return entry.rule(view, asked)
        except _MALFORMED as error:
            raise _malformed(view) from error

    def _absorb(self, index: int, known: Mapping[int, Affine]) -> Step:
        absorber = self.absorber(index)
        for port, change in known.items():
            absorber.require(port, change)
        into = known.get(absorber.data_slot)
        if OUT in known or into is None or not into.has_shift:
            return _ABSORBED
        behind = absorber.passed_on(into, self.side_changes(index))
        if behind is None:
            return _ABSORBED
        return Step(({OUT: behind}, {OUT: Affine.identity(behind.rank)}), certain=False)

    def side_changes(self, index: int, changes: Mapping[Key, Affine] | None = None) -> Sides:
        """Return the changes of the data and the output of a node, with further ones on top."""
        absorber = self._absorbers.get(index)
        if absorber is None or isinstance(absorber, Refusal):
            slot = self.ports(index)[0]
        else:
            slot = absorber.data_slot
        keys = (self.key(index, slot), self.key(index, OUT))
        if not changes:
            return Sides(*(None if key is None else self.total.get(key) for key in keys))
        return Sides(self._total_of(keys[0], changes), self._total_of(keys[1], changes))

    def _total_of(self, key: Key | None, changes: Mapping[Key, Affine]) -> Affine | None:
        if key is None:
            return None
        before, more = self.total.get(key), changes.get(key)
        if before is None or more is None:
            return before or more
        return before.then(more)

    def neighbours(self, key: Key) -> tuple[int, ...]:
        """Return the nodes that write or read a key.

        Raises:
            Refused: something other than a known data port of a node reads or writes it.
        """
        if isinstance(key, tuple):
            return (key[0],)
        found = self._neighbours.get(key)
        if found is None:
            found = self._neighbours[key] = tuple(self._find_neighbours(key))
        return found

    def _find_neighbours(self, key: str) -> Iterator[int]:
        self._require_free(key)
        producer = self.graph.producer[key]
        yield self._with_port(producer, ~self.graph.writes[producer].index(key))
        for index, slot in self.graph.readers.get(key, ()):
            if (self.graph.ops[index], slot) not in TYPE_ONLY | DIMS_ONLY:
                yield self._with_port(index, slot)

    def _with_port(self, index: int, port: int) -> int:
        if port not in self.ports(index):
            view = self.view(index)
            what = "uses the tensor as a parameter" if port >= 0 else "writes the tensor as a mask"
            raise Refused(Reason.OPAQUE, view.label, f"it {what}, not as data")
        return index

    def _require_free(self, name: str) -> None:
        graph = self.graph
        if name in graph.outputs:
            raise Refused(
                Reason.GRAPH_OUTPUT, repr(name), "it is an output of the graph and keeps its values"
            )
        if name in graph.captured:
            raise Refused(Reason.CAPTURED, graph.captured[name], f"a subgraph of it reads {name!r}")
        if name not in graph.producer:
            raise Refused(
                Reason.GRAPH_INPUT,
                repr(name),
                "it comes from outside the graph and cannot be rescaled",
            )

    def affine_of(self, index: int) -> Affine:
        """Return the affine map of a removable node between its tensors as they are by now.

        Raises:
            Refused: it has none.
        """
        if self.graph.ops[index] == batchnorm.OPERATOR:
            return self._seen_from(index, self.original_map(index))
        return constant_map(self, index)[1]

    def original_map(self, index: int) -> Affine:
        """Return the affine map of a removable node before any change.

        Raises:
            Refused: it has none.
        """
        if self.graph.ops[index] != batchnorm.OPERATOR:
            return constant_map(self, index, original=True)[1]
        found = self._maps.get(index)
        if found is None:
            self.read_maps([index])
            found = self._maps.get(index)
        if found is None:
            label = self.graph.label(index)
            raise Refused(Reason.INCONSISTENT_SHAPES, label, "its input has no channel axis")
        return found

    def data_slot(self, index: int) -> int:
        """Return the input of a removable node that is not a constant."""
        if self.graph.ops[index] == batchnorm.OPERATOR:
            return 0
        return self.operands(index).data

    def operands(self, index: int) -> _Operands:
        """Return which operand of a Mul, Add, Sub or Div is its constant.

        Raises:
            Refused: see ``constant_map``.
        """
        found = self._operands.get(index)
        if found is None:
            entry = self.entries[index]
            found = _operands(self.view(index), entry.operand, entry.version)
            self._operands[index] = found
        return found

    def sides(self, index: int) -> tuple[str, str]:
        """Return the names of the tensors that become one when a node is removed."""
        return self.graph.reads[index][self.data_slot(index)], self.graph.writes[index][0]

    def absorbs(self, index: int, key: Key) -> bool:
        """Whether a node takes a change of a key into its constants."""
        if isinstance(key, tuple):
            return True
        return isinstance(self.entries[index], Absorbing)

    def place(self, index: int) -> str:
        """Name a node with the path of its graph."""
        return self.graph.place(self.graph.label(index))

    def remove(self, index: int) -> None:
        """Note that a node has become an identity and its two sides one tensor."""
        self.removed.add(index)
        if self._ports.pop(index, None) is not None:
            self._keys.pop(index, None)
        if self._neighbours:
            for name in (*self.graph.reads[index], *self.graph.writes[index]):
                self._neighbours.pop(name, None)
        self.groups.join(*self.sides(index))

    def are_untouched(self, x: str, y: str) -> bool:
        """Whether two tensors do not change so far, and no others stand for them."""
        total, joined = self.total, self.groups.is_joined
        return not (x in total or y in total or joined(x) or joined(y))

    def _seen_from(self, index: int, original: Affine) -> Affine:
        x, y = self.sides(index)
        into, out = self.total.get(x), self.total.get(y)
        present = original
        if into is not None:
            if not into.is_invertible:
                raise Refused(
                    Reason.PRECISION, self.view(index).label, "its input has lost a channel already"
                )
            if (original if out is None else original.then(out)).agrees_with(into):
                return Affine.identity(original.rank)  # which the quotient is but for its rounding
            present = into.inverse().then(present)
        return present if out is None else present.then(out)

    def rank(self, index: int) -> int:
        """Return the rank of a node's input 0, from the layer that writes it where there is one.

        Raises:
            Refused: it is not known.
        """
        name = self.graph.reads[index][0]
        producer = self.graph.producer.get(name)
        while producer is not None and self.graph.ops[producer] == batchnorm.OPERATOR:
            producer = self.graph.producer.get(self.graph.reads[producer][0])
        layer = None if producer is None else self.layer_or_none(producer)
        if layer is not None:
            return layer.out_rank
        return len(self.view(index).dims_in(0))


def constant_map(state: GraphState, index: int, *, original: bool = False) -> tuple[int, Affine]:
    """Return the data slot of a Mul, Add, Sub or Div by a constant, and its map as it is by now.

    Args:
        state: the graph.
        index: the node.
        original: take the constant as it was before any change.

    Raises:
        Refused: it is none, or it broadcasts its data operand.
    """
    constant, data, rank = state.operands(index)
    view = state.view(index)
    value = state.original(index, constant) if original else state.present(index, constant)
    operand = state.entries[index].operand
    assert operand is not None
    return data, Affine.of(
        *operand.map(view, value.reshape((1,) * (rank - value.ndim) + value.shape), data)
    )


def _operands(view: NodeView, operand: ConstantOperand | None, version: int) -> _Operands:
    slots = [s for s in (0, 1) if view.constant(s) is not None]
    if len(slots) != 1 or operand is None or 1 - slots[0] not in operand.data:
        raise Refused(Reason.OPAQUE, view.label, "it is not an affine map of one tensor")
    view.require_version(version)
    info = view.constant(slots[0])
    if info is None or info.data_type not in FLOATS:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its constant is not of a float type")
    data = 1 - slots[0]
    dims = view.dims_in(data)
    if len(info.dims) > len(dims) or any(
        n != 1 and n != d for n, d in zip(info.dims[::-1], dims[::-1], strict=False)
    ):
        raise Refused(
            Reason.AXES, view.label, "it broadcasts its data operand, or may do so at some size"
        )
    return _Operands(slots[0], data, len(dims))


def _malformed(view: NodeView) -> Refused:
    return Refused(
        Reason.INCONSISTENT_SHAPES,
        view.label,
        "its attributes and the shapes of its inputs and outputs do not agree; repair the model",
    )


def _opaque(view: NodeView) -> Refused:
    if view.op is not None and "Quantize" in view.op:
        return Refused(
            Reason.QUANTIZED,
            view.label,
            "values are rounded to integers there; fold before quantising",
        )
    return Refused(
        Reason.OPAQUE, view.label, "no rule says how a scale or shift passes this operator"
    )
