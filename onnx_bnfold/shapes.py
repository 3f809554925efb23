"""Shapes and types of computed tensors, by onnx's shape inference on the graph without its weights.

Inference runs once, and only if somebody asks: a model whose BatchNormalizations all follow their
layers directly never needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import (
    GraphProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnx_bnfold.constants import Constants
from onnx_bnfold.graph import STANDARD_DOMAINS, Dims, Graph, ReadTensor, bodies_of, graphs_of
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.slices import MOST_LEVELS, behind, hide_unsafe_slices
from onnx_bnfold.storage.tensors import elsewhere, fill, is_external, tensors

if TYPE_CHECKING:
    from onnx_bnfold.misread import Suspects, Types

# Initializers up to this many elements keep their values: shapes may depend on them.
LARGEST_KEPT = 1024

# Floats that lie in another file are read up to this many.
_LARGEST_SCALES = 16

# Longest vector that may be there when values are propagated.
LONGEST_PROPAGATED = 2**16

# Why inference does not see some nodes, and nothing of what lies behind them.
_DEEP = (
    Reason.SEARCH_LIMIT,
    f"it lies behind more than {MOST_LEVELS} Slices, where shapes are not inferred",
)


class Shapes:
    """Known dims and element types of one graph's tensors.

    Args:
        graph: the graph.
        inference: shared by all graphs of the model.
        position: of the graph among those of the model.
        outer: of the enclosing scope, whose tensors a subgraph may read.
    """

    def __init__(
        self, graph: Graph, inference: Inference, position: int, outer: Shapes | None
    ) -> None:
        self._graph = graph
        self._outer = outer
        self._inference = inference
        self._position = position
        self._dims: dict[str, Dims | None] = {}
        self._ranks: dict[str, int] | None = None
        self._kinds: dict[str, int] | None = None

    def __contains__(self, name: object) -> bool:
        scope = self._scope_of(name)
        return name in scope._inference.types(scope._position)

    def _scope_of(self, name: object) -> Shapes:
        scope = self
        while scope._outer is not None and not scope._graph.defines(name):
            scope = scope._outer
        return scope

    def __getitem__(self, name: str) -> tuple[Dims | None, int]:
        scope = self._scope_of(name)
        return scope._inference.types(scope._position)[name]

    def dims(self, name: str) -> Dims | None:
        """Return a tensor's dims, all unknown where only the rank is known, or None."""
        if name not in self._dims:  # rules ask again and again
            self._dims[name] = self._find_dims(name)
        return self._dims[name]

    def _find_dims(self, name: str) -> Dims | None:
        scope = self._scope_of(name)
        found = scope._inference.types(scope._position).get(name)
        if found is not None and found[0] is not None:
            return found[0]
        rank = scope._rank_hints().get(name)
        return None if rank is None else (None,) * rank

    def type_of(self, name: str) -> int:
        """Return a computed tensor's element type, UNDEFINED where it is not known."""
        scope = self._scope_of(name)
        found = scope._inference.types(scope._position).get(name)
        if found is not None and found[1]:
            return found[1]
        return scope._type_hints().get(name, TensorProto.UNDEFINED)

    def why_unknown(self, names: Iterable[str]) -> tuple[Reason, str] | None:
        """Return why nothing is inferred where one of some tensors lies, if that is so."""
        return self._inference.why_unknown(names)

    def _rank_hints(self) -> dict[str, int]:
        """Ranks that the layers themselves fix, where the graph's inputs have no shape."""
        if self._ranks is None:
            from onnx_bnfold.hints import ranks_by_layers

            self._ranks = ranks_by_layers(self._graph, self._inference.types(self._position))
        return self._ranks

    def _type_hints(self) -> dict[str, int]:
        """Types that the constants fix that tensors are computed with."""
        if self._kinds is None:
            from onnx_bnfold.hints import types_by_constants

            self._kinds = types_by_constants(self._graph)
        return self._kinds


class Inference:
    """Runs shape inference on a model once, when first asked.

    Args:
        model: the model.
        main: its main graph.
        read: reads the elements of an initializer.
    """

    def __init__(self, model: ModelProto, main: Graph, read: ReadTensor) -> None:
        self._model = model
        self._main = main
        self._read = read
        self._types: list[Types] | None = None
        self._blind: dict[tuple[Reason, str], frozenset[str]] = {}

    def why_unknown(self, names: Iterable[str]) -> tuple[Reason, str] | None:
        """Return why nothing is inferred where one of some tensors lies, if that is so."""
        names = tuple(names)
        self.types(0)  # which finds out
        return next(
            (why for why, there in self._blind.items() if not there.isdisjoint(names)), None
        )

    def types(self, position: int) -> Types:
        """Return name → (dims, element type) for the graph at a position of ``graphs_of``."""
        if self._types is None:
            self._types = self._run()
        return self._types[position] if position < len(self._types) else {}

    def _run(self) -> list[Types]:
        from onnx_bnfold.misread import Suspects  # needed where shapes are

        light = without_weights(self._model)
        self._read_parameters(light)
        self._fix_parameters(light)
        suspects = Suspects(light)
        self._leave_open(light, suspects, None)
        try:
            types = self._inferred(light, suspects, data_prop=False)
            if not any(_is_long(kind) for found in types for kind in found.values()):
                types = self._inferred(light, suspects, data_prop=True)
        except Exception:  # an inconsistent model has no shapes; the rules then refuse
            types = [_types_of(graph) for graph in graphs_of(light)]
        return types

    def _read_parameters(self, light: ModelProto) -> None:
        """Fetch the axes, shapes and the like whose values lie in another file."""
        for _, tensor in tensors(light, elsewhere()):
            if _may_be_parameter(tensor):
                values = self._read(tensor)
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")
                fill(tensor, values)

    def _inferred(self, light: ModelProto, suspects: Suspects, *, data_prop: bool) -> list[Types]:
        """Infer, again and again until no node is misread by the sizes that come out."""
        while True:
            deep = hide_unsafe_slices(light, data_prop=data_prop)
            self._blind[_DEEP] = self._blind.get(_DEEP, frozenset()) | behind(light, deep)
            types = _inferred(light, data_prop=data_prop)
            if not self._leave_open(light, suspects, types):
                return types

    def _leave_open(
        self, light: ModelProto, suspects: Suspects, types: Sequence[Types] | None
    ) -> bool:
        """Take what inference misreads from it; return whether there was any."""
        from onnx_bnfold.misread import MISREAD, leave_open

        found = [*suspects.take(types)]
        for op, node in found:
            why = Reason.UNKNOWN_SHAPE, f"it lies behind a node of {op} {MISREAD[op].what}"
            self._blind[why] = self._blind.get(why, frozenset()) | behind(light, [node])
        leave_open(node for _, node in found)
        return bool(found)

    def _fix_parameters(self, light: ModelProto) -> None:
        """Replace computed axes, shapes and the like by their values.

        PyTorch's dynamo exporter writes the axes of a ReduceMean as a Reshape of a Constant, which
        shape inference does not follow.
        """
        constants = Constants(self._main, self._read, {}, None)
        producer = self._main.producer
        for node in self._main.nodes:
            for name in node.input:
                index = producer.get(name)
                if index is None or light.graph.node[index].op_type == "Constant":
                    continue
                info = constants.get(name)
                if info and info.data_type == TensorProto.INT64 and info.size <= LARGEST_KEPT:
                    try:
                        value = numpy_helper.from_array(constants.value(name))
                    except Refused:
                        continue
                    made = helper.make_node("Constant", [], [name], value=value)
                    light.graph.node[index].CopyFrom(made)


def _inferred(model: ModelProto, *, data_prop: bool) -> list[Types]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
    return [_types_of(graph) for graph in graphs_of(inferred)]


def _is_long(kind: tuple[Dims | None, int]) -> bool:
    """Whether a tensor is a vector so long that onnx's propagation of its values is a danger.

    It takes memory for each element: a file of a few bytes could take all there is.
    """
    dims = kind[0]
    return (
        dims is not None
        and len(dims) == 1
        and isinstance(dims[0], int)
        and dims[0] > LONGEST_PROPAGATED
    )


def _types_of(graph: Graph) -> Types:
    body = graph.body
    if not isinstance(body, GraphProto):
        return {}
    values: Sequence[ValueInfoProto] = [*body.input, *body.output, *body.value_info]
    return {
        v.name: (
            _dims(v) if v.type.tensor_type.HasField("shape") else None,
            v.type.tensor_type.elem_type,
        )
        for v in values
        if v.type.HasField("tensor_type")
    }


def _dims(value: ValueInfoProto) -> Dims | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
        for d in value.type.tensor_type.shape.dim
    )


def without_weights(model: ModelProto) -> ModelProto:
    """Copy a model without the bytes of its large initializers and without derived value_info.

    What the file says of tensors that standard operators compute is left out: inference knows
    better, and a stale entry must not lead to a wrong fold.
    """
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = "graph"  # its own may be no text
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    foreign = {o for n in source.node if n.domain not in STANDARD_DOMAINS for o in n.output}
    graph.value_info.extend(v for v in source.value_info if v.name in foreign)
    graph.initializer.extend(_shape_only(t) for t in source.initializer)
    graph.initializer.extend(
        TensorProto(name=s.values.name, dims=s.dims, data_type=s.values.data_type)
        for s in source.sparse_initializer
    )
    for body in bodies_of(light):
        if isinstance(body, GraphProto):
            _open_negative_sizes(body)
    return light


def _open_negative_sizes(graph: GraphProto) -> None:
    """Some converters write -1 where a size is open."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value < 0:
                dim.Clear()


def _shape_only(tensor: TensorProto) -> TensorProto:
    is_kept = _may_be_parameter(tensor) if is_external(tensor) else _is_small(tensor)
    if is_kept:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


def _may_be_parameter(tensor: TensorProto) -> bool:
    """Whether a tensor may be an axis, a size or the like, or the scales of a Resize."""
    integers = tensor.data_type == TensorProto.INT64
    return _is_small(tensor, LARGEST_KEPT if integers else _LARGEST_SCALES)


def _is_small(tensor: TensorProto, limit: int = LARGEST_KEPT) -> bool:
    return bool(math.prod(tensor.dims) <= limit)
