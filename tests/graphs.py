"""A graph under construction, for tests that build many small models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import support
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.model.shape_inference import Inference, Shapes
from onnx_bnfold.planning.graph_state import GraphState

# Signs of a BatchNormalization's scales, repeated over its channels.
SIGNS = {
    "mixed": (1, -1),
    "positive": (1,),
    "negative": (-1,),
    "zero": (0,),
    "some zero": (1, 0, -1),
}
IMAGE = ("N", 4, 4, 4)
FLOAT = TensorProto.FLOAT


class Net:
    """The nodes of one graph; a method that adds nodes returns the name of the last one's output.

    Attributes:
        inputs: types of the graph inputs; the first argument makes one, called x.
    """

    def __init__(
        self,
        shape: Sequence[int | str | None] | None = None,
        *,
        seed: int = 0,
        opset: int = 17,
        prefix: str = "",
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.prefix = opset, prefix
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._shapes: dict[str, list[int | str]] = {}
        if shape is not None:
            self.input(f"{prefix}x", shape)

    def fresh(self, stem: str) -> str:
        return f"{self.prefix}{stem.lower()}{len(self.nodes) + len(self.initializers)}"

    def input(self, name: str, shape: Sequence[int | str | None] | None, kind: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, value, dtype=np.float32) -> str:
        """An initializer; `dtype` applies to floats."""
        value = np.asarray(value)
        name = self.fresh("c")
        dtype = dtype if value.dtype.kind == "f" else value.dtype
        self.initializers.append(support.tensor(name, value.astype(dtype)))
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of int64: axes, a shape, indices."""
        return self.const(np.array(values, np.int64))

    def values(self, *shape: int) -> np.ndarray:
        """Random numbers away from zero, of mixed signs."""
        return self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1, 1], shape)

    def random(self, *shape: int, dtype=np.float32) -> str:
        """A constant of random numbers away from zero, of mixed signs."""
        return self.const(self.values(*shape), dtype)

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes) -> Any:
        """A node; with several outputs, the tuple of their names."""
        name = self.fresh(op)
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **{"name": f"n_{name}"} | attributes))
        return name if outputs == 1 else tuple(names)

    def _layer(self, op: str, x: str, weight_shape: Sequence[int], bias_shape, **options) -> str:
        parts = support.layer(
            op, x, self.fresh(op), weight_shape, self.rng, bias_shape=bias_shape, **options
        )
        self.nodes += parts.nodes
        self.initializers += parts.initializers
        return parts.nodes[0].output[0]

    def conv(self, x: str, out: int, kernel: int = 1, *, bias: bool = True, **options) -> str:
        """A Conv to `out` channels; `channels` and `rank` of x may be given if not inferable."""
        channels = options.pop("channels", None) or self.shape(x)[1]
        rank = options.pop("rank", None) or len(self.shape(x))
        weight = (out, channels // options.get("group", 1), *[kernel] * (rank - 2))
        return self._layer("Conv", x, weight, [out] if bias else None, **options)

    def gemm(self, x: str, out: int, **options) -> str:
        """A Gemm with bias from the features of x to `out` features."""
        features = options.pop("channels", None) or self.shape(x)[1]
        return self._layer("Gemm", x, (features, out), [out], **options)

    def matmul(self, x: str, out: int) -> str:
        """A MatMul over the last axis of x, without bias."""
        return self._layer("MatMul", x, (self.shape(x)[-1], out), None)

    def linear(self, x: str, out: int) -> str:
        """A MatMul over the last axis of x, and the Add of its bias."""
        return self.op("Add", self.matmul(x, out), self.random(out))

    def head(self, x: str, out: int = 2) -> str:
        """A layer that reads x without padding: a Gemm for two axes, else a Conv."""
        return self.gemm(x, out) if len(self.shape(x)) == 2 else self.conv(x, out)

    def bn(
        self,
        x: str,
        *,
        channels: int | None = None,
        signs: str | Sequence[int] = "mixed",
        shift: bool = True,
        dtype=np.float32,
        **attributes,
    ) -> str:
        """A BatchNormalization; `signs`: a key of SIGNS or a pattern; without shift, y = a * x."""
        channels = self.shape(x)[1] if channels is None else channels
        sign = np.resize(SIGNS[signs] if isinstance(signs, str) else signs, channels)
        values = [
            self.rng.uniform(0.5, 1.5, channels) * sign,
            self.rng.standard_normal(channels) * shift,
            self.rng.standard_normal(channels) * shift,
            self.rng.uniform(0.3, 2.0, channels),
        ]
        constants = [self.const(value, dtype) for value in values]
        return self.op("BatchNormalization", x, *constants, **{"epsilon": 0.01} | attributes)

    def affine(self, x: str, *shape: int) -> str:
        """A Mul and an Add by constants: a decomposed BatchNormalization."""
        return self.op("Add", self.op("Mul", x, self.random(*shape)), self.random(*shape))

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def shape(self, name: str) -> list[Any]:
        """The shape of a tensor by onnx's inference; a dynamic axis is a str."""
        if name not in self._shapes:
            values = [*self.model(name).graph.output, *self.inputs]
            for value in values:
                self._shapes[value.name] = [
                    d.dim_value if d.HasField("dim_value") else d.dim_param
                    for d in value.type.tensor_type.shape.dim
                ]
        return self._shapes[name]

    def graph(self, *outputs: str, name: str = "g") -> GraphProto:
        """The graph; its outputs are untyped."""
        listed = [helper.make_empty_tensor_value_info(o) for o in outputs]
        return helper.make_graph(self.nodes, name, self.inputs, listed, self.initializers)

    def model(self, *outputs: str) -> ModelProto:
        """The model; its outputs have their inferred type and shape, nothing else has."""
        imports = [helper.make_opsetid("", self.opset)]
        domains = {f.domain for f in self.functions}
        made = helper.make_model(
            self.graph(*outputs),
            ir_version=max(8, helper.find_min_ir_version_for(imports)),
            opset_imports=imports + [helper.make_opsetid(d, 1) for d in sorted(domains)],
            functions=self.functions,
        )
        inferred = onnx.shape_inference.infer_shapes(made, data_prop=True)
        del made.graph.output[:]
        made.graph.output.extend(inferred.graph.output)
        return made

    def state(self, *outputs: str) -> GraphState:
        """The model as a planner sees it."""
        model = self.model(*outputs)
        (main,) = graphs_of(model)
        shapes = Shapes(main, Inference(model, [main], numpy_helper.to_array), 0, None)
        return GraphState(main, Constants(main, numpy_helper.to_array, shapes, None), shapes)


def assert_report_names_nodes(model: ModelProto, report: onnx_bnfold.Report) -> None:
    """Whatever the report blames, or says it folded into, is a node or a tensor of the model."""
    nodes = support.all_nodes(model)
    names = {name for n in nodes for name in (n.name, *n.input, *n.output)}
    names |= {value.name for value in model.graph.input}
    labels = [label for r in report.records for label in (*r.scale_to, *r.shift_to)]
    labels += [refusal.culprit for r in report.kept for _, refusal in r.tried]
    labels += [r.refusal.culprit for r in report.kept]
    for label in labels:
        assert any(f"'{name}'" in label for name in names), label


@dataclass(frozen=True)
class Case:
    """A graph, and what becomes of its BNs: `kept` stay, each for one of `reasons`."""

    build: Callable[[Net], str | tuple[str, ...]]
    kept: int
    reasons: frozenset[Reason]
    shape: Sequence[Any]
    opset: int

    def check(self, **comparison) -> tuple[ModelProto, onnx_bnfold.Report]:
        """Fold the graph and compare with what is expected."""
        net = Net(self.shape, opset=self.opset)
        outputs = self.build(net)
        model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
        folded, report = support.fold_checked(model, kept=self.kept, **comparison)
        for tried in support.reasons(report):
            assert not self.reasons or tried & self.reasons, report.lines()
        assert_report_names_nodes(model, report)
        return folded, report


class Cases(list):
    """Collects test graphs; the names of the functions that build them are the ids."""

    def __call__(self, kept: int = 0, *reasons: Reason, shape=IMAGE, opset: int = 17):
        """Decorate a function that builds a graph of which `kept` BNs stay, for these reasons."""

        def add(build):
            case = Case(build, kept, frozenset(reasons), shape, opset)
            self.append(pytest.param(case, id=build.__name__.replace("_", "-")))
            return build

        return add
