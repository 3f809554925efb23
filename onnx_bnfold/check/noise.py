"""The original's own rounding noise, found by rounding its weights anew.

A fold computes new weights and rounds them once. The same model with every weight of its linear
layers and BNs moved by at most half a unit in the last place is therefore as legal as the model
itself, and since other weights also round every sum differently, the spread between such
evaluations holds the noise of the arithmetic too. Only these weights are moved: a constant that
ends up in a shape (a Resize scale, say) must stay exact.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_bnfold.check.sessions import Array
from onnx_bnfold.graph import operator, subgraphs
from onnx_bnfold.storage import ModelFile
from onnx_bnfold.storage.tensors import byte_length

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
_ALIGNMENT = 64  # bytes


class RoundedWeights:
    """The weights of a model's layers and BNs, each in an array that `draw` overwrites.

    A session that was given the arrays sees every draw, without being created anew.

    Args:
        file: the original model, open as long as there are draws.
        seed: of the check.

    Attributes:
        arrays: by tensor name; without meaning until the first draw.

    Raises:
        ModelError: the weights cannot be read.
    """

    def __init__(self, file: ModelFile, seed: int) -> None:
        self._seed = seed
        self._file = file
        self._weights = layer_weights(file.model)
        self.arrays = dict(_arrays(self._weights))

    def draw(self, number: int) -> None:
        """Makes every weight w·(1 + u·eps), u uniform in ±1/2, eps of the weight's own type.

        Args:
            number: of the draw; the same number gives the same weights.
        """
        rng = np.random.default_rng([self._seed, number, 1])
        table = np.tile(rng.random(_TABLE) - 0.5, 2)
        steps = {
            dtype: (table * np.finfo(dtype).eps).astype(np.promote_types(dtype, np.float32))
            for dtype in {array.dtype for array in self.arrays.values()}
        }
        # Read again for every draw: that costs less than the memory to keep them all.
        for name, tensor in self._weights.items():
            exact, moved = self._file.read(tensor), self.arrays[name]
            start = int(rng.integers(_TABLE))
            _move(exact.reshape(-1), steps[moved.dtype][start : start + _TABLE], moved.reshape(-1))


def layer_weights(proto: onnx.ModelProto) -> dict[str, TensorProto]:
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


def _arrays(weights: Mapping[str, TensorProto]) -> Iterator[tuple[str, Array]]:
    """Empty arrays for weights, in one block: the system hands that out in few large pages."""
    lengths = [byte_length(tensor) for tensor in weights.values()]
    starts = [0, *accumulate(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths)]
    block = np.empty(starts[-1], np.uint8)
    for (name, tensor), start, length in zip(weights.items(), starts, lengths, strict=False):
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        yield name, block[start : start + length].view(dtype).reshape(tensor.dims)


def _move(exact: Array, steps: Array, moved: Array) -> None:
    # float16 has no room for 1 + u·eps; w + w·(u·eps) is exact enough in float32 and above.
    change = np.empty_like(steps)
    for begin in range(0, exact.size, _TABLE):
        block = exact[begin : begin + _TABLE]
        part = change[: block.size]
        np.multiply(block, steps[: block.size], out=part)
        np.add(block, part, out=moved[begin : begin + _TABLE], casting="same_kind")


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the graphs inside its nodes, outer nodes first."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body)
