"""Sizes behind a Reshape or a Slice by computed sizes, which onnx's inference leaves open.

They are written into the model that is inferred, so that inference goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from onnx import GraphProto, ValueInfoProto

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.determinism import SIZING
from onnx_bnfold.model.graph import Dims, Graph
from onnx_bnfold.model.messages import new_value_info
from onnx_bnfold.model.shape_vectors import Size, Vector, product

Types = Mapping[str, tuple[Dims | None, int]]
_OPEN = Size(-1)  # the size that a Reshape finds out
_PRODUCT = "onnx_bnfold.product:"  # how the names of symbols begin that stand for others


class ReshapedSizes:
    """What is noted of a graph's Reshapes and Slices.

    Args:
        graph: the graph.
        light: its body without weights, which is inferred; it gets the notes.
    """

    def __init__(self, graph: Graph, light: GraphProto) -> None:
        self._graph = graph
        self._light = light
        self._symbols: dict[str, Size] = {}
        self._noted: dict[str, Dims] = {}
        self._entries: dict[str, ValueInfoProto] = {}

    def note(self, constants: Constants, types: Types) -> bool:
        """Note sizes behind these nodes; return whether more is known of one than was inferred.

        Args:
            constants: of the graph, which know the sizes of other tensors.
            types: name → (dims, element type), as inferred.
        """
        graph, is_new = self._graph, False
        vectors = constants.vectors(self._symbols)
        for index, op in enumerate(graph.ops):
            if op in SIZING and graph.reads[index][0] not in self._noted:
                # or its symbols get other names the next time
                self._write(graph.reads[index][0], types)
            if op not in _RULES or graph.reads[index] != tuple(self._light.node[index].input):
                continue  # a node that inference misreads is changed
            (data, *others), (output,) = graph.reads[index], graph.writes[index]
            source = vectors.sizes_of(data)
            if source is None or output not in types:
                continue
            given = [vectors.get(name) for name in others]
            sizes = _RULES[op](source, given, _takes_zeros(graph, index))
            if sizes is None:
                continue
            dims = _completed(self._named(sizes), types[output][0])
            if self._noted.get(output) != dims and _tells_more(dims, types[output][0]):
                self._noted[output], is_new = dims, True
                self._write(output, {output: (dims, types[output][1])})
        return is_new

    def _write(self, name: str, types: Types) -> None:
        dims, kind = types.get(name, (None, 0))
        if dims is None or name not in self._graph.producer or name in self._graph.outputs:
            return
        if name not in self._entries:
            self._entries[name] = self._light.value_info.add()
        self._entries[name].CopyFrom(new_value_info(name, kind, dims))

    def _named(self, sizes: Iterable[Size | None]) -> Dims:
        """Return sizes as dims; a product of symbols becomes a symbol."""
        dims: list[int | str | None] = []
        for size in sizes:
            if size is None or size.factor < 0:
                dims.append(None)
            elif not size.symbols:
                dims.append(size.factor)
            elif size.factor == 1 and len(size.symbols) == 1:
                dims.append(size.symbols[0])
            else:
                name = f"{_PRODUCT}{size.factor}*{'*'.join(size.symbols)}"
                self._symbols[name] = size
                dims.append(name)
        return tuple(dims)


def _takes_zeros(graph: Graph, index: int) -> bool:
    """Whether a size of 0 is one; otherwise it stands for that of the input."""
    held = graph.attributes.get(index, {}).get("allowzero")
    return held is not None and bool(held.i)


Sizes = list[Size | None] | None
_Rule = Callable[[Vector, Sequence[Vector | None], bool], Sizes]


def _reshaped(source: Vector, given: Sequence[Vector | None], takes_zeros: bool) -> Sizes:
    """Return the sizes behind a Reshape."""
    wanted = given[0] if given else None
    if wanted is None:
        return None
    sizes = [*wanted.elements]
    for axis, size in enumerate(sizes):
        if size == Size(0) and not takes_zeros:
            sizes[axis] = source.elements[axis] if axis < len(source.elements) else None
    if sizes.count(_OPEN) == 1:
        axis = sizes.index(_OPEN)
        total, others = product(source.elements), product(sizes[:axis] + sizes[axis + 1 :])
        sizes[axis] = None if total is None or others is None else total.over(others)
    return sizes


def _sliced(source: Vector, given: Sequence[Vector | None], _: bool) -> Sizes:
    """Return the sizes behind a Slice to bounds that are computed: those of its other axes stay."""
    starts, _ends, axes = (*given, None, None, None)[:3]
    if len(given) < 3 and starts is not None:
        axes = Vector(tuple(map(Size, range(len(starts.elements)))))
    rank, numbers = len(source.elements), None if axes is None else axes.integers
    if numbers is None or not all(-rank <= axis < rank for axis in numbers):
        return None
    cut = {axis % rank for axis in numbers}
    return [None if axis in cut else size for axis, size in enumerate(source.elements)]


_RULES: Mapping[str | None, _Rule] = {"Reshape": _reshaped, "Slice": _sliced}


def _completed(dims: Dims, inferred: Dims | None) -> Dims:
    """Return dims with what was inferred of those that are not known."""
    if inferred is None or len(inferred) != len(dims):
        return dims
    return tuple(b if a is None else a for a, b in zip(dims, inferred, strict=True))


def _tells_more(dims: Dims, inferred: Dims | None) -> bool:
    if inferred is None or len(inferred) != len(dims):
        return True
    return any(
        known is not None and known != other and not isinstance(other, int)
        for known, other in zip(dims, inferred, strict=True)
    )
