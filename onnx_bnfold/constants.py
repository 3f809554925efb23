"""Constants of a graph: initializers, and whatever deterministic operators make of them.

Exporters leave weights behind Constant, ConstantOfShape, Cast, Reshape, Expand and Transpose
nodes. Shapes and types of such constants come from onnx's inference of single nodes, so that
nothing is computed, and no memory taken, before a size is known; values come from onnx's reference
evaluator, one node at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx
from onnx import NodeProto, SparseTensorProto, TensorProto, TypeProto, helper, numpy_helper

from onnx_bnfold.errors import ModelError
from onnx_bnfold.graph import STANDARD_DOMAINS, Dims, Graph, ReadTensor
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.storage.tensors import SmallTensors, is_external

# No constant larger than this is computed (256 MiB in float32): a hostile ConstantOfShape of
# 10^12 elements must not take the machine with it. Initializers are not bound by it.
LARGEST_COMPUTED = 2**26
# Constants up to this many elements may decide shapes (Reshape's target, Expand's shape).
LARGEST_SHAPE_INPUT = 1024

EVALUATED = frozenset(
    {
        *("Abs", "Add", "Cast", "CastLike", "Ceil", "Concat", "Constant", "ConstantOfShape"),
        *("Div", "Exp", "Expand", "Flatten", "Floor", "Gather", "Identity", "Log", "Max", "Min"),
        *("Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape", "Shape", "Size", "Slice"),
        *("Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze"),
    }
)
# Inputs of which only the type (or, for Shape and Size, the dims) matter.
TYPE_ONLY = frozenset({("CastLike", 1)})
DIMS_ONLY = frozenset({("Shape", 0), ("Size", 0)})


class Constant(NamedTuple):
    """Shape and type of a constant tensor; ``Constants.value`` has its elements."""

    name: str
    dims: tuple[int, ...]
    data_type: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


_UNSEEN = Constant("", (), TensorProto.UNDEFINED)


class Stored(Protocol):
    """The elements of a tensor that lie in a file one after another, in its own data type."""

    def read_into(self, start: int, out: np.ndarray[Any, Any], /) -> None:
        """Fill ``out``, of shape ``(n,)``, with the elements from number ``start`` on.

        Raises:
            ModelError: they cannot be read.
        """


# Returns where the elements of an initializer lie, None for one that is not in a file as it is.
OpenTensor = Callable[[TensorProto], Stored | None]


class Known(Protocol):
    """Name → (dims, element type) of computed tensors."""

    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> tuple[Dims | None, int]: ...


class Constants:
    """Which tensors of a graph are constant, and their values.

    Args:
        graph: the body; constants of its outer scopes are visible.
        read: reads the elements of an initializer.
        known: name → (dims, element type) of computed tensors, from shape inference.
        outer: the constants of the enclosing scope.
        open_tensor: tells where the elements of an initializer lie, if any may lie in a file.
    """

    def __init__(
        self,
        graph: Graph,
        read: ReadTensor,
        known: Known,
        outer: Constants | None,
        open_tensor: OpenTensor | None = None,
    ) -> None:
        self.graph = graph
        self._read = read
        self._open = open_tensor
        self._known = known
        self._outer = outer
        self._candidates: set[str] | None = None
        self._infos: dict[str, Constant | None] = {}
        self._small: SmallTensors | None = None
        self._values: dict[str, np.ndarray[Any, Any]] = {}
        self._evaluating = RLock()

    def get(self, name: str) -> Constant | None:
        """Return shape and type of a constant tensor, or None if it is not constant."""
        info = self._infos.get(name, _UNSEEN)
        if info is _UNSEEN:
            info = self._infos[name] = self._find(name)
        return info

    def data_type(self, name: str) -> int | None:
        """Return the element type of a constant tensor, or None if it is not constant."""
        tensor = self.graph.initializers.get(name)
        if tensor is not None:
            return None if name in self.graph.overridable else int(tensor.data_type)
        info = self.get(name)
        return None if info is None else info.data_type

    def among(self, names: set[str]) -> set[str]:
        """Return those of some names that are constants."""
        stored = names & self.graph.initializers.keys()
        others = {name for name in names - stored if name and self.get(name) is not None}
        return stored - self.graph.overridable | others

    def fixed_nodes(self) -> set[int]:
        """Return the nodes that depend on constants alone, whether ``get`` can tell them or not."""
        graph, found = self.graph, set[int]()
        given = (graph.dims.keys() - graph.overridable) | {""}
        for index, (read, written) in enumerate(zip(graph.reads, graph.writes, strict=True)):
            if not read and graph.ops[index] not in EVALUATED:
                continue  # it makes random numbers, for all we know
            outer = (n for n in read if n not in given)
            if index not in graph.carriers and all(self._is_outer_constant(n) for n in outer):
                found.add(index)
                given.update(written)
        return found

    def _is_outer_constant(self, name: str) -> bool:
        graph, outer = self.graph, self._outer
        if outer is None or name in graph.producer or name in graph.inputs:
            return False
        return name not in graph.overridable and outer.get(name) is not None

    def _find(self, name: str) -> Constant | None:
        graph = self.graph
        tensor = graph.initializers.get(name)
        if tensor is not None:
            if name in graph.overridable:
                return None
            return Constant(name, graph.dims[name], tensor.data_type)
        if name in graph.sparse:
            return _sparse_constant(graph, name)
        if name in graph.producer:
            return self._computed(name)
        if name in graph.inputs or self._outer is None:
            return None
        return self._outer.get(name)

    def value(self, name: str) -> np.ndarray[Any, Any]:
        """Return the elements of a constant in its own data type; ``get`` has returned it.

        Raises:
            ModelError: the tensor's bytes cannot be read.
        """
        small = (self._decoded() if self._small is None else self._small).get(name)
        if small is not None:
            return small
        tensor = self.graph.initializers.get(name)
        if tensor is not None:
            return self._read(tensor)
        if name in self.graph.sparse:
            return self._dense(name)
        if name not in self.graph.producer:
            assert self._outer is not None
            return self._outer.value(name)
        with self._evaluating:
            if name in self._values:
                return self._values[name]
            for ancestor in self._ancestors(name):
                self._evaluate(ancestor)
            result = self._values[name]
            self._forget_large()
            return result

    def rows(self, names: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield the elements of many rows of small initializers; see ``SmallTensors.rows``.

        What ``get`` and ``value`` would say of each, in a fraction of the time.
        """
        return self._decoded().rows(names)

    def _decoded(self) -> SmallTensors:
        if self._small is None:  # several threads may do it: all find the same
            graph = self.graph
            given: Mapping[str, TensorProto] = graph.initializers
            if graph.overridable:
                given = {n: t for n, t in given.items() if n not in graph.overridable}
            self._small = SmallTensors(given, graph.dims)
        return self._small

    def stored(self, name: str) -> Stored | None:
        """Return where the elements of a constant lie, if that is in a file, as they are."""
        tensor = self.graph.initializers.get(name)
        return None if tensor is None or self._open is None else self._open(tensor)

    def _dense(self, name: str) -> np.ndarray[Any, Any]:
        return _dense(self.graph.sparse[name], self._read)

    def _computed(self, name: str) -> Constant | None:
        if name not in self._computable():
            return None
        for ancestor in self._ancestors(name):
            if ancestor not in self._infos:
                self._infos[ancestor] = self._infer(ancestor)
        return self._infos[name]

    def _computable(self) -> set[str]:
        """Return the outputs of deterministic nodes over constants: one pass in node order."""
        if self._candidates is None:
            found: set[str] = set()
            for index, node in enumerate(self.graph.nodes):
                if node.op_type in EVALUATED and node.domain in STANDARD_DOMAINS:
                    slots = [(s, n) for s, n in enumerate(self.graph.reads[index]) if n]
                    if all(self._usable(node, s, n, found) for s, n in slots):
                        found.update(self.graph.writes[index])
            self._candidates = found
            # None of the others is constant: nobody has to ask for them one by one.
            self._infos.update(dict.fromkeys(self.graph.producer.keys() - found))
        return self._candidates

    def _usable(self, node: NodeProto, slot: int, name: str, found: set[str]) -> bool:
        graph = self.graph
        if name in found or (node.op_type, slot) in TYPE_ONLY:
            return True
        if name in graph.initializers or name in graph.sparse:
            return name not in graph.overridable
        if (node.op_type, slot) in DIMS_ONLY and self._static_dims(name) is not None:
            return True
        if name in graph.producer or name in graph.inputs or self._outer is None:
            return False
        return self._outer.get(name) is not None

    def _static_dims(self, name: str) -> tuple[int, ...] | None:
        dims = self._known[name][0] if name in self._known else None
        if dims is None:
            return None
        fixed = tuple(d for d in dims if isinstance(d, int))
        return fixed if len(fixed) == len(dims) else None

    def _ancestors(self, name: str) -> list[str]:
        """Return the computed constants that ``name`` needs, itself last, in node order."""
        graph, found, stack = self.graph, {name}, [name]
        while stack:
            node = graph.nodes[graph.producer[stack.pop()]]
            for slot, other in enumerate(node.input):
                if (
                    node.op_type,
                    slot,
                ) in TYPE_ONLY | DIMS_ONLY and other not in self._computable():
                    continue
                if other in graph.producer and other not in found and other not in self._values:
                    found.add(other)
                    stack.append(other)
        return sorted(found, key=lambda n: graph.producer[n])

    def _type_of(self, name: str) -> tuple[tuple[int, ...] | None, int] | None:
        info = self.get(name) if name not in self._infos else self._infos[name]
        if info is not None:
            return info.dims, info.data_type
        if name in self._known:
            return self._static_dims(name), self._known[name][1]
        return None

    def _infer(self, name: str) -> Constant | None:
        """Find shape and type of one node's output without computing it."""
        node = self.graph.nodes[self.graph.producer[name]]
        types: dict[str, TypeProto] = {}
        for slot, other in enumerate(node.input):
            if not other:
                continue
            described = (node.op_type, slot) in TYPE_ONLY | DIMS_ONLY
            if not described and self.get(other) is None:
                return None  # too large, or of unknown shape
            kind = self._type_of(other)
            if kind is None:
                return None
            types[other] = helper.make_tensor_type_proto(kind[1], kind[0])
        try:
            data = self._small_inputs(node)
            schema = onnx.defs.get_schema(node.op_type, self.graph.opset, "")
            imports = [helper.make_opsetid("", self.graph.opset)]
            plain = NodeProto()
            plain.CopyFrom(node)
            plain.domain = ""
            from onnx_bnfold.misread import is_misread  # many models compute no constant

            if is_misread(plain, self.graph.opset, lambda n: _integers(data.get(n))):
                return None
            outputs = onnx.shape_inference.infer_node_outputs(
                schema, plain, types, data, opset_imports=imports
            )
            return _as_constant(name, outputs[name])
        except Exception:  # the C++ inference raises several types; no shape means not constant
            return None

    def _small_inputs(self, node: NodeProto) -> dict[str, TensorProto]:
        """Return the values that may decide the shape of a node's output."""
        infos = {name: self._infos.get(name) for name in node.input if name}
        return {
            name: numpy_helper.from_array(self.value(name), name)
            for name, info in infos.items()
            if info is not None and info.size <= LARGEST_SHAPE_INPUT
        }

    def _evaluate(self, name: str) -> None:
        if name in self._values:
            return
        index = self.graph.producer[name]
        node = self.graph.nodes[index]
        feeds = {n: self._feed(node, s, n) for s, n in enumerate(node.input) if n}
        found = _held(node, self._read)
        self._values.update(self._run(index, feeds) if found is None else found)

    def _run(
        self, index: int, feeds: Mapping[str, np.ndarray[Any, Any]]
    ) -> dict[str, np.ndarray[Any, Any]]:
        results = _run(self.graph, index, feeds, self._read)
        for name, value in results.items():
            info = self._infos.get(name)
            if info is not None and info.dims != value.shape:
                raise Refused(
                    Reason.PARAMETERS_NOT_CONSTANT,
                    self.graph.label(index),
                    f"it cannot be evaluated (its result has shape {list(value.shape)}, not "
                    f"{list(info.dims)}); repair the model",
                )
        return results

    def _feed(self, node: NodeProto, slot: int, name: str) -> np.ndarray[Any, Any]:
        if (node.op_type, slot) in TYPE_ONLY | DIMS_ONLY:
            kind = self._type_of(name)
            assert kind is not None
            dtype = helper.tensor_dtype_to_np_dtype(kind[1])
            # A view of one element: only its type and dims are looked at.
            return np.broadcast_to(np.zeros((), dtype), kind[0] or ())
        return self._values[name] if name in self._values else self.value(name)

    def _forget_large(self) -> None:
        self._values = {n: v for n, v in self._values.items() if v.size <= LARGEST_SHAPE_INPUT}


def _dense(sparse: SparseTensorProto, read: ReadTensor) -> np.ndarray[Any, Any]:
    values, indices = read(sparse.values), read(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        flat = indices
        if indices.ndim == 2:  # one row of coordinates per value
            flat = np.ravel_multi_index(tuple(indices.T), dense.shape)
        fits = flat.shape == values.shape and flat.min(initial=0) >= 0
        dense.reshape(-1)[flat if fits else dense.size] = values
    except (IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"sparse tensor {sparse.values.name!r}: its indices do not fit its values or its "
            f"shape {list(sparse.dims)}; repair the model"
        ) from error
    return dense


def _sparse_constant(graph: Graph, name: str) -> Constant | None:
    sparse = graph.sparse[name]
    info = Constant(name, graph.dims[name], sparse.values.data_type)
    return None if name in graph.overridable or info.size > LARGEST_COMPUTED else info


def _integers(tensor: TensorProto | None) -> list[int] | None:
    if tensor is None:
        return None
    value = numpy_helper.to_array(tensor)
    return [*map(int, value.reshape(-1))] if value.dtype.kind == "i" else None


def _as_constant(name: str, kind: TypeProto) -> Constant | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    info = Constant(name, tuple(d.dim_value for d in tensor.shape.dim), tensor.elem_type)
    return info if info.size <= LARGEST_COMPUTED and min(info.dims, default=0) >= 0 else None


def _held(node: NodeProto, read: ReadTensor) -> dict[str, np.ndarray[Any, Any]] | None:
    """Return the tensor that a Constant node holds; None if it is none, or holds another value."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    held, output = node.attribute[0], node.output[0]
    if held.HasField("t"):
        return {output: _read_named(held.t, output, read)}
    if held.HasField("sparse_tensor"):
        return {output: _dense(held.sparse_tensor, read)}
    return None


def _read_named(tensor: TensorProto, name: str, read: ReadTensor) -> np.ndarray[Any, Any]:
    """Read a tensor that may have no name of its own to be called by if it is damaged."""
    try:
        return read(tensor)
    except ModelError:
        if tensor.name:
            raise
    named = TensorProto()
    named.CopyFrom(tensor)
    named.name = name
    return read(named)


def _run(
    graph: Graph, index: int, feeds: Mapping[str, np.ndarray[Any, Any]], read: ReadTensor
) -> dict[str, np.ndarray[Any, Any]]:
    from onnx.reference import ReferenceEvaluator  # 0.3 s, needed by few models

    plain = NodeProto()
    plain.CopyFrom(graph.nodes[index])
    plain.domain = ""
    for held in plain.attribute:
        if held.HasField("t") and is_external(held.t):
            held.t.CopyFrom(numpy_helper.from_array(read(held.t)))
    names = [n for n in plain.output if n]
    alone = helper.make_graph(
        [plain],
        "constant",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
         for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=n) for n in names],
    )  # fmt: skip
    model = helper.make_model(alone, opset_imports=[helper.make_opsetid("", graph.opset)])
    try:
        results = ReferenceEvaluator(model).run(names, dict(feeds))
    except Exception as error:  # the evaluator raises what numpy raises
        raise Refused(
            Reason.PARAMETERS_NOT_CONSTANT,
            graph.label(index),
            f"it cannot be evaluated ({error}); repair the model",
        ) from error
    return {n: np.asarray(r) for n, r in zip(names, results, strict=True)}
