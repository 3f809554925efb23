"""The original's own rounding noise, found by rounding its weights anew.

A fold computes new weights and rounds them once. The same model with every weight of its linear
layers and BNs moved by at most half a unit in the last place is therefore as legal as the model
itself, and since other weights also round every sum differently, the spread between such
evaluations holds the noise of the arithmetic too. Only these weights are moved: a constant that
ends up in a shape (a Resize scale, say) must stay exact.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnx_bnfold.check.sessions import Array
from onnx_bnfold.graph import operator, subgraphs

Weights: TypeAlias = dict[str, TensorProto]

# Positions of the weights among the operator's inputs.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
}
# Operators that hand a weight on, as exporters place them in front of a layer.
_CARRIERS = frozenset({"Cast", "CastLike", "Expand", "Flatten", "Identity", "Reshape"})
_CARRIERS |= {"Squeeze", "Transpose", "Unsqueeze"}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
# Multipliers are taken from one table, cyclically: drawing 25 million of them would cost more
# than running the model. The length is a prime, so that rows of a weight do not repeat.
_TABLE = 65_521


def layer_weights(proto: onnx.ModelProto) -> Weights:
    """The float constants of the main graph that linear layers and BNs read as weights."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    carried: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type in _CARRIERS and node.input:
            carried[node.output[0]] = node.input[0]
    found = {}
    for node in all_nodes(proto.graph):
        for position in _WEIGHTS.get(operator(node), ()):
            name = node.input[position] if position < len(node.input) else ""
            while name in carried:
                name = carried[name]
            if name in constants and constants[name].data_type in _FLOATS:
                found[name] = constants[name]
    return found


def rounded_anew(weights: Weights, folder: Path, seed: int, draw: int) -> dict[str, Array]:
    """Every weight w as w·(1 + u·eps), u uniform in ±1/2, eps of the weight's own type.

    Args:
        weights: tensors by name, perhaps with external data.
        folder: where external data are.
        seed: of the check.
        draw: number of the evaluation.
    """
    rng = np.random.default_rng([seed, draw, 1])
    table = rng.random(_TABLE) - 0.5
    return {
        name: _moved(numpy_helper.to_array(tensor, str(folder)), table, int(rng.integers(_TABLE)))
        for name, tensor in weights.items()
    }


def _moved(weight: Array, table: NDArray[np.float64], start: int) -> Array:
    # float16 has no room for 1 + u·eps; w + w·(u·eps) is exact enough in float32 and above.
    wide = np.promote_types(weight.dtype, np.float32)
    steps = (np.roll(table, start) * np.finfo(weight.dtype).eps).astype(wide)
    flat = weight.reshape(-1)
    moved = np.empty_like(flat)
    for begin in range(0, flat.size, _TABLE):
        block = flat[begin : begin + _TABLE].astype(wide, copy=False)
        moved[begin : begin + _TABLE] = block + block * steps[: block.size]
    return moved.reshape(weight.shape)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the graphs inside its nodes, outer nodes first."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body)
