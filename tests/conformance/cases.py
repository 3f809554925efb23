"""One node, drawn over an operator's whole specification, and the table of what draws it.

A generator gets a `Draw` and returns `draw.node(operands…, attribute=…)`. Whether a parameter is an
attribute or an input of this version of the operator, and whether it exists at all, is looked up in
onnx's schema, so that one generator serves every version. A draw is a function of (operator, opset,
seed).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

FIRST_OPSET = 7
MOST_ELEMENTS = 160  # of a tensor: many small draws find more than few large ones


@dataclass(frozen=True)
class Operand:
    """What a node reads at one input.

    Attributes:
        name: `""` for an input that is left out.
        value: of a constant or a parameter; None for data.
        shape: of data.
        declared: the shape that the model declares, with symbols and None where it is open.
        changes: whether it may be re-parametrised; a parameter (axes, pads) may not.
    """

    name: str
    value: np.ndarray | None = None
    shape: tuple[int, ...] = ()
    declared: tuple[int | str | None, ...] = ()
    changes: bool = True

    @property
    def is_data(self) -> bool:
        return bool(self.name) and self.value is None


@dataclass(frozen=True)
class Case:
    """A node and what it reads.

    Attributes:
        operands: by input slot.
        outputs: how many it writes.
        dtype: of its data.
        magnitude: of the numbers to try it on.
    """

    op: str
    opset: int
    seed: int
    operands: tuple[Operand, ...]
    outputs: int
    attributes: dict[str, Any]
    dtype: np.dtype
    magnitude: float = 1.0
    run_time: frozenset[str] = field(default_factory=frozenset)

    @property
    def version(self) -> int:
        return schema(self.op, self.opset).since_version

    def key(self, slot: int) -> str:
        """What one change belongs to: a tensor, or a constant as one input reads it."""
        operand = self.operands[slot]
        return operand.name if operand.is_data or not operand.name else f"{operand.name}@{slot}"

    def copied(self) -> Case:
        """The case with a copy of a constant for each input that reads it."""
        operands = tuple(
            replace(o, name=self.key(s)) if o.changes else o for s, o in enumerate(self.operands)
        )
        return replace(self, operands=operands)

    def text(self) -> str:
        """The node as a person would write it."""
        operands = [_text(o, o.name in self.run_time) for o in self.operands]
        attributes = [f"{k}={v!r}" for k, v in self.attributes.items()]
        outputs = "" if self.outputs == 1 else f" -> {self.outputs} outputs"
        return f"{self.op}-{self.opset}({', '.join(operands + attributes)}){outputs} {self.dtype}"


def _text(operand: Operand, at_run_time: bool) -> str:
    if not operand.name:
        return "-"
    if operand.is_data:
        return f"{operand.name}{list(operand.declared)} of {list(operand.shape)}"
    assert operand.value is not None
    kind = "run-time " if at_run_time else ""
    value: Any = operand.value.tolist() if operand.value.size <= 12 else list(operand.value.shape)
    return f"{kind}{operand.name}={value}"


@cache
def schema(op: str, opset: int) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(op, opset, "")


@cache
def newest_opset() -> int:
    """The newest opset that onnx and onnxruntime both know."""
    newest = onnx.defs.onnx_opset_version()
    while newest > FIRST_OPSET and not _loads(newest):
        newest -= 1
    return newest


def _loads(opset: int) -> bool:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["x2"])], "g", [value], [])
    graph.output.add(name="x2")
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # of whatever class: it says that the opset is not official yet
        return False
    return True


@cache
def spans(op: str) -> tuple[tuple[int, int], ...]:
    """For each version of an operator from opset 7 on, the first and last opset that have it."""
    found, last = [], newest_opset()
    while last >= FIRST_OPSET:
        try:
            version = schema(op, last)
        except onnx.defs.SchemaError:  # the operator is younger
            break
        if not version.deprecated:
            found.append((max(version.since_version, FIRST_OPSET), last))
        last = version.since_version - 1
    return tuple(found[::-1])


@cache
def _parameters(op: str, opset: int) -> tuple[dict[str, int], frozenset[str]]:
    version = schema(op, opset)
    return {p.name: i for i, p in enumerate(version.inputs)}, frozenset(version.attributes)


class Draw:
    """Draws one node: random numbers, and helpers for shapes, axes and operands.

    Attributes:
        rng: for whatever the helpers do not draw.
        has: whether this version of the operator has an attribute or input of some name.
        since: the version of the operator.
    """

    def __init__(self, op: str, opset: int, seed: int, dtype: np.dtype) -> None:
        self.op, self.opset, self.seed, self.dtype = op, opset, seed, dtype
        self.rng = np.random.default_rng([zlib.crc32(op.encode()), opset, seed])
        self.since = schema(op, opset).since_version
        self._inputs, self._attributes = _parameters(op, opset)
        self._symbolic = self.chance(0.25)
        self._count = 0

    def has(self, name: str) -> bool:
        return name in self._inputs or name in self._attributes

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def integer(self, low: int, high: int) -> int:
        """One of low, …, high."""
        return int(self.rng.integers(low, high + 1))

    def integers(self, low: int, high: int, count: int) -> list[int]:
        return self.rng.integers(low, high + 1, count).tolist()

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def shape(self, least: int = 0, most: int = 6, sizes: Sequence[int] = (1, 2, 3, 4, 5)) -> list:
        """A shape of a rank between two bounds; an axis is rarely empty, often of size 1."""
        rank = self.integer(least, most)
        shape = [self.pick(*sizes, 1) for _ in range(rank)]
        while np.prod(shape) > MOST_ELEMENTS:
            shape[self.integer(0, rank - 1)] = self.pick(1, 2)
        if rank and self.chance(0.02):
            shape[self.integer(0, rank - 1)] = 0
        return shape

    def axis(self, rank: int) -> int:
        """Any axis, counted from the front or from the back."""
        return self.integer(-rank, rank - 1) if rank else 0

    def signed(self, axis: int, rank: int) -> int:
        """An axis, perhaps counted from the back."""
        return axis - rank if self.chance(0.4) else axis

    def axes(self, rank: int, among: Sequence[int] | None = None) -> list[int]:
        """Some axes, of either sign, unsorted, rarely one twice."""
        possible = list(range(rank) if among is None else among)
        self.rng.shuffle(possible)
        chosen = possible[: self.integer(0, len(possible))]
        if chosen and self.chance(0.03):
            chosen.append(chosen[0])
        return [self.signed(a, rank) for a in chosen]

    def operand_shape(self, shape: Sequence[int]) -> list[int]:
        """A shape that broadcasts with one: shorter, with axes of size 1, or of its own."""
        own = [1 if self.chance(0.3) else n for n in shape]
        if self.chance(0.06):
            own = [self.integer(1, 3) if n == 1 else n for n in own]
        return own[self.integer(0, len(own)) :] if self.chance(0.4) else own

    def data(self, shape: Sequence[int], name: str | None = None) -> Operand:
        """A computed tensor; some of its sizes may be open, equal ones then have equal symbols."""
        declared: list[int | str | None] = list(shape)
        if self._symbolic:
            # What a model is given at an open size has elements.
            declared = [f"s{n}" if n and self.chance(0.4) else n for n in shape]
            declared = [None if d != n and self.chance(0.1) else d
                        for d, n in zip(declared, shape, strict=True)]  # fmt: skip
        self._count += 1
        return Operand(name or f"x{self._count}", None, tuple(shape), tuple(declared))

    def constant(self, shape: Sequence[int], *, zeros: float = 0.05) -> Operand:
        """A constant of the data's type, of both signs, some elements zero or of odd size."""
        value = self.rng.standard_normal(tuple(shape))
        value = np.where(self.rng.random(value.shape) < zeros, 0.0, value)
        if self.chance(0.1) and self.dtype != np.float16:
            value = value * 10.0 ** self.rng.integers(-8, 9, value.shape)
        self._count += 1
        return Operand(f"c{self._count}", np.asarray(value, self.dtype))

    def node(
        self,
        *operands: Operand,
        outputs: int = 1,
        magnitude: float | None = None,
        **parameters: Any,
    ) -> Case:
        """The node; a parameter that is None, or that this version does not have, is left out."""
        slots = list(operands)
        attributes: dict[str, Any] = {}
        for name, value in parameters.items():
            if value is None or not self.has(name):
                continue
            if name in self._attributes:
                attributes[name] = value
                continue
            slot = self._inputs[name]
            slots.extend([Operand("")] * (slot + 1 - len(slots)))
            slots[slot] = Operand(name, self._parameter(name, value), changes=False)
        run_time = [o.name for o in slots if not o.changes and self.chance(0.02)]
        size = self.pick(1.0, 1.0, 1.0, 1e-3, 1e3) if magnitude is None else magnitude
        return Case(self.op, self.opset, self.seed, tuple(slots), outputs, attributes, self.dtype,
                    1.0 if self.dtype == np.float16 else size, frozenset(run_time))  # fmt: skip

    def _parameter(self, name: str, value: Any) -> np.ndarray:
        formal = schema(self.op, self.opset).inputs[self._inputs[name]]
        data = schema(self.op, self.opset).inputs[0]
        if formal.type_str == data.type_str:
            return np.asarray(value, self.dtype)
        if "tensor(int64)" in formal.types:
            return np.asarray(value, np.int64)
        return np.asarray(value, bool if "tensor(bool)" in formal.types else np.float32)


Generator = Callable[[Draw], Case]
GENERATORS: dict[str, Generator] = {}


def generator(*operators: str) -> Callable[[Generator], Generator]:
    """Register what draws the nodes of operators."""

    def register(function: Generator) -> Generator:
        for op in operators:
            assert op not in GENERATORS, f"{op} has two generators"
            GENERATORS[op] = function
        return function

    return register


def draw_case(op: str, opset: int, seed: int, dtype: np.dtype | type) -> Case:
    """The case of a seed, with data of some type."""
    return GENERATORS[op](Draw(op, opset, seed, np.dtype(dtype)))


def node_of(case: Case, **replaced: Any) -> onnx.NodeProto:
    """The node as a message; an attribute may be replaced, or left out by None."""
    formal = schema(case.op, case.opset).attributes
    names = [o.name for o in case.operands]
    written = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, written, name="node")
    node.attribute.extend(
        helper.make_attribute(name, value, attr_type=int(formal[name].type.value))
        for name, value in (case.attributes | replaced).items()
        if value is not None
    )
    return node
