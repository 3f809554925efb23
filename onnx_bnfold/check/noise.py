"""The original's own rounding noise, found from evaluations that round otherwise.

A fold computes other weights and so rounds every weight, product and sum anew. To see what that
does without folding, the original is rewritten once (see `rescaled`): a Mul by a number r goes
behind every linear layer and norm, and `draw` gives their weights and biases divided by r, rounded
once. For any r that is the same function and as legal a model as the original; an r that is no
power of two changes how everything is rounded. It has so few digits that every float type holds it.

A weight that cannot be divided, because something else reads it too, is moved by at most half a
unit in the last place instead, and so are the mean and the variance of a BN; variance and epsilon
are stretched, so that their sum is rounded otherwise, too. No other constant changes: one that ends
up in a shape (a Resize scale, say) must stay exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_bnfold.check.evaluators import Evaluator
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.rescaled import rescaled
from onnx_bnfold.check.sessions import Array, Session
from onnx_bnfold.errors import ModelError
from onnx_bnfold.graph import subgraphs
from onnx_bnfold.storage import ModelFile
from onnx_bnfold.storage.tensors import byte_length

# r is 1 + k/1024, or for bfloat16 1 + k/128. From 1 to 2 it makes no weight overflow.
_DIGITS, _FEW_DIGITS = 1024, 128
# Multipliers are taken from one table, cyclically: drawing 25 million of them would cost more
# than running the model. The length is a prime, so that rows of a weight do not repeat.
_TABLE = 65_521
_ALIGNMENT = 64  # bytes


class RoundedWeights:
    """A model rewritten so that its weights may be rounded anew, each in an array.

    A session made by `session` sees every draw, without being created anew.

    Args:
        file: the original model, open as long as there are draws.
        seed: of the check.
        divide: divide the weights that can be; otherwise all are moved.

    Attributes:
        model: the rewritten model; its large tensors refer to the file of the original.
        groups: what is divided by one r.
        arrays: the weights by name, and every r; without meaning until the first draw.

    Raises:
        ModelError: the weights cannot be read.
    """

    def __init__(self, file: ModelFile, seed: int, *, divide: bool = True) -> None:
        self._seed = seed
        self._file = file
        self._rewrite(divide=divide)

    def _rewrite(self, *, divide: bool) -> None:
        found = rescaled(self._file, divide=divide)
        self._weights = {name: _copy(tensor) for name, tensor in found.weights.items()}
        self.groups = found.groups
        self._stretched = found.stretched
        factors = {name for group in found.groups for name in group.factors.values()}
        numbers = {t.name: t for t in found.model.graph.initializer if t.name in factors}
        self.arrays = dict(_arrays({**self._weights, **numbers}))
        self._divisors = {
            name: next(iter(group.factors.values()))
            for group in found.groups
            for name in group.weights
        }
        self._file.refer(found.model)
        self.model = found.model

    def session(
        self, evaluator: Evaluator, original: CheckedModel, *, extra_outputs: Sequence[str] = ()
    ) -> Session:
        """A session of the original that sees every draw.

        Args:
            evaluator: makes it.
            original: the model that the weights are of.
            extra_outputs: further tensors to return.

        Raises:
            ModelError: the model does not load.
        """

        def opened() -> Session:
            return evaluator.session(
                original, weights=self.arrays, rewritten=self.model, extra_outputs=extra_outputs
            )

        try:
            return opened()
        except ModelError:
            if not self.groups:
                raise
        # Where types are mixed in a way not seen here, a Mul does not fit: all weights are moved.
        self._rewrite(divide=False)
        return opened()

    def frozen(self) -> onnx.ModelProto:
        """The last draw as a model, which needs the file of the original."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.arrays:
                tensor.CopyFrom(numpy_helper.from_array(self.arrays[tensor.name], tensor.name))
        return model

    def draw(self, number: int) -> None:
        """Divides every weight by its r, or makes it w·(1 + u·eps), u uniform in ±1/2.

        Args:
            number: of the draw; the same number gives the same weights.
        """
        rng = np.random.default_rng([self._seed, number, 1])
        for group in self.groups:
            digits = _FEW_DIGITS if TensorProto.BFLOAT16 in group.factors else _DIGITS
            r = 1 + rng.integers(1, digits) / digits
            for name in group.factors.values():
                self.arrays[name][...] = r
        table = np.tile(rng.random(_TABLE) - 0.5, 2)
        steps = {dtype: _steps(table, dtype) for dtype in {a.dtype for a in self.arrays.values()}}
        # Read again for every draw: that costs less than the memory to keep them all.
        for name, tensor in self._weights.items():
            exact, moved = self._file.read(tensor), self.arrays[name]
            if name in self._stretched:
                exact = np.multiply(exact, self._stretched[name], dtype=np.float64)
            if name in self._divisors:
                divisor = self.arrays[self._divisors[name]].astype(exact.dtype)
                np.divide(exact, divisor, out=moved, casting="same_kind")
                continue
            start = int(rng.integers(_TABLE))
            _move(exact.reshape(-1), steps[moved.dtype][start : start + _TABLE], moved.reshape(-1))


def _arrays(weights: Mapping[str, TensorProto]) -> Iterator[tuple[str, Array]]:
    """Empty arrays for weights, in one block: the system hands that out in few large pages."""
    lengths = [byte_length(tensor) for tensor in weights.values()]
    starts = [0, *accumulate(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths)]
    block = np.empty(starts[-1], np.uint8)
    for (name, tensor), start, length in zip(weights.items(), starts, lengths, strict=False):
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        yield name, block[start : start + length].view(dtype).reshape(tensor.dims)


def _copy(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _steps(table: Array, dtype: np.dtype) -> Array:
    wide = np.promote_types(dtype, np.float32)
    eps = float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    return np.asarray(table * eps, wide)


def _move(exact: Array, steps: Array, moved: Array) -> None:
    # float16 has no room for 1 + u·eps; w + w·(u·eps) is exact enough in float32 and above.
    change = np.empty_like(steps[: exact.size])
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
