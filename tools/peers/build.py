"""Builds small graphs from text.

A graph is written in onnx's textual syntax with two shorthands: ``y = BN4(x)`` is a
BatchNormalization of four channels with random parameters ``y_s, y_b, y_m, y_v``; tensors named in
`tensors` become initializers, random where only a shape is given. Graph inputs and outputs are
opaque, so a node is foldable only into what is in the graph.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

Tensor = np.ndarray | tuple[int, ...]
BATCH_NORM = ("BatchNormalization",)
AFFINE = (*BATCH_NORM, "Mul", "Add", "Sub", "Div")
IMAGE = "float[2,4,8,8] x"


@dataclass(frozen=True)
class Construct:
    """One small graph.

    Attributes:
        name: what it shows.
        model: the graph.
        counted: operators whose removal counts.
        foldable: how many of them can be removed exactly.
    """

    name: str
    model: ModelProto
    counted: tuple[str, ...]
    foldable: int


def construct(
    name: str,
    body: str,
    *,
    foldable: int = 1,
    tensors: Mapping[str, Tensor] | None = None,
    inputs: str = IMAGE,
    outputs: tuple[str, ...] = ("y",),
    dtype: type = np.float32,
    positive: bool = False,
    counted: tuple[str, ...] = BATCH_NORM,
    functions: str = "",
    opset: int = 17,
    ir_version: int = 8,
) -> Construct:
    """Build a construct; see the module's docstring for `body`.

    Args:
        name: what it shows; it seeds the random numbers.
        body: the nodes, one a line.
        foldable: how many of the counted nodes can be removed exactly.
        tensors: initializers; a shape stands for random elements.
        inputs: graph inputs with their types.
        outputs: graph outputs; their types are inferred.
        dtype: of random tensors.
        positive: whether every gamma is positive; else every second is negative.
        counted: operators whose removal counts.
        functions: local functions, in the same syntax, of the domain ``local``.
        opset: version of the standard operators.
        ir_version: of the model; below 4 every initializer is a graph input, too.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    constants: dict[str, np.ndarray] = {}

    def expand(match: re.Match[str]) -> str:
        y, channels, x = match[1], int(match[2]), match[3]
        sign = 1 if positive else np.resize([1, -1], channels)
        constants[f"{y}_s"] = (rng.uniform(0.5, 1.5, channels) * sign).astype(dtype)
        constants[f"{y}_b"] = rng.standard_normal(channels).astype(dtype)
        constants[f"{y}_m"] = rng.standard_normal(channels).astype(dtype)
        constants[f"{y}_v"] = rng.uniform(0.5, 1.5, channels).astype(dtype)
        parameters = ", ".join(f"{y}_{p}" for p in "sbmv")
        return f"{y} = BatchNormalization <epsilon = 0.01> ({x}, {parameters})"

    nodes = re.sub(r"(\w+) = BN(\d+)\((\w+)\)", expand, body)
    for key, value in (tensors or {}).items():
        random = isinstance(value, tuple)
        constants[key] = (rng.standard_normal(value) * 0.5).astype(dtype) if random else value
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}, "local": 1]>\n'
        f"construct ({inputs}) => ({', '.join(f'float {o}' for o in outputs)}) {{\n{nodes}\n}}\n"
        + functions
    )
    if not functions:
        del model.opset_import[1:]
    read = {n for node in model.graph.node for n in node.input} | set(outputs)
    inner = {n for g in _bodies(model) for node in g.node for n in node.input}
    for key, value in constants.items():
        if key in read | inner:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    return Construct(name, _typed(model), counted, foldable)


def _bodies(model: ModelProto) -> list[onnx.GraphProto]:
    return [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]


def _typed(model: ModelProto) -> ModelProto:
    """Give the outputs the types that shape inference finds, and IR 3 models all their inputs."""
    if model.ir_version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in model.graph.initializer
        )
    for output in model.graph.output:
        output.ClearField("type")
    inferred = onnx.shape_inference.infer_shapes(model)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


def overridable(made: Construct, name: str) -> Construct:
    """Make an initializer a graph input that a caller may override."""
    tensor = next(t for t in made.model.graph.initializer if t.name == name)
    made.model.graph.input.append(
        helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
    )
    return made


def sparse(made: Construct, name: str) -> Construct:
    """Store an initializer as a sparse one."""
    graph = made.model.graph
    tensor = next(t for t in graph.initializer if t.name == name)
    dense = numpy_helper.to_array(tensor).ravel()
    values = numpy_helper.from_array(dense, name)
    indices = numpy_helper.from_array(np.arange(dense.size))
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, tensor.dims))
    graph.initializer.remove(tensor)
    return made


def also_output(made: Construct, name: str) -> Construct:
    """Make an initializer a graph output, too."""
    tensor = next(t for t in made.model.graph.initializer if t.name == name)
    made.model.graph.output.append(
        helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
    )
    return made


# Shapes, types and nodes that many constructs share.
W3, W1, L = (4, 4, 3, 3), (4, 4, 1, 1), (4, 6)
CONV = "c = Conv <pads = [1,1,1,1]> (x, W)\n"
MATRIX, SEQUENCE = "float[2,4] x", "float[2,5,4] x"
HALF = "float16[2,4,8,8] x"
