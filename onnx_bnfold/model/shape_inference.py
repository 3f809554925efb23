"""Shapes and types of computed tensors, from onnx's shape inference on a model without weights.

Inference runs once, when a shape is first needed: a model whose BatchNormalizations all follow
their layers directly never needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnx_bnfold.model.bare import without_metadata
from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.determinism import SIZING
from onnx_bnfold.model.graph import STANDARD_DOMAINS, Body, Dims, Graph, ReadTensor, bodies_of
from onnx_bnfold.model.inference_guard import MOST_LEVELS, behind, hide_unsafe_slices
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.storage.tensors import elsewhere, fill, is_external, tensors

if TYPE_CHECKING:
    from onnx_bnfold.model.suspects import Suspects, Types

# Initializers of up to this many elements keep their values, since shapes may depend on them.
LARGEST_KEPT = 1024

# External floats are read if they have up to this many elements: they may be scales of a Resize.
_LARGEST_SCALES = 16

# Values are not propagated in models with a longer vector.
LONGEST_PROPAGATED = 2**16

# How often it is inferred again with sizes that it has found.
MOST_REPEATED = 8

# Why nothing is inferred behind Slices that stay hidden.
_DEEP = (
    Reason.SEARCH_LIMIT,
    f"it is behind more than {MOST_LEVELS} Slices, where shapes are not inferred",
)


class Shapes:
    """Known dims and element types of one graph's tensors.

    Args:
        graph: the graph.
        inference: shared by all graphs of the model.
        position: index of the graph among those of the model.
        outer: the shapes of the enclosing scope, whose tensors a subgraph may read.
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
        """Return a tensor's dims: None for each if only the rank is known; None if nothing is."""
        if name not in self._dims:  # cached: rules ask many times
            self._dims[name] = self._find_dims(name)
        return self._dims[name]

    def _find_dims(self, name: str) -> Dims | None:
        scope = self._scope_of(name)
        dims, _ = scope._inference.types(scope._position).get(name, (None, 0))
        if dims is not None:
            return dims
        rank = scope._rank_hints().get(name)
        return None if rank is None else (None,) * rank

    def type_of(self, name: str) -> int:
        """Return a computed tensor's element type, UNDEFINED if it is not known."""
        scope = self._scope_of(name)
        _, data_type = scope._inference.types(scope._position).get(name, (None, 0))
        if data_type:
            return data_type
        return scope._type_hints().get(name, TensorProto.UNDEFINED)

    def why_unknown(self, names: Iterable[str]) -> tuple[Reason, str] | None:
        """Return why nothing was inferred for one of some tensors; None if there is no reason."""
        return self._inference.why_unknown(names)

    def _rank_hints(self) -> dict[str, int]:
        """Return the ranks that layers imply, for graphs whose inputs have no shape."""
        if self._ranks is None:
            from onnx_bnfold.model.inference_hints import ranks_by_layers

            self._ranks = ranks_by_layers(self._graph, self._inference.types(self._position))
        return self._ranks

    def _type_hints(self) -> dict[str, int]:
        """Return the types that constants imply, for graphs whose inputs have no type."""
        if self._kinds is None:
            from onnx_bnfold.model.inference_hints import types_by_constants

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
        self._light: ModelProto | None = None  # while it may be refined
        self._blind: dict[tuple[Reason, str], frozenset[str]] = {}

    def why_unknown(self, names: Iterable[str]) -> tuple[Reason, str] | None:
        """Return why nothing was inferred for one of some tensors; None if there is no reason."""
        names = tuple(names)
        self.types(0)  # runs the inference
        return next(
            (why for why, tensors in self._blind.items() if not tensors.isdisjoint(names)), None
        )

    def types(self, position: int) -> Types:
        """Return name → (dims, element type) for the graph at a position of ``graphs_of``."""
        if self._types is None:
            self._types = self._run()
        return self._types[position] if position < len(self._types) else {}

    def _run(self) -> list[Types]:
        from onnx_bnfold.model.inference_hints import stand_in

        light = without_weights(self._model)
        stand_in(light)
        self._read_parameters(light)
        self._fix_parameters(light, Constants(self._main, self._read, {}, None))
        suspects = self._suspects(light)
        try:
            types = self._inferred(light, suspects, data_prop=False)
            if not any(_is_long(kind) for of_one in types for kind in of_one.values()):
                types = self._inferred(light, suspects, data_prop=True)
                self._light = None if SIZING.isdisjoint(self._main.ops) else light
        except Exception:  # go on without shapes if the model is inconsistent; the rules refuse
            types = [_types_of(body) for body in bodies_of(light)]
        return types

    def _read_parameters(self, light: ModelProto) -> None:
        """Read axes, shapes and the like whose values are in a file."""
        for _, tensor in tensors(light, elsewhere()):
            if _may_be_parameter(tensor):
                values = self._read(tensor)
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")
                fill(tensor, values)

    def _suspects(self, light: ModelProto) -> Suspects:
        """Return the nodes that may be misread; those that are, whatever the sizes, are hidden."""
        from onnx_bnfold.model.suspects import Suspects

        suspects = Suspects(light)
        self._leave_open(light, suspects, None)
        return suspects

    def refine(self) -> bool:
        """Infer again with what nodes compute from sizes; return whether more is known by it."""
        if self._types is None or self._light is None:
            return False
        from onnx_bnfold.model.reshaped_sizes import ReshapedSizes

        light, self._light, before = self._light, None, self._types
        reshaped = ReshapedSizes(self._main, light.graph)
        for _ in range(MOST_REPEATED):
            constants = Constants(self._main, self._read, self._types[0], None)
            fixed = self._fix_parameters(light, constants)
            if not reshaped.note(constants, self._types[0]) and not fixed:
                break
            try:
                self._types = self._inferred(light, self._suspects(light), data_prop=True)
            except Exception:  # more sizes show that the model is inconsistent
                break
        return self._types is not before

    def _inferred(self, light: ModelProto, suspects: Suspects, *, data_prop: bool) -> list[Types]:
        """Infer repeatedly, until the inferred sizes show no further misread node."""
        while True:
            deep = hide_unsafe_slices(light, data_prop=data_prop)
            self._blind[_DEEP] = self._blind.get(_DEEP, frozenset()) | behind(light, deep)
            types = _inferred(light, data_prop=data_prop)
            if not self._leave_open(light, suspects, types):
                return types

    def _leave_open(
        self, light: ModelProto, suspects: Suspects, types: Sequence[Types] | None
    ) -> bool:
        """Hide misread nodes from the inference; return whether there were any."""
        from onnx_bnfold.model.misread import MISREAD
        from onnx_bnfold.model.suspects import leave_open

        misread = [*suspects.take(types)]
        for op, node in misread:
            why = Reason.UNKNOWN_SHAPE, f"it is behind a node of {op} {MISREAD[op].what}"
            self._blind[why] = self._blind.get(why, frozenset()) | behind(light, [node])
        leave_open(node for _, node in misread)
        return bool(misread)

    def _fix_parameters(self, light: ModelProto, constants: Constants) -> bool:
        """Replace computed axes, shapes and the like by Constant nodes; return whether any is new.

        PyTorch's dynamo exporter writes the axes of a ReduceMean as a Reshape of a Constant, which
        shape inference does not evaluate.
        """
        producer, any_new = self._main.producer, False
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
                    any_new = True
        return any_new


def _inferred(model: ModelProto, *, data_prop: bool) -> list[Types]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
    return [_types_of(body) for body in bodies_of(inferred)]


def _is_long(kind: tuple[Dims | None, int]) -> bool:
    """Return whether a tensor is a vector that is too long for its values to be propagated.

    onnx's propagation takes memory for each element, so a file of a few bytes could exhaust it.
    """
    dims = kind[0]
    return (
        dims is not None
        and len(dims) == 1
        and isinstance(dims[0], int)
        and dims[0] > LONGEST_PROPAGATED
    )


def _types_of(body: Body) -> Types:
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
    """Copy a model without the values of its large initializers and without derived value_info.

    The file's value_info of tensors that standard operators compute is left out: inference computes
    it anew, and a wrong entry must not lead to a wrong fold.
    """
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = "graph"  # the original name may not be text
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
    return without_metadata(light)


def _open_negative_sizes(graph: GraphProto) -> None:
    """Clear sizes of -1, which some converters write for unknown ones."""
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
    """Return whether a tensor may be axes, sizes or the like, or the scales of a Resize."""
    integers = tensor.data_type == TensorProto.INT64
    return _is_small(tensor, LARGEST_KEPT if integers else _LARGEST_SCALES)


def _is_small(tensor: TensorProto, limit: int = LARGEST_KEPT) -> bool:
    return bool(math.prod(tensor.dims) <= limit)
