"""Applying a plan to a copy of the model: each layer is rewritten exactly once.

The new constants are not computed here. Each becomes a tensor without elements and a function that
computes them, so that a large model can be written one layer at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnx_bnfold import batchnorm
from onnx_bnfold.affine import Affine
from onnx_bnfold.constants import EVALUATED
from onnx_bnfold.graph import Body, graphs_of, subgraphs
from onnx_bnfold.layers import LAYOUTS, LinearLayer
from onnx_bnfold.numerics import rounded
from onnx_bnfold.plan import GraphPlan
from onnx_bnfold.quantized import QuantizedWeight
from onnx_bnfold.reasons import Refusal, Refused
from onnx_bnfold.rules import OUT
from onnx_bnfold.site import Site

Array = np.ndarray[Any, Any]
Compute = Callable[[], Array]


class Unrepresentable(Exception):
    """New constants do not fit their data type.

    Attributes:
        failures: (position of the graph, node index) → why.
    """

    def __init__(self, failures: dict[tuple[int, int], Refusal]) -> None:
        super().__init__("constants do not fit their data type")
        self.failures = failures


@dataclass(frozen=True)
class NewConstant:
    """A constant that replaces the one a node reads.

    Attributes:
        node, slot: the input that reads it; a slot past the node's last adds an input.
        suffix: for its name, where it cannot keep the old one.
        dims, data_type: of the new tensor.
        compute: returns its elements in ``data_type``; raises ``Unrepresentable``.
        attributes: of the node, to be set along with it.
    """

    node: int
    slot: int
    suffix: str
    dims: tuple[int, ...]
    data_type: int
    compute: Compute
    attributes: tuple[tuple[str, int], ...] = ()


def new_constants(position: int, plan: GraphPlan) -> Iterator[NewConstant]:
    """Yield the constants of a graph that change, in node order.

    Args:
        position: of the graph in the model, for ``Unrepresentable``.
        plan: its plan.
    """
    site = plan.site
    edges = sorted(key for key in site.total if isinstance(key, tuple))
    wanted = sorted({*plan.touched, *(index for index, _ in edges)} - site.removed)
    for index in wanted:
        op = site.view(index).op
        if op in LAYOUTS:
            found = _of_layer(site, index)
        elif op == batchnorm.OPERATOR:
            found = _of_norm(site, index)
        else:
            found = (_of_edge(site, *edge) for edge in edges if edge[0] == index)
        for new in found:
            yield replace(new, compute=partial(_guarded, position, index, new.compute))


def _guarded(position: int, index: int, compute: Compute) -> Array:
    try:
        return compute()
    except Refused as refused:
        raise Unrepresentable({(position, index): refused.refusal}) from None


def _sides(site: Site, index: int) -> tuple[Affine | None, Affine | None]:
    into = site.key(index, site.ports(index)[0])
    out = site.key(index, OUT)
    return site.total.get(into or ""), site.total.get(out or "")


def _of_layer(site: Site, index: int) -> Iterator[NewConstant]:
    layer, (into, out) = site.layer(index), _sides(site, index)
    data_type = layer.weight.data_type

    def weight() -> Array:
        original = site.constants.value(layer.weight.name)
        folded = layer.fold_weight(original, into, out).reshape(layer.grouped)
        result = rounded(folded, data_type, site.view(index), sums_over=layer.summed_axes)
        return result.reshape(original.shape)

    if layer.quantized is not None:
        if out is not None and out.has_scale:
            yield from _of_quantized(site, layer, layer.quantized, out)
    elif (into is not None and into.has_scale) or (out is not None and out.has_scale):
        yield NewConstant(index, layer.weight_slot, "weight", layer.weight.dims, data_type, weight)
    if needs_bias(layer, into, out):
        yield _bias_of_layer(site, index, layer, into, out)


def _of_quantized(
    site: Site, layer: LinearLayer, weight: QuantizedWeight, out: Affine
) -> Iterator[NewConstant]:
    index, view = weight.view.index, weight.view
    factor, _ = layer.output_vectors(out)
    axis = () if weight.is_blocked else (("axis", weight.out_axis),)

    def scale() -> Array:
        return rounded(weight.fold_scale(factor), weight.scale.data_type, view, sums_over=())

    if (factor < 0).any():
        integers = partial(weight.fold_integers, factor)
        dims, kind = weight.integers.dims, weight.integers.data_type
        yield NewConstant(index, 0, "integers", dims, kind, integers)
    dims = weight.scale_dims
    yield NewConstant(index, 1, "scale", dims, weight.scale.data_type, scale, axis)
    zero = weight.zero_point
    if zero is not None and zero.dims != dims:
        yield NewConstant(index, 2, "zero_point", dims, zero.data_type, weight.fold_zero_point)


def needs_bias(layer: LinearLayer, into: Affine | None, out: Affine | None) -> bool:
    """Whether a layer's bias changes, or one has to be made."""
    shifted = (into is not None and into.has_shift) or (out is not None and out.has_shift)
    return shifted or (layer.bias is not None and out is not None and out.has_scale)


def _bias_of_layer(
    site: Site, index: int, layer: LinearLayer, into: Affine | None, out: Affine | None
) -> NewConstant:
    data_type = layer.weight.data_type

    def bias() -> Array:
        old = None if layer.bias is None else site.constants.value(layer.bias.name)
        shifted = into is not None and into.has_shift
        weight = site.constants.value(layer.weight.name) if shifted else None
        folded = layer.fold_bias(old, weight, into, out)
        return rounded(np.broadcast_to(folded, dims), data_type, site.view(index))

    old_dims = () if layer.bias is None else layer.bias.dims
    dims = np.broadcast_shapes(old_dims, (layer.channels_out,))
    slot = 2 if layer.bias_slot is None else layer.bias_slot
    return NewConstant(index, slot, "bias", dims, data_type, bias)


def _of_norm(site: Site, index: int) -> Iterator[NewConstant]:
    """Compensate at a BatchNormalization that stays: ``scale``, ``B`` and ``input_mean``."""
    norm, view, (into, out) = site.norm(index), site.view(index), _sides(site, index)
    count = len(norm.a)
    ones, zeros = np.ones(count), np.zeros(count)
    s_in, h_in = (ones, zeros) if into is None else _vectors(into, count)
    s_out, h_out = (ones, zeros) if out is None else _vectors(out, count)
    scale = norm.a * norm.deviation
    for slot, name, old, new in (
        (1, "scale", scale, scale * s_out / s_in),
        (2, "B", norm.bias, norm.bias * s_out + h_out),
        (3, "input_mean", norm.mean, norm.mean * s_in + h_in),
    ):
        info = view.constant(slot)
        assert info is not None
        if not np.array_equal(old, new):
            exact = () if slot == 1 else None
            compute = partial(rounded, new, info.data_type, view, sums_over=exact)
            yield NewConstant(index, slot, name, (count,), info.data_type, compute)


def _vectors(change: Affine, count: int) -> tuple[Array, Array]:
    vectors = change.vector(1, count)
    assert vectors is not None
    return vectors


def _of_edge(site: Site, index: int, slot: int) -> NewConstant:
    info = site.view(index).constant(slot)
    assert info is not None
    change = site.total[index, slot]
    dims = np.broadcast_shapes(info.dims, change.shape)

    def compute() -> Array:
        value = np.broadcast_to(site.present(index, slot), dims)
        exact = () if site.view(index).op in ("Mul", "Div") else None
        return rounded(value, info.data_type, site.view(index), sums_over=exact)

    return NewConstant(index, slot, "constant", dims, info.data_type, compute)


# --- the protobuf ---------------------------------------------------------------------------


def rewrite(model: ModelProto, plans: Sequence[GraphPlan], *, freeze: bool) -> dict[str, Compute]:
    """Apply plans to a model in place.

    Args:
        model: a copy of the model that was planned, whose bodies are in the same order.
        plans: one per body.
        freeze: take initializers that are graph inputs out of the inputs.

    Returns:
        For each new initializer of the main graph, the function that computes its elements; the
        tensor itself has name, dims and type only. Constants of other bodies are complete.

    Raises:
        Unrepresentable: a constant outside the main graph does not fit its type.
    """
    bodies = [graph.body for graph in graphs_of(model)]
    names = _Names(bodies)
    pending: dict[str, Compute] = {}
    if freeze:
        _drop_named(model.graph.input, {t.name for t in model.graph.initializer})
    loose: set[str] = set()
    for position in reversed(range(len(plans))):  # inner bodies first: they move with their nodes
        editor = _Editor(model, bodies[position], plans[position], position, names)
        loose |= editor.run()
        pending.update(editor.pending)
    for body in [model.graph, *model.functions]:
        _drop_dead(body, loose)
    live = {tensor.name for tensor in model.graph.initializer}
    return {name: compute for name, compute in pending.items() if name in live}


class _Names:
    """All names of a model, to make new ones that collide with none."""

    def __init__(self, bodies: Iterable[Body]) -> None:
        self.taken: set[str] = set()
        for body in bodies:
            values = (*body.input, *body.output)
            self.taken.update(v if isinstance(v, str) else v.name for v in values)
            if isinstance(body, GraphProto):
                self.taken.update(t.name for t in body.initializer)
                self.taken.update(t.values.name for t in body.sparse_initializer)
            for node in body.node:
                self.taken.update((node.name, *node.input, *node.output))

    def fresh(self, wanted: str) -> str:
        """Return ``wanted``, or the first of ``wanted_1``, ``wanted_2``, … that is free."""
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


class _Editor:
    """Rewrites one body."""

    def __init__(
        self, model: ModelProto, body: Body, plan: GraphPlan, position: int, names: _Names
    ) -> None:
        self.model = model
        self.body = body
        self.plan = plan
        self.site = plan.site
        self.position = position
        self.names = names
        self.pending: dict[str, Compute] = {}
        self.loose: set[str] = set()
        self.nodes: list[NodeProto] = list(body.node)
        self.before: list[NodeProto] = []
        self.unmade: set[int] = set()
        graph = isinstance(body, GraphProto)
        self.initializers = {t.name: t for t in body.initializer} if graph else {}
        self.inputs = {v.name: v for v in body.input} if graph else {}
        self.after: dict[int, NodeProto] = {}

    def run(self) -> set[str]:
        """Apply the plan; return the names of constants that may have lost their readers."""
        for new in new_constants(self.position, self.plan):
            self._place(new)
        for index in self.site.removed:
            constant = self.site.constants.get
            self.loose.update(n for n in self.nodes[index].input if n and constant(n))
        if not self.site.removed:
            return self.loose
        self._rename(self._final_names())
        kept = list(self.before)
        for index, node in enumerate(self.nodes):
            if index not in self.site.removed | self.unmade:
                kept += [node, self.after[index]] if index in self.after else [node]
        del self.body.node[:]
        self.body.node.extend(kept)
        return self.loose

    def _place(self, new: NewConstant) -> None:
        node = self.nodes[new.node]
        old = node.input[new.slot] if new.slot < len(node.input) else ""
        base = node.name or node.output[0]
        name = self._name(old, base, new)
        self._define(name, old, new)
        if node.op_type == "MatMul" and new.slot == 2:
            self._add_matmul_bias(new, name)
            return
        while len(node.input) <= new.slot:
            node.input.append("")
        node.input[new.slot] = name
        if node.op_type == "Gemm" and new.slot == 2:
            _drop_attribute(node, "beta")
        for attribute, value in new.attributes:
            _drop_attribute(node, attribute)
            node.attribute.append(helper.make_attribute(attribute, value))

    def _name(self, old: str, base: str, new: NewConstant) -> str:
        graph = self.site.graph
        here = old in graph.initializers or old in graph.producer
        if old and here and graph.only_reader(old):
            self.loose.discard(old)
            return old
        if old:
            self.loose.add(old)
        return self.names.fresh(f"{old or base}_{'folded' if old else new.suffix}")

    def _define(self, name: str, old: str, new: NewConstant) -> None:
        tensor = TensorProto(name=name, dims=new.dims, data_type=new.data_type)
        body = self.body
        if body is self.model.graph:
            self.pending[name] = new.compute
            source = self.site.graph.initializers.get(old)
            if source is not None and source.data_location == TensorProto.EXTERNAL:
                tensor.data_location = source.data_location
                tensor.external_data.extend(source.external_data)
            self._put_initializer(body, tensor, replaces=name == old)
            return
        full = numpy_helper.from_array(np.ascontiguousarray(new.compute()), name)
        if isinstance(body, GraphProto) and self.model.ir_version >= 4:
            self._put_initializer(body, full, replaces=name == old)
            return
        self._unmake(name)
        self.before.append(helper.make_node("Constant", [], [name], value=full))

    def _put_initializer(self, body: GraphProto, tensor: TensorProto, *, replaces: bool) -> None:
        existing = self.initializers.get(tensor.name)
        if existing is not None:
            existing.CopyFrom(tensor)
            if tensor.name in self.inputs:
                self.inputs[tensor.name].CopyFrom(_declaration(tensor))
            return
        if replaces:
            self._unmake(tensor.name)
        body.initializer.append(tensor)
        if self.model.ir_version < 4 and body is self.model.graph:
            body.input.append(_declaration(tensor))

    def _unmake(self, name: str) -> None:
        """Drop the node that made a constant which becomes an initializer of the same name."""
        producer = self.site.graph.producer.get(name)
        if producer is not None:
            self.loose.update(self.nodes[producer].input)
            self.unmade.add(producer)

    def _add_matmul_bias(self, new: NewConstant, name: str) -> None:
        node = self.nodes[new.node]
        old_broadcast = self.site.graph.opset < 7
        if self.site.becomes_gemm(new.node):
            node.op_type = "Gemm"
            node.input.append(name)
            if old_broadcast:
                node.attribute.append(helper.make_attribute("broadcast", 1))
            return
        product = self.names.fresh(f"{node.output[0]}_product")
        add = helper.make_node(
            "Add", [product, name], [node.output[0]],
            name=self.names.fresh(f"{node.name}_bias") if node.name else "",
        )  # fmt: skip
        if old_broadcast:
            add.attribute.append(helper.make_attribute("broadcast", 1))
        node.output[0] = product
        self.after[new.node] = add

    def _final_names(self) -> dict[str, str]:
        """Return the new name of every tensor that is merged into another."""
        site = self.site
        groups: dict[str, dict[str, None]] = {}
        for index in sorted(site.removed):
            for name in site.sides(index):
                groups.setdefault(site.group(name), {})[name] = None
        mapping = {}
        for root, members in groups.items():
            fixed = [m for m in members if site.has_own_fixed_name(m)]
            same = [m for m in members if m not in site.total]
            final = (fixed or same or [root])[-1]
            mapping.update({m: final for m in members if m != final})
        return mapping

    def _rename(self, mapping: dict[str, str]) -> None:
        for node in (*self.nodes, *self.after.values()):
            for field in (node.input, node.output):
                for slot, name in enumerate(field):
                    if name in mapping:
                        field[slot] = mapping[name]
        _drop_named(self.body.value_info, set(mapping))
        if isinstance(self.body, GraphProto):
            stale = [a for a in self.body.quantization_annotation if a.tensor_name in mapping]
            for annotation in stale:
                self.body.quantization_annotation.remove(annotation)


def _declaration(tensor: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _drop_attribute(node: NodeProto, name: str) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _drop(field: Any, stale: Collection[int]) -> None:
    """Take the messages at these positions out of a repeated field."""
    if len(stale) > 16:  # deleting one by one would take quadratic time
        kept = [item for i, item in enumerate(field) if i not in stale]
        del field[:]
        field.extend(kept)
        return
    for index in sorted(stale, reverse=True):
        del field[index]


def _drop_named(field: Any, names: set[str]) -> None:
    _drop(field, {i for i, item in enumerate(field) if item.name in names})


def _drop_dead(body: Body, loose: set[str]) -> None:
    """Drop constants among ``loose``, and what only they needed, that nothing reads any more."""
    uses = _uses(body)
    queue = [name for name in sorted(loose) if not uses[name]]
    makers = {name: i for i, node in enumerate(body.node) for name in node.output}
    dead_nodes: set[int] = set()
    dead: set[str] = set()
    while queue:
        name = queue.pop()
        dead.add(name)
        index = makers.get(name)
        if index is None or index in dead_nodes or body.node[index].op_type not in EVALUATED:
            continue
        if any(uses[output] for output in body.node[index].output):
            continue
        dead_nodes.add(index)
        for other in body.node[index].input:
            uses[other] -= 1
            if not uses[other]:
                queue.append(other)
    _drop(body.node, dead_nodes)
    if isinstance(body, GraphProto):
        _drop_initializers(body, dead)
    for node in body.node:
        for inner in subgraphs(node):
            _drop_dead(inner, loose)


def _drop_initializers(body: GraphProto, dead: set[str]) -> None:
    gone = {t.name for t in body.initializer if t.name in dead}
    _drop_named(body.initializer, gone)
    _drop_named(body.input, gone)
    _drop_named(body.value_info, dead)


def _uses(body: Body) -> Counter[str]:
    """Count the readers of every name, in a body and in the bodies below it."""
    uses: Counter[str] = Counter()
    stack: list[Body] = [body]
    while stack:
        current = stack.pop()
        uses.update(o if isinstance(o, str) else o.name for o in current.output)
        for node in current.node:
            uses.update(node.input)
            stack.extend(subgraphs(node))
    return uses
