"""Sizes behind a Reshape whose shape is known in part, which onnx's inference leaves open.

They are written into the model that is inferred, so that inference goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import GraphProto, ValueInfoProto, helper

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.determinism import SIZING
from onnx_bnfold.model.graph import Dims, Graph
from onnx_bnfold.model.shape_vectors import Size, Vector, product

Types = Mapping[str, tuple[Dims | None, int]]
OPERATOR = "Reshape"
_OPEN = Size(-1)  # the size that a Reshape finds out
_PRODUCT = "onnx_bnfold.product:"  # how the names of symbols begin that stand for others


class ReshapedSizes:
    """What is noted of a graph's Reshapes.

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
        """Note sizes behind Reshapes; return whether more is known of one than was inferred.

        Args:
            constants: of the graph, which know the sizes of other tensors.
            types: name → (dims, element type), as inferred.
        """
        graph, is_new = self._graph, False
        vectors = constants.vectors(self._symbols)
        for index, op in enumerate(graph.ops):
            if op in SIZING:  # or its symbols get other names the next time
                self._write(graph.reads[index][0], types)
            if op != OPERATOR or graph.reads[index] != tuple(self._light.node[index].input):
                continue  # a node that inference misreads is changed
            (data, *shape), (output,) = graph.reads[index], graph.writes[index]
            source, wanted = vectors.sizes_of(data), vectors.get(*shape or [""])
            if source is None or wanted is None or output not in types:
                continue
            dims = self._named(_reshaped(source, wanted, _takes_zeros(graph, index)))
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
        self._entries[name].CopyFrom(helper.make_tensor_value_info(name, kind, dims))

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


def _reshaped(source: Vector, wanted: Vector, takes_zeros: bool) -> list[Size | None]:
    """Return the sizes behind a Reshape."""
    sizes = [*wanted.elements]
    for axis, size in enumerate(sizes):
        if size == Size(0) and not takes_zeros:
            sizes[axis] = source.elements[axis] if axis < len(source.elements) else None
    if sizes.count(_OPEN) == 1:
        axis = sizes.index(_OPEN)
        total, others = product(source.elements), product(sizes[:axis] + sizes[axis + 1 :])
        sizes[axis] = None if total is None or others is None else total.over(others)
    return sizes


def _tells_more(dims: Dims, inferred: Dims | None) -> bool:
    if inferred is None or len(inferred) != len(dims):
        return True
    return any(
        known is not None and known != other and not isinstance(other, int)
        for known, other in zip(dims, inferred, strict=True)
    )
