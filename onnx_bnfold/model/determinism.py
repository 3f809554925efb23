"""Which nodes compute the same whenever they get the same, so that constants make constants."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.standard import signature

# What onnx's reference evaluator computes as onnxruntime does, in every version and any type. Of
# other operators it misreads versions (BatchNormalization 9) or attributes (MaxPool's ceil_mode).
READ_BY_REFERENCE = frozenset(
    {
        *("Abs", "Add", "Cast", "CastLike", "Ceil", "Concat", "Constant", "ConstantOfShape"),
        *("Div", "Exp", "Expand", "Flatten", "Floor", "Gather", "Identity", "Log", "Max", "Min"),
        *("Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape", "Shape", "Size", "Slice"),
        *("Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze"),
    }
)
# (operator, input) of which only the type, or only the dims, matter.
TYPE_ONLY = frozenset({("CastLike", 1)})
DIMS_ONLY = frozenset({("Shape", 0), ("Size", 0)})
DESCRIBED = TYPE_ONLY | DIMS_ONLY
# Operators that make constants of tensors that are none; see ``shape_vectors`` for sizes.
_TYPING = frozenset(op for op, _ in TYPE_ONLY)
SIZING = frozenset(op for op, _ in DIMS_ONLY)

# Inputs over which onnxruntime writes further outputs of a node: statistics while it trains. If
# something else reads them, the model's results change from run to run.
WRITTEN_OVER = {"BatchNormalization": (3, 4)}
# What may hand on its first input without a copy: who writes over its output writes over that.
WITHOUT_COPY = frozenset(
    {
        *("Cast", "CastLike", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)


def is_deterministic(op: str | None, opset: int) -> bool:
    """Return whether nodes of an operator depend on their inputs and attributes alone.

    Args:
        op: the operator, None outside the standard domain.
        opset: version of the operator set.

    Returns:
        False for what draws random numbers, may do so (Dropout), runs a subgraph (If, Loop, Scan),
        or is unknown.
    """
    found = signature(op, opset)
    return found is not None and found.is_deterministic


class Computable:
    """What the nodes of a graph compute from constants alone.

    Args:
        graph: the graph.
        outer: returns what is known of a constant of the enclosing scope, None for other tensors.
        kept: indices of nodes that are to go on computing what they compute.
    """

    def __init__(
        self,
        graph: Graph,
        outer: Callable[[str], object] | None,
        kept: Container[int],
    ) -> None:
        self._graph = graph
        self._outer = outer
        self._kept = kept

    def outputs(self, given: Iterable[str] = ()) -> set[str]:
        """Return the outputs of deterministic nodes on constants, found in one pass.

        Args:
            given: computed tensors that are known to be constants; they are returned as well.
        """
        graph, names = self._graph, set(given)
        for index, (op, read) in enumerate(zip(graph.ops, graph.reads, strict=True)):
            if graph.writes[index] and names.issuperset(graph.writes[index]):
                continue
            if not read:
                if self._is_lasting(index):
                    names.update(graph.writes[index])
                continue
            first = read[0]
            if first in graph.producer and first not in names and op not in _TYPING:
                continue  # nearly all nodes
            usable = (self._is_usable(index, s, n, names) for s, n in enumerate(read) if n)
            if all(usable) and self._is_lasting(index):
                names.update(graph.writes[index])
        return names

    def fixed_nodes(self) -> set[int]:
        """Return the indices of nodes that depend on constants alone, whatever they compute.

        Not all make ``outputs``: a node among them may be of any domain, or draw numbers by what it
        reads.
        """
        graph, fixed = self._graph, set[int]()
        constants = (graph.dims.keys() - graph.overridable) | {""}
        for index, (read, written) in enumerate(zip(graph.reads, graph.writes, strict=True)):
            if not read and not is_deterministic(graph.ops[index], graph.opset):
                continue  # it may return random numbers
            others = (n for n in read if n not in constants)
            if index not in graph.carriers and all(self._is_outer_constant(n) for n in others):
                fixed.add(index)
                constants.update(written)
        return fixed

    def _is_outer_constant(self, name: str) -> bool:
        graph, outer = self._graph, self._outer
        if outer is None or name in graph.producer or name in graph.inputs:
            return False
        return name not in graph.overridable and outer(name) is not None

    def _is_usable(self, index: int, slot: int, name: str, computable: set[str]) -> bool:
        graph, op = self._graph, self._graph.ops[index]
        if name in computable or (op, slot) in TYPE_ONLY:
            return True
        if name in graph.initializers or name in graph.sparse:
            return name not in graph.overridable
        return self._is_outer_constant(name)

    def _is_lasting(self, index: int) -> bool:
        """Whether a node may go, as it computes the same from constants in each run and call."""
        graph, op = self._graph, self._graph.ops[index]
        if index in self._kept or not is_deterministic(op, graph.opset):
            return False
        for item in graph.attributes[index].values() if index in graph.attributes else ():
            if item.ref_attr_name:
                return False
        if op not in WRITTEN_OVER or not any(graph.writes[index][1:]):
            return True
        return all(self._is_own(graph.reads[index][slot]) for slot in WRITTEN_OVER[op])

    def _is_own(self, name: str) -> bool:
        """Whether nothing but one node of this body reads a constant, or what it is handed from."""
        graph = self._graph
        while graph.only_reader(name):
            index = graph.producer.get(name)
            if index is None:
                return name in graph.dims
            if graph.ops[index] not in WITHOUT_COPY:
                return True
            name = graph.reads[index][0]
        return False
