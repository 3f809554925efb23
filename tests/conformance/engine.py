"""A case made runnable: its node in onnxruntime, unoptimised, and as the package sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.model.shape_inference import Inference, Shapes
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.graph_state import GraphState

from .cases import Case, Operand, draw_case, node_of

SAMPLES = 8
SHAPED = frozenset({"CausalConvWithState"})  # has no kernel of its own in onnxruntime
INSTALLED = tuple(map(int, ort.__version__.split(".")[:2]))
BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
CANCELS = frozenset({"DFT", "STFT"})  # multiply by numbers of their own, of both signs
Arrays = list[np.ndarray]
Ports = Mapping[int, Affine]

ort.set_default_logger_severity(4)
_options = ort.SessionOptions()
_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
_options.log_severity_level = 4
_options.intra_op_num_threads = 1
_options.inter_op_num_threads = 1


class NotRunnable(Exception):
    """Onnxruntime cannot run a node: it is invalid, or of a type without a kernel."""


def _adds_more_than_is_left(case: Case) -> bool:
    """Whether a Pad adds to an axis of which it leaves nothing, or wraps around more than that."""
    given = {o.name: o.value for o in case.operands if not o.changes and o.name}
    pads = np.reshape(given.get("pads", case.attributes.get("pads")), (2, -1))
    axes = given.get("axes", np.arange(pads.shape[1]))
    sizes = np.array(case.operands[0].shape)[np.asarray(axes)]
    left = sizes + np.minimum(pads, 0).sum(axis=0)
    wraps = case.attributes.get("mode") == "wrap"
    return bool(((pads > 0) & ((left <= 0) | (wraps & (pads > left)))).any())


# What an onnxruntime computes otherwise than the specification says: up to which version, and in
# which cases. Such a Pad leaves elements of its output as they were in memory.
MISCOMPUTED = {"Pad": ((1, 23), _adds_more_than_is_left)}


def is_miscomputed(case: Case) -> bool:
    """Whether the installed onnxruntime is known to be wrong about a node."""
    last, condition = MISCOMPUTED.get(case.op, ((0, 0), None))
    return condition is not None and last >= INSTALLED and condition(case)


class Kernel:
    """A node in onnxruntime; all its float operands are inputs of any shape.

    Args:
        case: the node.
        replaced: attributes in place of its own, None for those to be left out.

    Attributes:
        case: the node with these attributes.
    """

    def __init__(self, case: Case, **replaced: Any) -> None:
        if is_miscomputed(case):
            raise NotRunnable("the installed onnxruntime is known to be wrong about it")
        case = case.copied()
        self.case = replace(case, attributes={**case.attributes, **replaced})
        fed = {o.name: o for o in case.operands if o.name and o.changes}
        kept = {o.name: o.value for o in case.operands if o.name and not o.changes}
        nodes, names = [node_of(case, **replaced)], [f"y{i}" for i in range(case.outputs)]
        self._narrow = case.attributes.get("to") == TensorProto.BFLOAT16
        if self._narrow:  # which onnxruntime does not hand out
            nodes.append(helper.make_node("Cast", ["y0"], ["wide"], to=TensorProto.FLOAT))
            names = ["wide"]
        graph = helper.make_graph(
            nodes,
            "g",
            [_input(o, case) for o in fed.values()],
            [onnx.ValueInfoProto(name=name) for name in names],
            [numpy_helper.from_array(v, name) for name, v in kept.items() if v is not None],
        )
        model = helper.make_model(
            graph, ir_version=10, opset_imports=[helper.make_opsetid("", case.opset)]
        )
        self._slots = {o.name: slot for slot, o in enumerate(case.operands) if o.name in fed}
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(), _options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise NotRunnable(str(error)) from None

    def __call__(self, values: Sequence[np.ndarray]) -> Arrays:
        """Run it on the operands' values, by slot."""
        try:
            found = self._session.run(
                None, {n: np.asarray(values[slot]) for n, slot in self._slots.items()}
            )
        except Exception as error:
            raise NotRunnable(str(error)) from None
        return [np.asarray(y, BFLOAT16 if self._narrow else None) for y in found]


def _input(operand: Operand, case: Case) -> onnx.ValueInfoProto:
    """Of any shape, but for operators that onnxruntime expands by the shapes that a model says."""
    kind, value, shape = helper.np_dtype_to_tensor_dtype(case.dtype), operand.value, None
    if case.op in SHAPED:
        shape = [None] * len(operand.shape) if value is None else value.shape or None
    return helper.make_tensor_value_info(operand.name, kind, shape)


def site_of(case: Case) -> GraphState:
    """The package's view of a model of this one node."""
    listed, initializers = [], []
    element = helper.np_dtype_to_tensor_dtype(case.dtype)
    for o in {o.name: o for o in case.operands if o.name}.values():
        if o.is_data:
            listed.append(helper.make_tensor_value_info(o.name, element, o.declared))
        elif o.name in case.run_time:
            kind = helper.np_dtype_to_tensor_dtype(o.value.dtype)
            listed.append(helper.make_tensor_value_info(o.name, kind, o.value.shape))
        else:
            initializers.append(numpy_helper.from_array(o.value, o.name))
    outputs = [onnx.ValueInfoProto(name=f"y{i}") for i in range(case.outputs)]
    graph = helper.make_graph([node_of(case)], "g", listed, outputs, initializers)
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", case.opset)]
    )
    (main,) = graphs_of(model)
    shapes = Shapes(main, Inference(model, [main], numpy_helper.to_array), 0, None)
    return GraphState(main, Constants(main, numpy_helper.to_array, shapes, None), shapes)


class Trial:
    """A case with numbers: what its node makes of several random inputs.

    Attributes:
        samples: the operands' values by slot; constants are the same in all.
        outs: the outputs of each sample.

    Raises:
        NotRunnable: onnxruntime does not run the node.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = np.random.default_rng([case.seed, case.opset, 1])
        self.kernel = Kernel(case)
        self._draw()
        if self.narrowest.itemsize < case.dtype.itemsize:  # within the range of both
            self.case = replace(case, magnitude=1.0)
            self._draw()

    def _draw(self) -> None:
        self.samples = [self.sample(i) for i in range(SAMPLES)]
        self.outs = [self.kernel(sample) for sample in self.samples]

    @property
    def narrowest(self) -> np.dtype:
        """The narrowest of the types that the node computes in."""
        found = [self.case.dtype, *(y.dtype for y in self.outs[0] if is_float(y.dtype))]
        return min(found, key=lambda dtype: dtype.itemsize)

    @cached_property
    def state(self) -> GraphState:
        return site_of(self.case)

    def sample(self, index: int, sizes: Mapping[int | str | None, int] | None = None) -> Arrays:
        """Values for all operands; open sizes may be others than those that were drawn."""
        named: dict[str, np.ndarray] = {}
        for o in self.case.operands:
            if o.is_data and o.name not in named:
                shape = [(sizes or {}).get(d, n) if not isinstance(d, int) else n
                         for d, n in zip(o.declared, o.shape, strict=True)]  # fmt: skip
                named[o.name] = self._numbers(shape, index)
        absent = np.zeros(())
        return [
            named[o.name] if o.is_data else absent if o.value is None else o.value
            for o in self.case.operands
        ]

    def _numbers(self, shape: Sequence[int], index: int) -> np.ndarray:
        x = self.rng.standard_normal(tuple(shape)) * self.case.magnitude
        if index % 4 == 1:
            x = np.round(x)  # zeros and ties
        elif index % 4 == 2:
            x = x * 4
        elif index % 4 == 3 and self.case.dtype != np.float16:
            most = 3 if self.case.dtype == np.float64 else 1
            x = x * 10.0 ** self.rng.integers(-most, most + 1, x.shape)
        return x.astype(self.case.dtype)

    def resized(self) -> tuple[Arrays, Arrays] | None:
        """A sample in which the open sizes are others, and its outputs; None if there is none."""
        open_sizes = {
            d: n + 1 for o in self.case.operands
            for d, n in zip(o.declared, o.shape, strict=False) if not isinstance(d, int)
        }  # fmt: skip
        if not open_sizes:
            return None
        try:
            sample = self.sample(0, open_sizes)
            return sample, self.kernel(sample)
        except NotRunnable:
            return None

    def shape(self, port: int) -> tuple[int, ...]:
        return self.outs[0][~port].shape if port < 0 else self.samples[0][port].shape

    def open_axes(self, port: int) -> list[int]:
        """Axes of a tensor whose size the model leaves open."""
        if port >= 0:
            declared: Sequence[Any] = self.case.operands[port].declared
        else:
            declared = self.state.shapes.dims(f"y{~port}") or ()
        rank = len(self.shape(port))  # inference may be wrong about it
        return [axis for axis, dim in enumerate(declared[:rank]) if not isinstance(dim, int)]

    def changed(self, sample: Sequence[np.ndarray], ports: Ports) -> Arrays:
        """The operands after their changes, computed in float64 and rounded once."""
        return [
            applied(ports[slot], value).astype(value.dtype) if slot in ports else value
            for slot, value in enumerate(sample)
        ]

    def sizes(self, sample: Sequence[np.ndarray], ports: Ports) -> Arrays | None:
        """For each output the size of the numbers that its elements are made of.

        The node is run on the magnitudes of its operands, of equal and of opposite signs: an
        average of magnitudes bounds an average, a difference of opposite ones bounds a difference.
        Where magnitudes cancel, too, the largest number speaks for all.
        """
        sizes = [
            applied(Affine(np.abs(ports[slot].scale), np.abs(ports[slot].shift)), np.abs(value))
            .astype(value.dtype) if slot in ports else np.abs(value)
            for slot, value in enumerate(sample)
        ]  # fmt: skip
        changing = [o.changes for o in self.case.operands]
        signs = ([1], [-1], [1, -1], [1, 1, -1])
        try:
            found = [
                self.kernel(
                    [
                        np.negative(s) if changing[i] and sign[i % len(sign)] < 0 else s
                        for i, s in enumerate(sizes)
                    ]
                )
                for sign in signs[: 2 if len(sizes) == 1 else 4]
            ]
        except NotRunnable:
            return None
        found_sizes = [
            np.max(np.abs(wide(np.array(ys))), axis=0) for ys in zip(*found, strict=True)
        ]
        if self.case.op in CANCELS:
            largest = np.abs(wide(sizes[0])).max(initial=0)
            return [np.full_like(y, y.max(initial=largest)) for y in found_sizes]
        return found_sizes


def applied(change: Affine, value: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(change.scale * wide(value) + change.shift)


def wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64)


# What onnxruntime says.
NO_KERNEL = ("NOT_IMPLEMENTED", "does not support double", "Type 'tensor(double)'")


def make_trial(op: str, opset: int, seed: int) -> Trial:
    """The trial of a seed, in the type that the seed wishes or, without a kernel, in float32.

    Raises:
        NotRunnable: in neither.
    """
    wishes = (np.float64,) * 8 + (np.float32, np.float16)
    wish = wishes[int(np.random.default_rng([seed, opset]).integers(len(wishes)))]
    try:
        return Trial(draw_case(op, opset, seed, wish))
    except NotRunnable as error:
        if wish is np.float32 or not any(each in str(error) for each in NO_KERNEL):
            raise
    return Trial(draw_case(op, opset, seed, np.float32))


ROUNDING = {np.dtype(np.float64): 2.0**-30, np.dtype(np.float32): 2.0**-13}


def rounding(dtype: np.dtype) -> float:
    """What may be lost, relative to the size of the numbers that an element is made of."""
    return ROUNDING.get(dtype, 2.0**-5)


def tight(dtype: np.dtype) -> float:
    """The rounding of a few operations, relative to the size of the numbers."""
    return {8: 2.0**-46, 4: 2.0**-19}.get(dtype.itemsize, 2.0**-7)


def is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
