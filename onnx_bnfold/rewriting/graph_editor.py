"""Applying a plan to a copy of the model: each layer is rewritten exactly once."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from itertools import chain, filterfalse

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)

from onnx_bnfold.model.graph import Body, Graph, counterparts
from onnx_bnfold.model.messages import new_attribute, new_node, new_tensor, new_value_info
from onnx_bnfold.model.repeated_fields import GONE, arrange, drop_named, exchange, set_attribute
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.entries import BiasPlace
from onnx_bnfold.planning.notes import append, note
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.rewriting import node_origins
from onnx_bnfold.rewriting.computed_elements import Pending
from onnx_bnfold.rewriting.descriptions import drop_descriptions, hand_on_shapes, rename_shards
from onnx_bnfold.rewriting.fresh_names import Names
from onnx_bnfold.rewriting.integrity import Text, require_intact
from onnx_bnfold.rewriting.new_constants import NewConstant, new_constants
from onnx_bnfold.rewriting.node_copies import NodeCopies
from onnx_bnfold.rewriting.removal import drop_dead, drop_sparse
from onnx_bnfold.storage.tensors import clear_values, is_external


def rewrite(
    model: ModelProto,
    plans: Sequence[GraphPlan],
    *,
    freeze: bool,
    unread: Set[str] = frozenset(),
    metadata: bool = False,
) -> dict[str, Pending]:
    """Apply plans to a model in place.

    Args:
        model: a copy of the model that was planned, whose bodies are in the same order.
        plans: one per body.
        freeze: take initializers that are graph inputs out of the inputs.
        unread: constants that may have lost their readers before, and go, too.
        metadata: whether nodes say what they took of others (``node_origins``).

    Returns:
        The new initializers of the main graph, by name. Constants of other bodies are complete.

    Raises:
        Unrepresentable: a constant outside the main graph does not fit its type.
        BrokenResult: the rewritten model is not sound.
    """
    graphs = [plan.state.graph for plan in plans]
    bodies = counterparts(model, graphs)
    names = Names(graphs)
    pending: dict[str, Pending] = {}
    if freeze:
        freeze_constants(model, graphs[0])
    maybe_unread = set(unread)
    initializer_names: dict[int, list[str]] = {}
    for position in reversed(range(len(plans))):
        editor = _Editor(model, bodies[position], plans[position], position, names)
        if metadata and model.ir_version >= node_origins.OLDEST_IR_VERSION:
            node_origins.record(editor.nodes, plans[position])
        maybe_unread |= editor.run()
        pending.update(editor.pending)
        initializer_names[position] = editor.initializer_names
    texts = [*map(Text, bodies)]
    below = _those_below(graphs, texts)
    dead = [
        drop_dead(text, plan.state.constants, initializer_names[i], below[i], maybe_unread)
        for i, (plan, text) in enumerate(zip(plans, texts, strict=True))
    ]
    for name in dead[0].intersection(pending):
        del pending[name]
    require_intact(graphs, texts, model.ir_version)
    return pending


def freeze_constants(model: ModelProto, main: Graph) -> None:
    """Take initializers that are graph inputs out of the inputs."""
    if model.ir_version >= 4:  # below, every initializer has to be an input
        drop_named(model.graph.input, main.initializers.keys() | main.sparse.keys())


def _those_below(graphs: Sequence[Graph], bodies: Sequence[Text]) -> list[list[Text]]:
    """Return for every body those that it holds, at any depth."""
    below: dict[int, list[Text]] = {id(graph): [] for graph in graphs}
    for graph, body in zip(graphs, bodies, strict=True):
        outer = graph.parent
        while outer is not None:
            below[id(outer)].append(body)
            outer = outer.parent
    return [*below.values()]


class _Editor:
    """Rewrites one body."""

    def __init__(
        self, model: ModelProto, body: Body, plan: GraphPlan, position: int, names: Names
    ) -> None:
        self.model = model
        self.main = model.graph
        self.body = body
        self.plan = plan
        self.state = plan.state
        self.position = position
        self.names = names
        self.pending: dict[str, Pending] = {}
        self.maybe_unread: set[str] = set()
        self.nodes: list[NodeProto] = list(body.node)
        self.before: list[NodeProto] = []
        self.unmade: set[int] = set()
        self.reshaped: set[str] = set()
        self.revalued = {key for key in self.state.total if isinstance(key, str)}
        self.initializer_names = [*self.state.graph.initializers]
        names_in_order = self.initializer_names
        self.positions = dict(zip(names_in_order, range(len(names_in_order)), strict=True))
        self.inputs = {v.name: v for v in body.input} if isinstance(body, GraphProto) else {}
        self.after: dict[int, list[NodeProto]] = {}
        self.bounds: dict[int, list[str]] = {}
        self.copies = NodeCopies(self.state, self.nodes, self.after, names)

    def run(self) -> set[str]:
        """Apply the plan; return the names of constants that may have lost their readers."""
        for new in new_constants(self.position, self.plan):
            self._place(new)
        for index, attributes in self.state.new_attributes():
            for attribute in attributes:
                set_attribute(self.nodes[index], *attribute)
        reads = map(self.state.graph.reads.__getitem__, self.state.removed)
        self.maybe_unread |= self.state.constants.among(set(chain.from_iterable(reads)))
        for index in self.plan.equal_scales:
            append(self.nodes[index], batchnorm.EQUAL_SCALES)
        for index, reasons in self.plan.left.items():
            for why in reasons:
                note([self.nodes[index], *self.after.get(index, ())][-1], why, self.plan.limits)
        self._rename(self._final_names())
        for index, constants in self.bounds.items():
            self._clamp(index, constants)
        gone = self.state.removed | self.unmade
        if gone or self.before or self.after:
            self._arrange(gone)
        return self.maybe_unread

    def _arrange(self, gone: Set[int]) -> None:
        """Take nodes out, and put the new ones in: constants in front, an Add behind its node."""
        places = [GONE if index in gone else 2 * index for index in range(len(self.nodes))]
        behind = [(index, node) for index, nodes in self.after.items() for node in nodes]
        self.body.node.extend((*self.before, *(node for _, node in behind)))
        places += [-1] * len(self.before) + [2 * index + 1 for index, _ in behind]
        arrange(self.body.node, places)

    def _place(self, new: NewConstant) -> None:
        node, reads = self.nodes[new.node], self.state.graph.reads[new.node]
        old = reads[new.slot] if new.slot < len(reads) else ""
        is_shared = new.of_shared_weight
        name = self._name(old, new, is_shared)
        self._define(name, old, new)
        if is_shared:
            node = self.copies.of(new.node, new.cause[1])
            self.maybe_unread.update(self.state.graph.writes[new.node])
        elif new.node != new.cause[1]:  # a DequantizeLinear: nothing makes up for it here
            self.revalued.update(self.state.graph.writes[new.node])
        place = new.revised.place
        if place is BiasPlace.INPUT:
            if name != old:
                self._read(node, new.slot, name)
            for attribute in new.revised.attributes:
                set_attribute(node, *attribute)
        elif place is BiasPlace.BOUND:
            self.bounds.setdefault(new.node, []).append(name)
        elif place is BiasPlace.GEMM:
            self._become_gemm(node, name)
        else:
            self._append_add(node, new.node, name)

    def _read(self, node: NodeProto, slot: int, name: str) -> None:
        inputs = node.input
        missing = slot - len(inputs)
        if missing < 0:
            inputs[slot] = name
        else:
            inputs.extend([*[""] * missing, name])

    def _name(self, old: str, new: NewConstant, is_shared: bool) -> str:
        graph = self.state.graph
        here = old in graph.initializers or old in graph.producer or old in graph.sparse
        if old and here and graph.only_reader(old) and not is_shared:
            self.maybe_unread.discard(old)
            return old
        if old:
            self.maybe_unread.add(old)
            return self.names.fresh(f"{old}_folded")
        return self.names.fresh(f"{graph.name(new.node)}_{new.revised.suffix}")

    def _define(self, name: str, old: str, new: NewConstant) -> None:
        replaces = name == old
        if replaces:
            self.reshaped.add(name)
        if self.body is self.main:
            tensor = self._initializer(self.main, name, new, replaces=replaces)
            self.pending[name] = Pending(tensor, math.prod(new.dims), new)
            source = None if replaces else self.state.graph.initializers.get(old)
            if source is not None and is_external(source):
                tensor.data_location = source.data_location
                tensor.external_data.extend(source.external_data)
            return
        full = new_tensor(np.ascontiguousarray(new()), name)
        early = self.model.ir_version < 4 and name not in self.positions
        if early or not isinstance(self.body, GraphProto):
            self._unmake(name)
            self.before.append(new_node("Constant", [], [name], value=full))
            return
        tensor = self._initializer(self.body, name, new, replaces=replaces)
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
        tensor.raw_data = full.raw_data

    def _initializer(
        self, body: GraphProto, name: str, new: NewConstant, *, replaces: bool
    ) -> TensorProto:
        """Return an initializer of the body that has name, shape and type, and no values yet."""
        position = self.positions.get(name)
        tensor: TensorProto
        if position is None:
            if replaces:
                self._unmake(name)
                drop_sparse(body, {name})
            tensor = body.initializer.add(name=name, dims=new.dims, data_type=new.data_type)
            self.initializer_names.append(name)
        else:
            tensor = body.initializer[position]
            clear_values(tensor)
            if tensor.data_type == new.data_type and self.state.graph.dims[name] == new.dims:
                return tensor  # it is declared as before
            tensor.data_type = new.data_type
            tensor.dims[:] = new.dims
        if name in self.inputs:
            self.inputs[name].CopyFrom(_declaration(tensor))
        elif position is None and self.model.ir_version < 4 and body is self.main:
            body.input.append(_declaration(tensor))
        return tensor

    def _unmake(self, name: str) -> None:
        """Drop the node that made a constant which becomes an initializer of the same name."""
        producer = self.state.graph.producer.get(name)
        if producer is not None:
            self.maybe_unread.update(self.nodes[producer].input)
            self.unmade.add(producer)

    def _become_gemm(self, node: NodeProto, bias: str) -> None:
        """Write a product of two matrices as a Gemm, which has a bias."""
        node.op_type = "Gemm"
        node.input.append(bias)
        if self.state.graph.opset < 7:
            node.attribute.append(new_attribute("broadcast", 1))

    def _append_add(self, node: NodeProto, index: int, summand: str) -> None:
        """Let an Add of a constant follow a node."""
        product = self.names.fresh(f"{node.output[0]}_product")
        name = self.names.fresh(f"{node.name}_bias") if node.name else ""
        add = new_node("Add", [product, summand], [node.output[0]], name=name)
        if self.state.graph.opset < 7:
            axis = self.state.layer(index).out_axis
            add.attribute.append(new_attribute("axis", axis))
            add.attribute.append(new_attribute("broadcast", 1))
        node.output[0] = product
        node_origins.hand_on(node, add)
        self.after[index] = [add]

    def _clamp(self, index: int, constants: Sequence[str]) -> None:
        """Write a clamp with constants, and drop what only it has needed."""
        from onnx_bnfold.rewriting.clamp_nodes import write_clamp  # few plans have any

        old, result = {*self.nodes[index].input}, self.nodes[index].output[0]
        place, behind = write_clamp(self.state, self.nodes, index, constants, self.names)
        self.after.setdefault(place, []).extend(behind)
        if place != index:
            self.unmade.add(index)
            old |= drop_descriptions(self.body, {result})
        self.maybe_unread |= self.state.constants.among(old)

    def _final_names(self) -> dict[str, str]:
        """Return the new name of every tensor that is merged into another."""
        state = self.state
        groups: dict[str, dict[str, None]] = {}
        root_of = state.groups.root
        for index in sorted(state.removed):
            x, y = state.sides(index)
            root = root_of(y)
            if root in groups:
                groups[root][x] = groups[root][y] = None
            else:
                groups[root] = {x: None, y: None}
        mapping, fixed = {}, state.groups.fixed()
        for root, members in groups.items():
            others = state.total if fixed.isdisjoint(members) else members.keys() - fixed
            final = next(filterfalse(others.__contains__, reversed(members)), root)
            for member in members:
                if member != final:
                    mapping[member] = final
        return mapping

    def _rename(self, mapping: dict[str, str]) -> None:
        graph = self.state.graph
        for old, new in mapping.items():
            for index, slot in graph.readers.get(old, ()):
                if index not in self.state.removed:
                    exchange(self.nodes[index].input, slot, old, new)
            maker = graph.producer.get(old)
            if maker is not None and maker not in self.state.removed:
                exchange(self.nodes[maker].output, graph.writes[maker].index(old), old, new)
        for add in chain.from_iterable(self.after.values()):
            if add.output[0] in mapping:
                add.output[0] = mapping[add.output[0]]
        if self.model.configuration:  # of several devices, for which nodes name their tensors
            for node in chain(self.nodes, *self.after.values()):
                rename_shards(node, mapping)
        hand_on_shapes(self.body, mapping)
        self.maybe_unread |= self.state.constants.among(
            drop_descriptions(self.body, mapping.keys() | self.reshaped, self.revalued)
        )


def _declaration(tensor: TensorProto) -> ValueInfoProto:
    return new_value_info(tensor.name, tensor.data_type, list(tensor.dims))
