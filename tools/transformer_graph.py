"""Graphs as exporters write transformers, which hold no BatchNormalization.

Sizes are computed from Shapes, normalizations and the Gelu are spelled out, biases are Adds, and
masks are Slices of a constant, one behind another.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_HEADS = 4
_LONGEST = 64  # positions
_WORDS = 100
_EPSILON = 1e-5


class _Net:
    """Nodes and initializers, named in order."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"node_{name}", **attributes))
        return name

    def const(self, value: object, kind: type = np.float32) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, kind)))

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def held(self, value: np.ndarray) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int) -> str:
        value = self._random.standard_normal(shape, np.float32)
        return self.held(value / np.sqrt(np.float32(shape[0])))

    def size(self, x: str, axis: int) -> str:
        """Return a vector of the size of one axis."""
        index = self.const(axis, np.int64)
        return self.op("Unsqueeze", self.op("Gather", self.op("Shape", x), index), self.ints(0))

    def linear(self, x: str, into: int, out: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(into, out)), self.weight(out))

    def normalized(self, x: str, width: int) -> str:
        away = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", away, self.const(2.0)), axes=[-1])
        spread = self.op("Sqrt", self.op("Add", variance, self.const(_EPSILON)))
        scaled = self.op("Mul", self.op("Div", away, spread), self.weight(width))
        return self.op("Add", scaled, self.weight(width))

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Div", x, self.const(2**0.5)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.const(1.0))),
                       self.const(0.5))  # fmt: skip


def _block(net: _Net, x: str, mask: str, causal: str, width: int) -> str:
    """Append attention and a network of two layers, each with a normalization behind."""
    split = [net.size(x, 0), net.size(x, 1), net.ints(_HEADS), net.ints(width // _HEADS)]
    shape = net.op("Concat", *split, axis=0)
    q, k, v = (net.op("Reshape", net.linear(x, width, width), shape) for _ in range(3))
    q, v = (net.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1]))
    scores = net.op("Div", scores, net.const((width / _HEADS) ** 0.5))
    for axis in (2, 3):
        causal = net.op("Slice", causal, net.ints(0), net.size(x, 1), net.ints(axis))
    scores = net.op("Where", causal, net.op("Add", scores, mask), net.const(-1e4))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Transpose", y, perm=[0, 2, 1, 3])
    joined = [net.size(y, 0), net.size(y, 1), net.ints(width)]
    y = net.op("Reshape", y, net.op("Concat", *joined, axis=0))
    x = net.normalized(net.op("Add", net.linear(y, width, width), x), width)
    y = net.linear(net.gelu(net.linear(x, width, 4 * width)), 4 * width, width)
    return net.normalized(net.op("Add", y, x), width)


def transformer(nodes: int, width: int = 64) -> ModelProto:
    """Return a transformer of so many nodes, or as few more as whole blocks take.

    Args:
        nodes: number of nodes.
        width: channels; a block has 12 times their square in weights.
    """
    net = _Net()
    x = net.op("Gather", net.weight(_WORDS, width), "ids")
    places = net.op(
        "Slice", net.weight(_LONGEST, width), net.ints(0), net.size("ids", 1), net.ints(0)
    )
    x = net.normalized(net.op("Add", x, places), width)
    mask = net.op("Cast", net.op("Unsqueeze", "mask", net.ints(1, 2)), to=TensorProto.FLOAT)
    mask = net.op("Mul", net.op("Sub", net.const(1.0), mask), net.const(-1e4))
    causal = net.held(np.tril(np.ones((1, 1, _LONGEST, _LONGEST), bool)))
    while len(net.nodes) < nodes:
        x = _block(net, x, mask, causal, width)
    kind, sizes = TensorProto.INT64, ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, kind, sizes) for name in ("ids", "mask")]
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, [*sizes, width])
    graph = helper.make_graph(net.nodes, "transformer", inputs, [output], net.weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
