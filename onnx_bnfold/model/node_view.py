"""What a rule sees of a node: its operator, attributes, constants and the shapes of its tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

import onnx
from onnx import NodeProto, TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constant, Constants
from onnx_bnfold.model.graph import Dims, Graph
from onnx_bnfold.model.messages import value_of
from onnx_bnfold.model.shape_inference import Shapes
from onnx_bnfold.model.standard import version_of
from onnx_bnfold.reasons import Reason, Refused

FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)
T = TypeVar("T")


@cache
def accepts(operator: str, opset: int, data_type: int) -> bool:
    """Whether a standard operator takes data of some type in the version that an opset holds."""
    if not version_of(operator, opset) or data_type not in TensorProto.DataType.values():
        return False
    name = TensorProto.DataType.Name(data_type).lower()
    return f"tensor({name})" in onnx.defs.get_schema(operator, opset, "").inputs[0].types


class NodeView:
    """A node in its graph.

    Attributes:
        index: position in the graph's node list.
        op: operator type, or None outside the standard domain.
        reads, writes: names of its inputs and outputs, ``""`` for those left out.
    """

    def __init__(self, graph: Graph, constants: Constants, shapes: Shapes, index: int) -> None:
        self.graph = graph
        self.constants = constants
        self.index = index
        self.op = graph.ops[index]
        self.reads = graph.reads[index]
        self.writes = graph.writes[index]
        self._shapes = shapes
        self._found: dict[object, object] | None = None  # most nodes are asked nothing twice
        self._attributes = graph.attributes.get(index)

    @property
    def label(self) -> str:
        """Its operator and name, for messages."""
        return self.graph.label(self.index)

    def attribute(self, name: str, default: T) -> T:
        """Return an attribute's value, or the operator specification's default.

        Raises:
            Refused: the attribute refers to one of the enclosing function.
        """
        found = self._attributes.get(name) if self._attributes else None
        if found is None:
            return default
        if found.ref_attr_name:
            raise Refused(
                Reason.FUNCTION_ATTRIBUTE,
                self.label,
                f"attribute {name!r} is a parameter of the enclosing function and may differ "
                "from call to call",
            )
        return cast("T", value_of(found))

    def once(self, find: Callable[[NodeView], T]) -> T:
        """Return what a function finds of the node, whose shapes do not change; asked once."""
        if self._found is None:
            self._found = {}
        if find not in self._found:
            self._found[find] = find(self)
        return cast("T", self._found[find])

    def at(self, index: int) -> NodeView:
        """Return the view of another node of the same graph."""
        return NodeView(self.graph, self.constants, self._shapes, index)

    @property
    def node(self) -> NodeProto:
        """The message."""
        return self.graph.nodes[self.index]

    def require_version(self, newest: int) -> None:
        """Refuse a version of the operator that is newer than those somebody has read."""
        assert self.op is not None
        version = version_of(self.op, self.graph.opset)
        if version > newest:
            raise Refused(
                Reason.UNKNOWN_VERSION,
                self.label,
                f"it is of version {version} of its operator, and no version after {newest} is "
                "known here; use a newer release, or convert the model to an older opset with "
                "onnx.version_converter",
            )

    @property
    def opset(self) -> int:
        """Version of the standard operator set the node is of."""
        return self.graph.opset

    def name_in(self, slot: int) -> str:
        """Return the name of an input, ``""`` if it is absent."""
        return self.reads[slot] if slot < len(self.reads) else ""

    def constant(self, slot: int) -> Constant | None:
        """Return shape and type of an input that is constant, else None."""
        name = self.name_in(slot)
        return self.constants.get(name) if name else None

    def value(self, slot: int) -> Array | None:
        """Return the elements of a constant input; None if it is absent.

        Raises:
            Refused: it is computed at run time.
        """
        if not self.name_in(slot):
            return None
        if self.constant(slot) is None:
            raise Refused(
                Reason.PARAMETERS_NOT_CONSTANT,
                self.label,
                f"its input {self.name_in(slot)!r} is computed at run time",
            )
        return self.constants.value(self.name_in(slot))

    def integers(self, slot: int, attribute_value: list[int] | None) -> list[int] | None:
        """Return a list that old opsets hold in an attribute and new ones in an input.

        Raises:
            Refused: the input is computed at run time.
            TypeError: it holds no integers.
        """
        if attribute_value is not None:
            return list(attribute_value)
        value = self.value(slot)
        return None if value is None else [*map(operator.index, value.reshape(-1))]

    def dims_in(self, slot: int) -> Dims:
        """Return the dims of an input.

        Raises:
            Refused: its rank is not known.
        """
        return self.dims_of(self.name_in(slot))

    def dims_out(self, slot: int) -> Dims:
        """Return the dims of an output; like ``dims_in``."""
        return self.dims_of(self.writes[slot])

    def dims_of(self, name: str) -> Dims:
        """Return the dims of any tensor: int, symbol, or None where unknown."""
        info = self.constants.get(name)
        if info is not None:
            return info.dims
        dims = self._shapes.dims(name)
        if dims is None:
            raise self.unknown_shape(
                f"the rank of {name!r} is not known; export the model with input shapes, or run "
                "onnx.shape_inference on it"
            )
        return dims

    def unknown_shape(self, sentence: str) -> Refused:
        """Return a refusal for a shape that is not known, with a sentence that may not be why."""
        why = self._shapes.why_unknown((*self.reads, *self.writes))
        reason, sentence = why or (Reason.UNKNOWN_SHAPE, sentence)
        return Refused(reason, self.label, sentence)

    def require_no_misreading(self) -> None:
        """Refuse a node whose output is misread, or not read at all, unless the model declares it.

        Runtimes misread it, too, and plan by that which tensors may lie in the same memory. So what
        runs may run no more if a node goes.

        Raises:
            Refused: it is.
        """
        declared = {value.name for value in self.graph.body.value_info}
        if declared.issuperset(self.writes):
            return
        # Where inference has given up the rank alone is known, from the layers around.
        inferred = any(isinstance(d, int) for n in self.writes for d in self._shapes.dims(n) or ())
        if inferred and self._shapes.why_unknown(self.writes) is None:
            return
        raise Refused(
            Reason.UNKNOWN_SHAPE,
            self.label,
            "onnx's shape inference, by which runtimes plan their memory, misreads the shape of "
            "its output; declare that shape, or write its padding as pads",
        )

    def require_read(self, slot: int) -> None:
        """Refuse a node of whose input only layers say the rank, since inference misreads it.

        Its other input may be what keeps a wrong rank from the nodes behind.

        Raises:
            Refused: it is.
        """
        name = self.name_in(slot)
        inferred = any(isinstance(dim, int) for dim in self._shapes.dims(name) or ())
        if not inferred and self._shapes.why_unknown([name]) is not None:
            raise self.unknown_shape(f"the shape of {name!r} is misread")

    def type_of(self, name: str) -> int:
        """Return a tensor's element type, UNDEFINED where it is not known."""
        info = self.constants.get(name)
        if info is not None:
            return info.data_type
        return self._shapes.type_of(name)

    def weight(self, slot: int) -> Constant:
        """Return a constant weight.

        Raises:
            Refused: it is computed at run time or can be overridden.
        """
        info = self.constant(slot)
        if info is not None:
            return info
        name = self.name_in(slot)
        if name in self.graph.overridable:
            raise Refused(Reason.OVERRIDABLE_INITIALIZER, self.label, overridable(name))
        raise Refused(
            Reason.WEIGHT_NOT_CONSTANT, self.label, f"its weight {name!r} is computed at run time"
        )

    def bias(self, slot: int, weight: Constant, dims: tuple[int, ...] | None) -> Constant | None:
        """Return a constant bias, None if there is none.

        Raises:
            Refused: it is computed at run time, can be overridden, or has other dims.
        """
        name = self.name_in(slot)
        if not name:
            return None
        info = self.constant(slot)
        if info is None:
            if name in self.graph.overridable:
                raise Refused(Reason.OVERRIDABLE_INITIALIZER, self.label, overridable(name))
            raise Refused(
                Reason.BIAS_NOT_CONSTANT, self.label, f"its bias {name!r} is computed at run time"
            )
        if (dims is not None and info.dims != dims) or info.data_type != weight.data_type:
            raise Refused(
                Reason.INCONSISTENT_SHAPES,
                self.label,
                f"its bias {name!r} has shape {list(info.dims)}, which does not fit its weight "
                f"{weight.name!r} of shape {list(weight.dims)}; repair the model",
            )
        return info


def overridable(name: str) -> str:
    """Say that an initializer is also a graph input."""
    return (
        f"initializer {name!r} is also a graph input and can be overridden at run time; pass "
        "--freeze-initializers if nobody does"
    )
