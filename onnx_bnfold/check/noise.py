"""The original's own rounding noise, from evaluations with other rounding.

A fold computes new weights and so rounds every weight, product and sum differently. To measure the
effect without a fold, the original is rewritten once (see ``rescaled``): a Mul by a number r is put
behind every linear layer and BN, and ``draw`` divides their weights and biases by r, rounding once.
For any r this is the same function and as valid a model as the original; an r that is not a power
of two changes how everything is rounded. r has so few digits that every float type has it.

A weight that cannot be divided, since something else reads it as well, is changed by at most half a
unit in the last place instead, and so are the mean and the variance of a BN; variance and epsilon
are scaled together, so that their sum is rounded differently, too. No other constant is changed:
one that determines a shape (a Resize scale, for example) has to stay exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnx_bnfold.arrays import dtype_of
from onnx_bnfold.check.evaluators import Evaluator
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.rescaled import rescaled
from onnx_bnfold.check.sessions import Array, Session
from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.graph import subgraphs
from onnx_bnfold.storage import ModelFile
from onnx_bnfold.storage.tensors import byte_length

# r is 1 + k/1024, or 1 + k/128 for bfloat16. Dividing by a number from 1 to 2 cannot overflow.
_DIGITS, _FEW_DIGITS = 1024, 128
# Random steps come from one table, cyclically: generating 25 million would take longer than running
# the model. The length is prime, so that rows of a weight do not get the same steps.
_TABLE = 65_521
_ALIGNMENT = 64  # bytes


class RoundedWeights:
    """A model rewritten so that its weights can be rounded differently again and again.

    A session from ``session`` uses the weights of the latest draw; it is created only once.

    Args:
        file: the original model; has to stay open as long as there are draws.
        seed: of the check.
        divide: divide the weights that can be divided; otherwise all are changed by steps.

    Attributes:
        model: the rewritten model; its large tensors refer to the file of the original.
        groups: sets of weights that are divided by the same r.
        arrays: name → values of the weights and of every r; undefined before the first draw.

    Raises:
        ModelError: the weights cannot be read.
    """

    def __init__(self, file: ModelFile, seed: int, *, divide: bool = True) -> None:
        self._seed = seed
        self._file = file
        self._rewrite(divide=divide)

    def _rewrite(self, *, divide: bool) -> None:
        rewritten = rescaled(self._file, divide=divide)
        self._weights = {name: _copy(tensor) for name, tensor in rewritten.weights.items()}
        self.groups = rewritten.groups
        self._stretched = rewritten.stretched
        factors = {name for group in rewritten.groups for name in group.factors.values()}
        numbers = {t.name: t for t in rewritten.model.graph.initializer if t.name in factors}
        self.arrays = dict(_arrays({**self._weights, **numbers}))
        self._divisors = {
            name: next(iter(group.factors.values()))
            for group in rewritten.groups
            for name in group.weights
        }
        self._file.refer(rewritten.model)
        self.model = rewritten.model

    def session(
        self, evaluator: Evaluator, original: CheckedModel, *, extra_outputs: Sequence[str] = ()
    ) -> Session:
        """Return a session that evaluates the latest draw.

        Args:
            evaluator: creates it.
            original: the original model.
            extra_outputs: further tensors to return.

        Raises:
            ModelError: the model cannot be loaded.
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
        # A Mul may not fit where types are mixed in an unforeseen way: change all weights by steps.
        self._rewrite(divide=False)
        return opened()

    def frozen(self) -> onnx.ModelProto:
        """Return the latest draw as a model, which needs the file of the original."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.arrays:
                tensor.CopyFrom(numpy_helper.from_array(self.arrays[tensor.name], tensor.name))
        return model

    def draw(self, number: int) -> None:
        """Divide every weight by its r, or change it to w·(1 + u·eps) with u uniform in ±1/2.

        Args:
            number: of the draw; equal numbers give equal weights.
        """
        rng = np.random.default_rng([self._seed, number, 1])
        for group in self.groups:
            digits = _FEW_DIGITS if TensorProto.BFLOAT16 in group.factors else _DIGITS
            r = 1 + rng.integers(1, digits) / digits
            for name in group.factors.values():
                self.arrays[name][...] = r
        table = np.tile(rng.random(_TABLE) - 0.5, 2)
        steps = {dtype: _steps(table, dtype) for dtype in {a.dtype for a in self.arrays.values()}}
        # Read the weights for every draw instead of keeping all of them in memory.
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
    """Yield name → empty array of weights, in one block, for which the system has large pages."""
    lengths = [byte_length(tensor) for tensor in weights.values()]
    starts = [0, *accumulate(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths)]
    block = np.empty(starts[-1], np.uint8)
    for (name, tensor), start, length in zip(weights.items(), starts, lengths, strict=False):
        dtype = dtype_of(tensor.data_type)
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
    # float16 cannot represent 1 + u·eps; w + w·(u·eps) is exact enough in float32 and above.
    change = np.empty_like(steps[: exact.size])
    for begin in range(0, exact.size, _TABLE):
        block = exact[begin : begin + _TABLE]
        part = change[: block.size]
        np.multiply(block, steps[: block.size], out=part)
        np.add(block, part, out=moved[begin : begin + _TABLE], casting="same_kind")


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a graph and of its subgraphs, outer nodes first."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body)
