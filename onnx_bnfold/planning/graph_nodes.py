"""What the nodes of a graph are before anything changes: layers, BatchNormalizations, affine maps.

A node is read when it is asked for, and once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.model.shape_inference import Shapes
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine, Float64, all_along
from onnx_bnfold.operators.batchnorm_parameters import read_bns
from onnx_bnfold.operators.entries import Absorber, Absorbing, ConstantOperand
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.operators.table import entry_of
from onnx_bnfold.planning.work import Work
from onnx_bnfold.reasons import Reason, Refusal, Refused

# What arithmetic on the attributes and dims of a node raises that break its specification.
MALFORMED = (ArithmeticError, IndexError, TypeError, ValueError)


class _Operands(NamedTuple):
    """The slots of the constant and of the data of an affine node, and the rank of its data."""

    constant: int
    data: int
    rank: int


class GraphNodes:
    """The nodes of one graph.

    Attributes:
        graph, constants, shapes: what is known of the graph.
        entries: what the table of operators says of each node's operator.
        work: what planning the graph has looked at.
    """

    def __init__(self, graph: Graph, constants: Constants, shapes: Shapes) -> None:
        self.graph = graph
        self.constants = constants
        self.shapes = shapes
        entries = {op: entry_of(op) for op in {*graph.ops}}
        self.entries = [entries[op] for op in graph.ops]
        self.work = Work(len(graph.nodes))
        self._views: dict[int, NodeView] = {}
        self._absorbers: dict[int, Absorber | Refusal] = {}
        self._maps: dict[int, Affine] = {}
        self._operands: dict[int, _Operands] = {}
        self._fronts: dict[int, int | None] = {}

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
        except MALFORMED:
            found = malformed(view).refusal
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

    @cached_property
    def has_bns(self) -> bool:
        """Whether any node is a BatchNormalization."""
        return any(op == batchnorm.OPERATOR for op in self.graph.ops)

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
        """Read BatchNormalizations that ``bn`` will be asked for all at once."""
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
        for index, rank in ranks.items():
            if rank == 1 and self.bn(index).channels == 1:  # a vector has one channel
                self._maps[index] = Affine.of(*self.bn(index).map)

    def original_map(self, index: int) -> Affine:
        """Return the affine map of a removable node before any change.

        Raises:
            Refused: it has none.
        """
        if self.graph.ops[index] != batchnorm.OPERATOR:
            return self.map_by(index, self.original(index, self.operands(index).constant))
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
            Refused: it is none, or it broadcasts its data operand.
        """
        found = self._operands.get(index)
        if found is None:
            entry = self.entries[index]
            found = _operands(self.view(index), entry.operand, entry.version)
            self._operands[index] = found
        return found

    def map_by(self, index: int, constant: Float64) -> Affine:
        """Return the map of a Mul, Add, Sub or Div by a constant.

        Args:
            index: the node.
            constant: the elements of its constant.

        Raises:
            Refused: see ``operands``.
        """
        _, data, rank = self.operands(index)
        operand = self.entries[index].operand
        assert operand is not None
        laid = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
        return Affine.of(*operand.map(self.view(index), laid, data))

    def sides(self, index: int) -> tuple[str, str]:
        """Return the names of the tensors that become one when a node is removed."""
        return self.graph.reads[index][self.data_slot(index)], self.graph.writes[index][0]

    def place(self, index: int) -> str:
        """Name a node with the path of its graph."""
        return self.graph.place(self.graph.label(index))

    def rank(self, index: int) -> int:
        """Return the rank of a node's input 0, from the layer that writes it where there is one.

        Raises:
            Refused: it is not known.
        """
        front = self._front(index)
        layer = None if front is None else self.layer_or_none(front)
        if layer is not None:
            return layer.out_rank
        return len(self.view(index).dims_in(0))

    def _front(self, index: int) -> int | None:
        """Return the node in front of one and of the BNs that it stands behind, if there is any."""
        graph, fronts = self.graph, self._fronts
        row: list[int] = []
        front = graph.producer.get(graph.reads[index][0])
        while front is not None and graph.ops[front] == batchnorm.OPERATOR:
            if front in fronts:
                front = fronts[front]
            else:
                row.append(front)
                front = graph.producer.get(graph.reads[front][0])
        if row:  # most stand alone
            fronts.update(dict.fromkeys(row, front))
        return front

    def type_of(self, name: str) -> int:
        """Return the element type of a computed tensor, float32 where it is not known."""
        return self.shapes.type_of(name) or int(TensorProto.FLOAT)

    def original(self, index: int, slot: int) -> Float64:
        """Return the elements of a constant input as they were, float64."""
        return self.constants.value(self.graph.reads[index][slot]).astype(np.float64)


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
    if info.dims:
        view.require_read(data)
    return _Operands(slots[0], data, len(dims))


def malformed(view: NodeView) -> Refused:
    """Return the refusal of a node that breaks its operator's specification."""
    return Refused(
        Reason.INCONSISTENT_SHAPES,
        view.label,
        "its attributes and the shapes of its inputs and outputs do not agree; repair the model",
    )


def opaque(view: NodeView) -> Refused:
    """Return the refusal of a node that no rule knows."""
    if view.op is not None and "Quantize" in view.op:
        return Refused(
            Reason.QUANTIZED,
            view.label,
            "values are rounded to integers there; fold before quantising",
        )
    return Refused(
        Reason.OPAQUE, view.label, "no rule says how a scale or shift passes this operator"
    )
