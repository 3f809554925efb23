"""Shapes and types of computed tensors, from onnx's shape inference on a model without weights.

Inference runs once, when a shape is first needed: a model whose BatchNormalizations all follow
their layers directly never needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING

import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
)

from onnx_bnfold.model.bare import LARGEST_KEPT, may_be_parameter, without_weights
from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.determinism import SIZING
from onnx_bnfold.model.graph import Body, Dims, Graph, ReadTensor, bodies_of
from onnx_bnfold.model.inference_guard import VALUED, behind, guarded
from onnx_bnfold.model.messages import new_node, new_tensor
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.storage.tensors import elsewhere, fill, tensors

if TYPE_CHECKING:
    from onnx_bnfold.model.suspects import Suspects, Types

# Values are not propagated in models with a longer vector.
LONGEST_PROPAGATED = 2**16

# How often it is inferred again with sizes that it has found.
MOST_REPEATED = 8

_HELD = "Constant"
_SHRUNK = "of which onnx's shape inference finds a negative size; see that the model runs"


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
        graphs: its graphs, the main one first.
        read: reads the elements of an initializer.
    """

    def __init__(self, model: ModelProto, graphs: Sequence[Graph], read: ReadTensor) -> None:
        self._model = model
        self._graphs = graphs
        self._main = graphs[0]
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
        from onnx_bnfold.model.inference_hints import NOT_INFERRED, stand_in

        light = without_weights(self._model)
        if any(not NOT_INFERRED.isdisjoint(graph.ops) for graph in self._graphs):
            stand_in(light)
        self._read_parameters(light)
        self._fix_parameters(light, Constants(self._main, self._read, {}, None))
        suspects = self._suspects(light)
        try:
            types = self._inferred(light, suspects, data_prop=False)
            if not self._are_long(types):
                if self._has_values():
                    types = self._inferred(light, suspects, data_prop=True)
                self._light = None if SIZING.isdisjoint(self._main.ops) else light
        except Exception:  # go on without shapes if the model is inconsistent; the rules refuse
            types = [_types_of(body)[0] for body in bodies_of(light)]
        return types

    def _are_long(self, types: Sequence[Types]) -> bool:
        """Whether values would be propagated that are too many.

        onnx's propagation takes memory for each element, so a file of a few bytes could exhaust it.
        """
        return any(
            _is_long(known[name][0])
            for graph, known in zip(self._graphs, types, strict=True)
            for op, written in zip(graph.ops, graph.writes, strict=True)
            if op in VALUED
            for name in written
            if name in known
        )

    def _has_values(self) -> bool:
        """Whether there may be values to propagate beside constants of the main graph.

        Those are evaluated before.
        """
        _, *others = self._graphs
        return not SIZING.isdisjoint(self._main.ops) or any(
            not VALUED.isdisjoint(graph.ops) for graph in others
        )

    def _read_parameters(self, light: ModelProto) -> None:
        """Read axes, shapes and the like whose values are in a file."""
        for _, tensor in tensors(light, elsewhere()):
            if may_be_parameter(tensor):
                values = self._read(tensor)
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")
                fill(tensor, values)

    def _suspects(self, light: ModelProto) -> Suspects:
        """Return the nodes that may be misread; those that are, whatever the sizes, are hidden."""
        from onnx_bnfold.model.suspects import Suspects

        suspects = Suspects(self._graphs, light)
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
            safe = guarded(light, self._graphs, suspects.integers)
            inferred = onnx.shape_inference.infer_shapes(safe, data_prop=data_prop)
            bodies = zip(self._graphs, bodies_of(inferred), strict=False)  # and the guard
            types, negative = zip(*(_types_of(body) for _, body in bodies), strict=True)
            misread = self._leave_open(light, suspects, types)
            if not (misread or (any(negative) and self._leave_shrunk(light, suspects, negative))):
                return [*types]

    def _leave_open(
        self, light: ModelProto, suspects: Suspects, types: Sequence[Types] | None
    ) -> bool:
        """Hide misread nodes from the inference; return whether there were any."""
        from onnx_bnfold.model.misread import MISREAD
        from onnx_bnfold.model.suspects import leave_open

        misread = [*suspects.take(types)]
        for op, node in misread:
            self._note_blind(light, node, f"{op} {MISREAD[op].what}")
        leave_open(node for _, node in misread)
        return bool(misread)

    def _leave_shrunk(
        self, light: ModelProto, suspects: Suspects, negative: Sequence[Set[str]]
    ) -> bool:
        """Hide nodes of a negative size from the inference; return whether there were any.

        onnxruntime refuses some of these, and takes one window where there is none for others.
        """
        from onnx_bnfold.model.suspects import leave_open

        shrunk = [*suspects.shrunk(negative)]
        for op, node in shrunk:
            self._note_blind(light, node, f"{op} {_SHRUNK}")
        leave_open(node for _, node in shrunk)
        return bool(shrunk)

    def _note_blind(self, light: ModelProto, node: NodeProto, what: str) -> None:
        """Note that nothing is inferred behind a node, and why."""
        why = Reason.UNKNOWN_SHAPE, f"it is behind a node of {what}"
        self._blind[why] = self._blind.get(why, frozenset()) | behind(light, [node])

    def _fix_parameters(self, light: ModelProto, constants: Constants) -> bool:
        """Replace computed axes, shapes and the like by Constant nodes; return whether any is new.

        PyTorch's dynamo exporter writes the axes of a ReduceMean as a Reshape of a Constant, which
        shape inference does not evaluate.
        """
        from onnx_bnfold.model.inference_hints import types_by_constants

        producer, ops, any_new = self._main.producer, self._main.ops, False
        kinds = types_by_constants(self._main)
        for reads in self._main.reads:
            for name in reads:
                index = producer.get(name)
                if index is None or kinds.get(name, TensorProto.INT64) != TensorProto.INT64:
                    continue
                if _HELD in (ops[index], light.graph.node[index].op_type):
                    continue
                info = constants.get(name)
                if info and info.data_type == TensorProto.INT64 and info.size <= LARGEST_KEPT:
                    try:
                        value = new_tensor(constants.value(name))
                    except Refused:
                        continue
                    made = new_node(_HELD, [], [name], value=value)
                    light.graph.node[index].CopyFrom(made)
                    any_new = True
        return any_new


def _is_long(dims: Dims | None) -> bool:
    """Return whether dims are those of a vector too long for its values to be propagated."""
    return (
        dims is not None
        and len(dims) == 1
        and isinstance(dims[0], int)
        and dims[0] > LONGEST_PROPAGATED
    )


def _types_of(body: Body) -> tuple[Types, Set[str]]:
    """Return name → (dims, element type) for a body, and the names of tensors of negative sizes."""
    types: dict[str, tuple[Dims | None, int]] = {}
    negative = set[str]()
    checked: dict[Dims | None, Dims | None] = {}  # few are different
    values = [*body.input, *body.output, *body.value_info] if isinstance(body, GraphProto) else ()
    for value in values:
        kind = value.type
        if not kind.HasField("tensor_type"):
            continue
        tensor = kind.tensor_type
        dims = _dims(tensor.shape) if tensor.HasField("shape") else None
        if dims not in checked:
            checked[dims] = _natural(dims)
        if checked[dims] != dims:
            negative.add(value.name)
        types[value.name] = checked[dims], tensor.elem_type
    return types, negative


def _dims(shape: TensorShapeProto) -> Dims:
    return tuple(
        [d.dim_value or (0 if d.HasField("dim_value") else d.dim_param or None) for d in shape.dim]
    )


def _natural(dims: Dims | None) -> Dims | None:
    """Return dims in which negative sizes are unknown."""
    if dims is None:
        return None
    return tuple(None if isinstance(size, int) and size < 0 else size for size in dims)
