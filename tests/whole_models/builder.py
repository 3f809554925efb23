"""Builds a graph node by node, and runs each node as soon as it is there.

So the values of every tensor are known while the graph grows: attributes are drawn for the shape a
tensor really has, a BatchNormalization can be given the statistics that its input really has, and
a node that onnxruntime refuses is taken back at once (``Unfit``) instead of spoiling the graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from .draw import Draw, Unfit
from .floats import BFLOAT16, FLOATS, allowed
from .interpreter import Interpreter, Tensor

# A tensor beyond these makes the graph slow, or overflows before anything is folded.
_MOST_ELEMENTS = 3000
_PEAK = {
    np.dtype(np.float16): 3e3,
    BFLOAT16: 1e8,
    np.dtype(np.float32): 1e8,
    np.dtype(np.float64): 1e30,
}


@dataclass
class Scope:
    """A graph that grows: the main graph, a body, or a local function.

    Attributes:
        outer: the graph around a body, whose tensors it may capture.
        bare: whether its constants are nodes, since it has no initializers (as a function).
        pool: the computed tensors that a next node may read.
        positions: computed tensors of integers, which may be outputs.
        inputs: declarations of the graph's own inputs.
        shared: constants made so far, by role, type and shape.
    """

    outer: "Scope | None" = None
    bare: bool = False
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    sparse: list[SparseTensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    shared: dict[tuple, list[str]] = field(default_factory=dict)


class Builder:
    """A model that grows.

    Attributes:
        env: every tensor made so far, of all scopes, as the interpreter holds it.
        main: the main graph; ``scope`` is the graph that grows now.
        strange: let a node through whose values are not finite, or that has no elements.
        symbolic: whether the sizes of some inputs are open.
        uncertain: whether the rank of a tensor depends on which branch of an If runs.
    """

    def __init__(self, draw: Draw, opset: int, ir_version: int, dtype: np.dtype) -> None:
        self.draw, self.opset, self.ir_version, self.dtype = draw, opset, ir_version, dtype
        self.scope = self.main = Scope()
        self.env: dict[str, Tensor] = {}
        self.functions: list[FunctionProto] = []
        self.strange = draw.chance(0.05)
        self.named = draw.weighted({"all": 3, "some": 2, "none": 1})
        self.guises = draw.weighted({0.0: 4, 0.1: 4, 0.4: 1.5, 1.0: 0.2})
        self.symbolic = self.uncertain = False
        self._count = 0

    # What is known of a tensor.

    def array(self, name: str) -> np.ndarray:
        return self.env[name].array

    def shape(self, name: str) -> tuple[int, ...]:
        return self.env[name].array.shape

    def rank(self, name: str) -> int:
        return self.env[name].array.ndim

    def type(self, name: str) -> np.dtype:
        return self.env[name].dtype

    def channels(self, name: str) -> int:
        """Return the size of axis 1."""
        if self.rank(name) < 2:
            raise Unfit("no channels")
        return self.shape(name)[1]

    def need(self, condition: bool) -> None:
        """Give up what is being drawn unless a condition holds."""
        if not condition:
            raise Unfit

    # Growing.

    def fresh(self, prefix: str = "t") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def input(self, name: str, array: np.ndarray, shape=None) -> str:
        """Declare an input of the scope; `array` is what it gets on the first run."""
        self.env[name] = self._interpreter().held(array)
        kind = helper.np_dtype_to_tensor_dtype(self.env[name].dtype)
        shape = array.shape if shape is None else shape
        self.scope.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def add(
        self, op: str, inputs: list[str], outputs: int = 1, domain: str = "", **kw
    ) -> list[str]:
        """Append a node and run it; return the names of its outputs."""
        if not domain:
            self._allowed(op, inputs)
        names = [self.fresh() for _ in range(outputs)]
        attributes = {k: v for k, v in kw.items() if v is not None}
        try:
            node = helper.make_node(op, inputs, names, domain=domain, **attributes)
        except ValueError as error:  # an empty list, of a scalar
            raise Unfit(str(error)) from error
        if self.named == "all" or (self.named == "some" and self.draw.chance(0.5)):
            node.name = self.fresh("node_")
        self.append(node)
        return names

    def one(self, op: str, inputs: list[str], **kw) -> str:
        """Append a node of one output, which may be read by what comes next."""
        (name,) = self.add(op, inputs, **kw)
        self.scope.pool.append(name)
        return name

    def append(self, node: NodeProto) -> None:
        """Append a finished node and run it."""
        try:
            with np.errstate(all="ignore"):
                found = self._interpreter().node(node, self.env)
        except Exception as error:
            raise Unfit(str(error)) from error
        for name, t in zip(node.output, found, strict=False):
            if not name:
                continue
            self._sane(t)
            self.env[name] = t
        self.scope.nodes.append(node)

    def initializer(self, array: np.ndarray, name: str | None = None) -> str:
        """Add an initializer as it is, or a Constant node where there are none."""
        name = name or self.fresh("c")
        if self.scope.bare:
            node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            self.scope.nodes.append(node)
        else:
            self.scope.initializers.append(numpy_helper.from_array(array, name))
        self.env[name] = self._interpreter().written(array)
        return name

    def sparse(self, array: np.ndarray) -> str:
        """Add a sparse initializer; one of more than one axis may count its elements either way."""
        name, positions = self.fresh("c"), np.flatnonzero(array)
        values = numpy_helper.from_array(array.reshape(-1)[positions], name)
        if array.ndim > 1 and self.draw.chance(0.5):
            positions = np.argwhere(array)
        indices = numpy_helper.from_array(positions.astype(np.int64), self.fresh("i"))
        self.scope.sparse.append(
            SparseTensorProto(values=values, indices=indices, dims=array.shape)
        )
        self.env[name] = self._interpreter().written(array)
        return name

    def integers(self, *values: int) -> str:
        """Return a constant of int64, for axes and shapes and the like."""
        array = np.array(values, np.int64)
        if self.draw.chance(0.2):
            name = self.fresh("k")
            value = numpy_helper.from_array(array, self.draw.pick(["", name]))
            self.scope.nodes.append(helper.make_node("Constant", [], [name], value=value))
            self.env[name] = self._interpreter().held(array)
            return name
        return self.initializer(array, self.fresh("k"))

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Take back everything that was added when the draw is unfit."""
        scope = self.scope
        marks = len(scope.nodes), len(scope.initializers), len(scope.pool), len(self.functions)
        sparse, positions = len(scope.sparse), len(scope.positions)
        try:
            yield
        except Unfit:
            self.scope = scope
            made = {o for n in scope.nodes[marks[0] :] for o in n.output}
            made |= {t.name for t in scope.initializers[marks[1] :]}
            made |= {t.values.name for t in scope.sparse[sparse:]}
            del scope.sparse[sparse:]
            del scope.nodes[marks[0] :], scope.initializers[marks[1] :], scope.pool[marks[2] :]
            del self.functions[marks[3] :], scope.positions[positions:]
            for names in scope.shared.values():
                names[:] = [n for n in names if n not in made]
            raise

    def source(self) -> str:
        """Return a tensor to go on from: most often the newest."""
        pool = [n for n in self.scope.pool if self.rank(n)]
        self.need(bool(pool))
        return pool[-1] if self.draw.chance(0.8) else self.draw.pick(pool)

    def axis(self, rank: int, axis: int) -> int:
        """Return an axis, sometimes counted from the end."""
        return axis - rank if self.opset >= 11 and self.draw.chance(0.35) else axis

    def _interpreter(self) -> Interpreter:
        return Interpreter(self.opset, self.functions)

    def _sane(self, t: Tensor) -> None:
        if t.array.size > _MOST_ELEMENTS or (t.array.size == 0 and not self.strange):
            raise Unfit("too many elements, or none")
        if t.dtype in FLOATS and t.array.size:
            peak = np.abs(t.array).max()
            if not self.strange and not peak <= _PEAK[t.dtype]:
                raise Unfit("too large")

    def _allowed(self, op: str, inputs: list[str]) -> None:
        try:
            known = allowed(op, self.opset)
        except onnx.defs.SchemaError as error:
            raise Unfit(str(error)) from error
        for i, name in enumerate(inputs):
            if name and self.type(name) in FLOATS:
                kinds = known[min(i, len(known) - 1)] if known else frozenset()
                if self.type(name) not in kinds:
                    raise Unfit(f"{op} of {self.type(name)} in opset {self.opset}")
