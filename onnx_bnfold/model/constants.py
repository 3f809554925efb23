"""Constants of a graph: initializers, and what deterministic operators compute from them.

Exporters write weights as Constant, ConstantOfShape, Cast, Reshape, Expand and Transpose nodes, and
compute them by whole chains of nodes (weight_norm). ``determinism`` says which nodes count. Shapes
and types of such constants come from onnx's inference of single nodes, so that nothing is computed
before its size is known; values come from an evaluator, node by node.

``evaluate`` is imported where it is used, as many models compute no constant.

The file has more than 350 lines: what is known of a constant and what it holds are found by the
same walk over the graph, with the same caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from onnx import NodeProto, TensorProto, TypeProto

from onnx_bnfold.arrays import Array, data_type_of, dtype_of
from onnx_bnfold.model.blocks import InMemory, Stored
from onnx_bnfold.model.determinism import (
    DESCRIBED,
    READ_BY_REFERENCE,
    SIZING,
    TYPE_ONLY,
    Computable,
)
from onnx_bnfold.model.graph import Dims, Graph, ReadTensor
from onnx_bnfold.model.messages import new_tensor, new_value_info
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.storage.small_tensors import SmallTensors

if TYPE_CHECKING:
    from onnx_bnfold.model.moved_elements import Moved
    from onnx_bnfold.model.shape_vectors import Size, Vectors

# Constants are computed up to this many elements (256 MiB in float32), so that a hostile
# ConstantOfShape of 10^12 elements cannot exhaust the memory. Initializers may be larger.
LARGEST_COMPUTED = 2**26
# Constants of up to this many elements may determine shapes (Reshape's and Expand's shape).
LARGEST_SHAPE_INPUT = 1024
# Elements of larger ones that are remembered, so that a weight is not computed for each question.
MOST_REMEMBERED = 2**22
# Larger weights behind a Transpose, say, are read from their file in pieces, again and again.
LARGEST_MOVED = 2**20
# Multiply-adds that a node may take, roughly: seconds. See ``_work``.
MOST_WORK = 2**36


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


# Returns a reader of an initializer's elements, None unless they are in a file as in memory.
OpenTensor = Callable[[TensorProto], Stored | None]


class TensorTypes(Protocol):
    """Name → (dims, element type) of computed tensors."""

    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> tuple[Dims | None, int]: ...


class Constants:
    """Which tensors of a graph are constant, and their values.

    Args:
        graph: the graph.
        read: returns the elements of an initializer.
        known: name → (dims, element type) of computed tensors, from shape inference.
        outer: the constants of the enclosing scope, which are visible here.
        open_tensor: returns a reader of an initializer in a file, if any may be in one.
        kept: indices of nodes that are to go on computing what they compute.
    """

    def __init__(
        self,
        graph: Graph,
        read: ReadTensor,
        known: TensorTypes,
        outer: Constants | None,
        open_tensor: OpenTensor | None = None,
        kept: Container[int] = (),
    ) -> None:
        self.graph = graph
        self._read = read
        self._open = open_tensor
        self._known = known
        self._outer = outer
        self._kept = kept
        self._infos: dict[str, Constant | None] = {}
        self._small: SmallTensors | None = None
        self._values: dict[str, Array] = {}
        self._large: list[str] = []  # of the values
        self._asked: list[str] = []  # of the large ones
        self._evaluating = RLock()

    def get(self, name: str) -> Constant | None:
        """Return shape and type of a constant tensor, None if it is not constant."""
        info = self._infos.get(name, _UNSEEN)
        if info is _UNSEEN:
            info = self._infos[name] = self._find(name)
        return info

    def data_type(self, name: str) -> int | None:
        """Return the element type of a constant tensor, None if it is not constant."""
        tensor = self.graph.initializers.get(name)
        if tensor is not None:
            return None if name in self.graph.overridable else int(tensor.data_type)
        info = self.get(name)
        return None if info is None else info.data_type

    def among(self, names: set[str]) -> set[str]:
        """Return the names that are those of constants."""
        stored = names & self.graph.initializers.keys()
        others = {name for name in names - stored if name and self.get(name) is not None}
        return stored - self.graph.overridable | others

    def fixed_nodes(self) -> set[int]:
        """Return the indices of nodes that depend on constants alone; see ``Computable``."""
        return self._computable.fixed_nodes()

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

    def value(self, name: str) -> Array:
        """Return the elements of a constant, in its own shape and data type.

        Args:
            name: of a tensor for which ``get`` does not return None.

        Raises:
            ModelError: the tensor's values cannot be read.
            Refused: they cannot be computed.
        """
        small = (self._decoded() if self._small is None else self._small).get(name)
        if small is not None:
            return small
        tensor = self.graph.initializers.get(name)
        if tensor is not None:
            return self._read(tensor)
        if name in self.graph.sparse:
            from onnx_bnfold.model.evaluate import dense

            return dense(self.graph.sparse[name], self._read)
        if name not in self.graph.producer:
            assert self._outer is not None
            return self._outer.value(name)
        with self._evaluating:
            self.get(name)  # may find the values, too
            if name not in self._values:
                self._evaluate_all(name)
                self._forget_large(name)
            return self._values[name]

    def rows(self, names: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield the values of many rows of small initializers; see ``SmallTensors.rows``.

        They are those of ``value``, which takes many times longer, one call for each name.
        """
        return self._decoded().rows(names)

    def _decoded(self) -> SmallTensors:
        if self._small is None:  # no lock: several threads would compute the same
            graph = self.graph
            constant: Mapping[str, TensorProto] = graph.initializers
            if graph.overridable:
                constant = {n: t for n, t in constant.items() if n not in graph.overridable}
            self._small = SmallTensors(constant, graph.dims)
        return self._small

    def stored(self, name: str) -> Stored:
        """Return a reader of a constant's elements, which stay in their file if they are in one.

        Args:
            name: see ``value``.

        Raises:
            ModelError, Refused: see ``value``.
        """
        found = self._opened(name)
        if found is not None:
            return found
        graph = self.graph
        own = name in graph.initializers or name in graph.sparse or name in graph.producer
        if own or self._outer is None:
            return InMemory(self.value(name))
        return self._outer.stored(name)

    def _opened(self, name: str) -> Stored | None:
        """Return a reader of a constant's elements if a file has what they are made of."""
        tensor = self.graph.initializers.get(name)
        if tensor is not None:
            return None if self._open is None else self._open(tensor)
        info = self.get(name) if self._open and name in self.graph.producer else None
        if info is None or info.size <= LARGEST_MOVED:
            return None
        found = self.moved(name)
        if found is not None and found.is_quick():
            return found
        from onnx_bnfold.model.evaluated_boxes import evaluated

        return evaluated(self, name)

    def moved(self, name: str) -> Moved | None:
        """Return a reader of a constant's elements if a file has them, in whatever order."""
        info = self.get(name)
        if info is None or self._open is None:
            return None
        if name not in self.graph.initializers and name not in self.graph.producer:
            return None if self._outer is None else self._outer.moved(name)
        from onnx_bnfold.model.moved_elements import in_file

        return in_file(self.graph, name, info.dims, self._open, self.value)

    def _computed(self, name: str) -> Constant | None:
        if not self.is_computed(name):
            return None
        for ancestor in self._ancestors(name, self._infos):
            if ancestor not in self._infos:
                self._infos[ancestor] = self._infer(ancestor)
        return self._infos[name]

    def is_computed(self, name: str) -> bool:
        """Whether deterministic nodes make a tensor of constants, and of known sizes of others.

        Not all are constants for ``get``: they may be too large, or of a size that is not known.
        """
        surely, perhaps = self.without_sizes
        return name in surely or (name in perhaps and name in self._with_sizes)

    def needs_sizes(self, name: str) -> bool:
        """Whether the sizes of other tensors say whether a tensor is a constant."""
        surely, perhaps = self.without_sizes
        return name in perhaps and name not in surely

    def implied_type(self, name: str) -> int:
        """Return a tensor's element type if the graph's constants imply it, else UNDEFINED."""
        return self._implied_types.get(name, TensorProto.UNDEFINED)

    @property
    def computes_any(self) -> bool:
        """Whether nodes may compute constants at all."""
        return bool(self.without_sizes[1])

    @cached_property
    def without_sizes(self) -> tuple[Set[str], Set[str]]:
        """Names of what is computed whatever the sizes are, and with it what may be by sizes.

        Sizes are asked for where they matter only: they take an inference of the whole model.
        """
        surely = perhaps = self._computable.outputs()
        if not SIZING.isdisjoint(self.graph.ops):  # few models have any
            from onnx_bnfold.model.shape_vectors import followed

            perhaps = self._computable.outputs(followed(self.graph, surely))
        # No other output is constant; note that at once instead of name by name in ``get``.
        self._infos.update(dict.fromkeys(self.graph.producer.keys() - perhaps))
        return surely, perhaps

    @cached_property
    def _with_sizes(self) -> Set[str]:
        for name, vector in self.vectors({}).computed.items():
            value = vector.array(self._known[name][1]) if name in self._known else None
            if value is not None:
                self._infos[name] = Constant(name, value.shape, self._known[name][1])
                self._values[name] = value
        return self._computable.outputs(self._values)

    def vectors(self, products: Mapping[str, Size]) -> Vectors:
        """Return what is known of the graph's vectors of sizes.

        Args:
            products: symbols that stand for others.
        """
        from onnx_bnfold.model.shape_vectors import Vectors

        def type_of(name: str) -> int:
            return self._known[name][1] if name in self._known else TensorProto.UNDEFINED

        graph, read, dims_of = self.graph, self._read, self.dims_of
        return Vectors(graph, read, dims_of, type_of, products=products, kept=self._kept)

    def dims_of(self, name: str) -> Dims | None:
        """Return the dims of any tensor, None if its rank is not known."""
        if name in self.graph.dims and name not in self.graph.overridable:
            return self.graph.dims[name]
        return self._known[name][0] if name in self._known else None

    @property
    def _computable(self) -> Computable:
        outer = self._outer
        around = None if outer is None else outer.get
        return Computable(self.graph, around, self._kept)

    def _ancestors(self, name: str, known: Container[str]) -> list[str]:
        """Return the computed constants that ``name`` depends on, in node order, and itself.

        Those that are known are left out, with what they alone depend on.
        """
        graph, needed, stack = self.graph, {name}, [name]
        while stack:
            node = graph.nodes[graph.producer[stack.pop()]]
            for slot, other in enumerate(node.input):
                described = (node.op_type, slot) in DESCRIBED
                if described and not self.is_computed(other):
                    continue
                if other in graph.producer and other not in needed and other not in known:
                    needed.add(other)
                    stack.append(other)
        return sorted(needed, key=lambda n: graph.producer[n])

    def _type_of(self, name: str) -> tuple[tuple[int, ...] | None, int] | None:
        info = self.get(name) if name not in self._infos else self._infos[name]
        if info is not None:
            return info.dims, info.data_type
        if self.implied_type(name):
            return None, self.implied_type(name)
        return (None, self._known[name][1]) if name in self._known else None

    @cached_property
    def _implied_types(self) -> Mapping[str, int]:
        """The types that the graph's constants imply, for which nothing has to be inferred."""
        from onnx_bnfold.model.inference_hints import types_by_constants

        return types_by_constants(self.graph)

    def _infer(self, name: str) -> Constant | None:
        """Return shape and type of one node's output, without computing it if it may be large."""
        index = self.graph.producer[name]
        node = self.graph.nodes[index]
        try:
            found = _held(name, node) or self._at_once(index)
        except Refused:
            found = None
        if found is not None:
            return found
        types: dict[str, TypeProto] = {}
        for slot, other in enumerate(node.input):
            if not other:
                continue
            described = (node.op_type, slot) in DESCRIBED
            if not described and self.get(other) is None:
                return None  # too large, or of unknown shape
            kind = self._type_of(other)
            if kind is None:
                return None
            types[other] = new_value_info(other, kind[1], kind[0]).type
        try:
            from onnx_bnfold.model.evaluate import infer_node

            for made in (False, True):  # what is computed is asked for where it determines a shape
                values = self._small_inputs(node, made=made)
                outputs = infer_node(node, self.graph.opset, types, values)
                found = None if outputs is None else _as_constant(name, outputs[name])
                if found is not None:
                    return None if self._is_heavy(node, found) else found
            return None
        except Exception:  # the C++ inference raises several types; no shape means not constant
            return None

    def _at_once(self, index: int) -> Constant | None:
        """Compute a node on small constants: that takes less than to infer what it makes."""
        node = self.graph.nodes[index]
        if not all(self._is_at_hand(index, s, n) for s, n in enumerate(node.input) if n):
            return None
        from onnx_bnfold.model.numpy_nodes import by_numpy

        value = by_numpy(node, self.graph.opset, self._feeds(index))
        if value is None or value.size > LARGEST_COMPUTED:
            return None
        if value.size <= LARGEST_SHAPE_INPUT:
            self._values[node.output[0]] = value
        data_type = data_type_of(value.dtype)
        return Constant(node.output[0], value.shape, data_type)

    def _is_at_hand(self, index: int, slot: int, name: str) -> bool:
        """Whether a node can be computed as far as one of its inputs matters."""
        position = self.graph.ops[index], slot
        info = self.get(name)
        if info is None:
            is_typed = position in TYPE_ONLY and not self.is_computed(name)
            return is_typed and self._type_of(name) is not None
        if position in DESCRIBED:
            return True
        return name in self._values or (
            info.size <= LARGEST_SHAPE_INPUT and not self._is_made(name)
        )

    def _is_heavy(self, node: NodeProto, made: Constant) -> bool:
        """Whether a node takes too long to be computed for one of its outputs."""
        if node.op_type in READ_BY_REFERENCE:  # which take time in proportion to what they make
            return False
        from onnx_bnfold.model.evaluate import work

        infos = [info for name in node.input if name and (info := self.get(name)) is not None]
        return work(node, [info.size for info in infos], made.size) > MOST_WORK

    def _small_inputs(self, node: NodeProto, *, made: bool) -> dict[str, TensorProto]:
        """Return the values that may determine the shape of a node's output.

        Args:
            node: the node.
            made: whether those that nodes compute from others are wanted, too.
        """
        infos = {name: self._infos.get(name) for name in node.input if name}
        return {
            name: new_tensor(self.value(name), name)
            for name, info in infos.items()
            if info is not None
            and info.size <= LARGEST_SHAPE_INPUT
            and (made or not self._is_made(name))
        }

    def _is_made(self, name: str) -> bool:
        index = self.graph.producer.get(name)
        return index is not None and any(self.graph.reads[index])

    def _evaluate_all(self, name: str) -> None:
        """Evaluate what a computed constant depends on, and itself."""
        ancestors = self._ancestors(name, self._values)
        stored = None
        if self._open and self._are_large(ancestors):
            from onnx_bnfold.model.evaluated_boxes import evaluated

            stored = evaluated(self, name)
        if stored is None:
            for ancestor in ancestors:
                self._evaluate(ancestor)
            return
        info = self.get(name)
        assert info is not None
        values = np.empty(info.size, stored.dtype)
        stored.read_into(0, values)
        self._keep({name: values.reshape(info.dims)})

    def _are_large(self, names: Sequence[str]) -> bool:
        """Whether nodes that make some constants read large ones."""
        read = {n for name in names for n in self.graph.reads[self.graph.producer[name]] if n}
        infos = map(self.get, read)
        return any(info is not None and info.size > LARGEST_MOVED for info in infos)

    def _evaluate(self, name: str) -> None:
        if name in self._values:
            return
        index = self.graph.producer[name]
        node = self.graph.nodes[index]
        from onnx_bnfold.model.evaluate import held_by

        held = held_by(node, self._read)
        results = self.run(index, self._feeds(index)) if held is None else held
        self._keep(results)

    def _keep(self, results: Mapping[str, Array]) -> None:
        self._values.update(results)
        self._large += (n for n, value in results.items() if value.size > LARGEST_SHAPE_INPUT)

    def run(
        self, index: int, feeds: Mapping[str, Array], dims: tuple[int, ...] | None = None
    ) -> dict[str, Array]:
        """Return output name → values of a node.

        Args:
            index: of the node.
            feeds: input name → values, or a part of them.
            dims: of the part of its outputs that this makes, if it is one.

        Raises:
            Refused: see ``run_node``; or they have another shape than was inferred.
        """
        from onnx_bnfold.model.evaluate import run_node

        results = run_node(self.graph, index, feeds, self._read)
        for name, value in results.items():
            info = self._infos.get(name)
            expected = dims if dims is not None or info is None else info.dims
            if expected is not None and expected != value.shape:
                raise Refused(
                    Reason.PARAMETERS_NOT_CONSTANT,
                    self.graph.label(index),
                    f"it cannot be evaluated (its result has shape {list(value.shape)}, not "
                    f"{list(expected)}); repair the model",
                )
        return results

    def _feeds(self, index: int) -> dict[str, Array]:
        """Return the values of a node's inputs, of some only what matters of them."""
        node = self.graph.nodes[index]
        slots = [(s, n) for s, n in enumerate(node.input) if n]
        # Where a tensor is read twice, what it holds may matter to one of the two alone.
        slots.sort(key=lambda each: (node.op_type, each[0]) not in DESCRIBED)
        return {n: self.feed(index, s, n) for s, n in slots}

    def feed(self, index: int, slot: int, name: str) -> Array:
        """Return what a node is given for one of its inputs."""
        if (self.graph.nodes[index].op_type, slot) in DESCRIBED:
            kind = self._type_of(name)
            assert kind is not None
            dtype = dtype_of(kind[1])
            # A view of a single element, since only its type and dims matter.
            return np.broadcast_to(np.zeros((), dtype), kind[0] or ())
        return self._values[name] if name in self._values else self.value(name)

    def _forget_large(self, asked: str) -> None:
        """Forget the large values but those that were asked for last, and the one asked for now."""
        values = self._values
        if values[asked].size > LARGEST_SHAPE_INPUT:
            self._asked.append(asked)
        while len(self._asked) > 1 and sum(values[n].size for n in self._asked) > MOST_REMEMBERED:
            del self._asked[0]
        for name in {*self._large} - {*self._asked}:
            del values[name]
        self._large = [*self._asked]


def _held(name: str, node: NodeProto) -> Constant | None:
    """Return shape and type of the tensor that a Constant node holds, if it holds one."""
    if (
        node.op_type != "Constant"
        or len(node.attribute) != 1
        or not node.attribute[0].HasField("t")
    ):
        return None
    tensor = node.attribute[0].t
    info = Constant(name, tuple(tensor.dims), tensor.data_type)
    return info if info.size <= LARGEST_COMPUTED and min(info.dims, default=0) >= 0 else None


def _sparse_constant(graph: Graph, name: str) -> Constant | None:
    sparse = graph.sparse[name]
    info = Constant(name, graph.dims[name], sparse.values.data_type)
    return None if name in graph.overridable or info.size > LARGEST_COMPUTED else info


def _as_constant(name: str, kind: TypeProto) -> Constant | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    info = Constant(name, tuple(d.dim_value for d in tensor.shape.dim), tensor.elem_type)
    return info if info.size <= LARGEST_COMPUTED and min(info.dims, default=0) >= 0 else None
