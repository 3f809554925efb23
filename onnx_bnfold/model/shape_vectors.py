"""What Shape nodes return, what is picked of it and what is computed from it: vectors of sizes.

Exporters write ``x.view(x.size(0), -1)`` as a chain of small nodes behind a Shape. Where the batch
alone is open, most of their elements are numbers, and the others are symbols. What may become 0
or -1, as ``s // 2`` and ``s - 2`` may, has no symbol: a Reshape takes these for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto

from onnx_bnfold.arrays import Array, dtype_of
from onnx_bnfold.model.determinism import DIMS_ONLY
from onnx_bnfold.model.graph import Dims, Graph, ReadTensor
from onnx_bnfold.model.messages import value_of

LONGEST = 64  # elements of a vector that is followed; a shape has as many as a tensor has axes
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


class Size(NamedTuple):
    """A number, times the sizes of open axes.

    Attributes:
        factor: the number; -1 where a Reshape shall find out the size.
        symbols: of the axes, sorted.
    """

    factor: int
    symbols: tuple[str, ...] = ()

    def times(self, other: Size) -> Size:
        """Return the product of two sizes."""
        factor = self.factor * other.factor
        return Size(factor, tuple(sorted(self.symbols + other.symbols)) if factor else ())

    def over(self, other: Size) -> Size | None:
        """Return the quotient of two sizes, None if it is not known; an open axis is not empty."""
        left = [*self.symbols]
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        if self.factor < 0 or other.factor < 1:
            return None
        if self.factor % other.factor and (self.symbols or other.symbols):
            return None
        return Size(self.factor // other.factor, tuple(left))


class Vector(NamedTuple):
    """A tensor of sizes with at most one axis; None stands for a size that is not known."""

    elements: tuple[Size | None, ...]
    is_scalar: bool = False

    @property
    def integers(self) -> list[int] | None:
        """The elements if all are numbers, else None."""
        numbers = [each.factor for each in self.elements if each and not each.symbols]
        return numbers if len(numbers) == len(self.elements) else None

    def held_by(self, data_type: int) -> Vector:
        """Return it without the numbers that exceed an element type, where they wrap around."""
        held = np.iinfo(np.int64 if data_type == TensorProto.INT64 else np.int32)
        kept = tuple(
            each if each is not None and held.min <= each.factor <= held.max else None
            for each in self.elements
        )
        return self._replace(elements=kept)

    def array(self, data_type: int) -> Array | None:
        """Return it as an array of an element type, None unless all elements are numbers."""
        numbers = self.integers
        if numbers is None or data_type not in _INTEGERS:
            return None
        made = np.array(numbers, dtype_of(data_type))
        return made.reshape(()) if self.is_scalar else made


class _Node(NamedTuple):
    """A node with what is known of its inputs, and of the number of axes of its output."""

    attributes: Mapping[str, AttributeProto]
    inputs: Sequence[Vector | None]
    rank: int | None

    def attribute(self, name: str, default: Any) -> Any:
        held = self.attributes.get(name)
        return default if held is None else value_of(held)

    def numbers(self, slot: int, name: str) -> list[int] | None:
        """Return a parameter that newer versions have as an input; None if it is not known."""
        if slot >= len(self.inputs):
            return [*self.attributes[name].ints] if name in self.attributes else None
        given = self.inputs[slot]
        return None if given is None else given.integers


def _described(node: _Node) -> Vector | None:
    """Shape."""
    (given,) = node.inputs
    bounds = slice(node.attribute("start", None), node.attribute("end", None))
    return given and Vector(given.elements[bounds])


def _counted(node: _Node) -> Vector | None:
    """Size."""
    (given,) = node.inputs
    return given and Vector((product(given.elements),), is_scalar=True)


def _regrouped(node: _Node) -> Vector | None:
    """Operators that return the elements of their first input in the same order."""
    given, kind = node.inputs[0], node.attribute("to", TensorProto.INT64)
    if given is None or node.rank not in (0, 1) or kind not in _INTEGERS:
        return None
    return Vector(given.elements, is_scalar=node.rank == 0)


def _gathered(node: _Node) -> Vector | None:
    """Gather."""
    given, indices = node.inputs
    picked = None if indices is None else indices.integers
    if given is None or indices is None or picked is None or given.is_scalar:
        return None
    if any(not -len(given.elements) <= index < len(given.elements) for index in picked):
        return None
    return Vector(tuple(given.elements[index] for index in picked), indices.is_scalar)


def _sliced(node: _Node) -> Vector | None:
    """Slice forwards."""
    given, starts, ends = node.inputs[0], node.numbers(1, "starts"), node.numbers(2, "ends")
    if given is None or starts is None or ends is None or len(starts) != 1 or len(ends) != 1:
        return None
    steps = node.numbers(4, "steps") if len(node.inputs) > 4 else [1]
    if steps is None or len(steps) != 1 or steps[0] < 1:
        return None
    return Vector(given.elements[slice(starts[0], ends[0], steps[0])])


def _concatenated(node: _Node) -> Vector | None:
    """Concat."""
    parts = [part for part in node.inputs if part is not None and not part.is_scalar]
    if len(parts) < len(node.inputs):
        return None
    return Vector(tuple(each for part in parts for each in part.elements))


def _elementwise(function: Callable[[Size, Size], Size | None]) -> Callable[[_Node], Vector | None]:
    """Return the rule of an operator that computes each element from one element of each input."""

    def rule(node: _Node) -> Vector | None:
        left, right = node.inputs
        if left is None or right is None:
            return None
        lengths = {len(left.elements), len(right.elements)}
        length = max(lengths)
        if not lengths <= {1, length} or not all(lengths):
            return None
        pairs = zip(_repeated(left, length), _repeated(right, length), strict=True)
        made = tuple(None if a is None or b is None else function(a, b) for a, b in pairs)
        return Vector(made, left.is_scalar and right.is_scalar)

    return rule


def _repeated(vector: Vector, length: int) -> tuple[Size | None, ...]:
    return vector.elements * (length // len(vector.elements))


def _sum(left: Size, right: Size) -> Size | None:
    if not left.factor or not right.factor:
        return right if left.factor == 0 else left
    factor = left.factor + right.factor
    return Size(factor, left.symbols if factor else ()) if left.symbols == right.symbols else None


def _difference(left: Size, right: Size) -> Size | None:
    return _sum(left, Size(-right.factor, right.symbols))


RULES: Mapping[str | None, Callable[[_Node], Vector | None]] = {
    "Shape": _described,
    "Size": _counted,
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _regrouped),
    "Gather": _gathered,
    "Slice": _sliced,
    "Concat": _concatenated,
    "Mul": _elementwise(Size.times),
    "Div": _elementwise(Size.over),
    "Add": _elementwise(_sum),
    "Sub": _elementwise(_difference),
}


# What picks elements, and computes none: of a vector without a number it makes another.
_PICKING = frozenset((_described, _regrouped, _gathered, _sliced))


class Vectors:
    """What is known of the vectors of sizes of a graph.

    Args:
        graph: the graph.
        read: returns the elements of a tensor.
        dims_of: returns the dims of a tensor, None if its rank is not known.
        type_of: returns the element type of a computed tensor, UNDEFINED if it is not known.
        products: symbols that stand for others.
        kept: indices of nodes that are to go on computing what they compute.

    Attributes:
        computed: name → vector, of what nodes compute.
    """

    def __init__(
        self,
        graph: Graph,
        read: ReadTensor,
        dims_of: Callable[[str], Dims | None],
        type_of: Callable[[str], int],
        *,
        products: Mapping[str, Size] | None = None,
        kept: Container[int] = (),
    ) -> None:
        self._graph = graph
        self._read = read
        self._dims_of = dims_of
        self._products = products or {}
        self.computed: dict[str, Vector] = {}
        for index, op in enumerate(graph.ops):
            made = None if op not in RULES or index in kept else self._made_by(index)
            if made is not None and len(made.elements) <= LONGEST:
                name = graph.writes[index][0]
                self.computed[name] = made.held_by(type_of(name))

    def _made_by(self, index: int) -> Vector | None:
        graph, op = self._graph, self._graph.ops[index]
        inputs = list[Vector | None]()
        for slot, name in enumerate(graph.reads[index]):
            inputs.append(self.sizes_of(name) if (op, slot) in DIMS_ONLY else self.get(name))
            if inputs[0] is None:  # most nodes compute no sizes; no rule answers then
                return None
        attributes = graph.attributes.get(index, {})
        if any(item.ref_attr_name for item in attributes.values()):
            return None
        dims = self._dims_of(graph.writes[index][0])
        return RULES[op](_Node(attributes, inputs, None if dims is None else len(dims)))

    def sizes_of(self, name: str) -> Vector | None:
        """Return the sizes of a tensor, None if its rank is not known."""
        dims = self._dims_of(name)
        return None if dims is None else Vector(tuple(map(self._size, dims)))

    def _size(self, dim: int | str | None) -> Size | None:
        if isinstance(dim, str):
            return self._products.get(dim) or Size(1, (dim,))
        return None if dim is None else Size(dim)

    def get(self, name: str) -> Vector | None:
        """Return what is known of the elements of a tensor, None if it is no vector of sizes."""
        if name in self.computed:
            return self.computed[name]
        graph, index = self._graph, self._graph.producer.get(name)
        initializer = graph.find_initializer(name)
        if initializer is not None:
            scope, tensor = initializer
            return None if name in scope.overridable else self._held(tensor)
        if index is None or graph.ops[index] != "Constant":
            return None
        held = graph.attributes.get(index, {})
        if "value_ints" in held:
            return _numbers(held["value_ints"].ints)
        if "value_int" in held:
            return _numbers([held["value_int"].i], is_scalar=True)
        return self._held(held["value"].t) if "value" in held else None

    def _held(self, tensor: TensorProto) -> Vector | None:
        is_short = len(tensor.dims) < 2 and all(size <= LONGEST for size in tensor.dims)
        if tensor.data_type not in _INTEGERS or not is_short:
            return None
        return _numbers(self._read(tensor).reshape(-1).tolist(), is_scalar=not tensor.dims)


def followed(graph: Graph, made: Container[str]) -> set[str]:
    """Return what a graph's ``Vectors`` may have computed, whatever the sizes of its tensors are.

    What is picked of the sizes of an input that are all open is no number, whatever they are.

    Args:
        graph: the graph.
        made: the computed tensors that are constants anyway.
    """
    found, open_sizes, inputs = set[str](), set[str](), _open_inputs(graph)

    def may_be_vector(name: str) -> bool:
        return name in found or name in open_sizes or name in made or _holds_integers(graph, name)

    for op, read, written in zip(graph.ops, graph.reads, graph.writes, strict=True):
        if op not in RULES or not read:
            continue
        picks, describes = RULES[op] in _PICKING, (op, 0) in DIMS_ONLY
        if picks and read[0] in (inputs if describes else open_sizes):
            open_sizes.update(written)
        elif describes or all(map(may_be_vector, read[:1] if picks else read)):
            found.update(written)
    return found


def _open_inputs(graph: Graph) -> set[str]:
    """Return the inputs of a model that have no size that is a number."""
    if graph.parent is not None or not isinstance(graph.body, GraphProto):
        return set()
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.body.input}
    return {
        name
        for name, dims in shapes.items()
        if name in graph.inputs and not any(dim.HasField("dim_value") for dim in dims)
    }


def _holds_integers(graph: Graph, name: str) -> bool:
    held = graph.find_initializer(name)
    return held is not None and held[1].data_type in _INTEGERS


def product(sizes: Iterable[Size | None]) -> Size | None:
    """Return the product of sizes, None if one is not known."""
    made = Size(1)
    for size in sizes:
        if size is None:
            return None
        made = made.times(size)
    return made


def _numbers(numbers: Iterable[int], *, is_scalar: bool = False) -> Vector:
    return Vector(tuple(Size(number) for number in numbers), is_scalar)
