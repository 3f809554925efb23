"""Evaluates a model node by node, with its own arithmetic types or all in float64.

Each tensor is held with the type it has in the model. ``double`` holds every float in float64;
else a bfloat16 is held as a float32 that is rounded after each node, since onnxruntime has next to
no kernels for it. ``noise`` moves whatever is rounded by one unit of its own type, so that the
spread of several evaluations is the rounding error that a model has by its very nature. With
``channel_axes`` the unit is that of the largest value of an element's channel, which lies on one of
these axes. ``far`` moves by all that a fold may add; what may be a pole then has no result. What is
not negative without noise is not so with it where a root is taken.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    helper,
    numpy_helper,
)

from .floats import BFLOAT16, FLOATS, PERMITTED, TIMES_BROAD, TINY, UNIT, allowed
from .kernels import attributes, widened, window_is_larger
from .runtime import NoKernel, run_node

# These round nothing: their results are values that were there before, but for a sign.
_EXACT = frozenset(
    {
        "Identity",
        "Reshape",
        "Transpose",
        "Relu",
        "MaxPool",
        "Slice",
        "Gather",
        "Concat",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Expand",
        "Tile",
        "Pad",
        "Max",
        "Min",
        "Neg",
        "Abs",
        "Clip",
        "DepthToSpace",
        "SpaceToDepth",
        "Dropout",
        "ReduceMax",
        "ReduceMin",
        "GlobalMaxPool",
        "Where",
        "GatherElements",
        "TopK",
        "Trilu",
        "ArgMax",
        "ArgMin",
        "Compress",
        "GatherND",
        "Hardmax",
        "ReverseSequence",
        "Scatter",
        "Sign",
    }
)


# Their kernels add up terms as large as these, and err by a unit of them however small the result.
_SIZES = {"Sigmoid": 1.0, "Tanh": 1.0, "Erf": 1.0, "Softplus": 1.0, "Sin": 1.0, "Cos": 1.0}
_SIZES |= {"LogSoftmax": 1.0, "LSTM": 1.0, "GRU": 1.0, "RNN": 1.0}

# A fold may write these with a constant, and take that back behind them: what they cut off was as
# large as what is in front, by a factor that is the attribute `alpha` or this.
_CLAMPS = {"Clip": 1.0, "HardSigmoid": 0.2, "Relu": 1.0}

# So it may write the constants of these, which stand where data of these inputs would have stood.
_MIXED = {"Scatter": (0,), "ScatterElements": (0,), "ScatterND": (0,), "Where": (1, 2)}

# What they make of no elements at all, ONNX leaves open.
_NEED_ELEMENTS = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"}
    | {"ReduceMax", "ReduceMean", "ReduceMin"}
)

# Of NaN alone onnxruntime makes the lowest number of the type, which is no value of the model's.
_LOSE_NAN = frozenset({"GlobalMaxPool", "MaxPool"})

# Their float constants are settings, which nothing rounds.
_SETTINGS = frozenset({"Dropout", "GridSample", "Pow", "Resize", "Upsample"})

# Where these jump, a unit decides, and so does all that a fold may be off by: so many units of the
# largest element.
_JUMPS = frozenset({"ArgMax", "ArgMin", "Hardmax", "Sign"})
_JUMP_UNITS = 64

# Where these inputs are zero there is no result, and near it any; of a Pow if it divides.
_POLES = {"Div": 1, "Pow": 0, "Reciprocal": 0}

# These compute their statistics in float32, whatever the type of their data.
_STASHING = frozenset({"GroupNormalization", "LayerNormalization", "RMSNormalization"})


class Tensor(NamedTuple):
    """An array, the type that the tensor has in the model, and whether it is written there."""

    array: np.ndarray
    dtype: np.dtype
    written: bool = False


class Interpreter:
    """An evaluation of one model.

    Args:
        divisors: what an evaluation without noise has divided by, in order.

    Attributes:
        divisors: what was divided by, in order.
        approximate: whether a node was, in part, computed in float32 where float64 was asked for.
        undefined: whether a node made something of nothing that ONNX does not define.
    """

    def __init__(
        self,
        opset: int,
        functions: Sequence[FunctionProto] = (),
        *,
        double: bool = False,
        noise: np.random.Generator | None = None,
        channel_axes: Sequence[int] = (),
        far: bool = False,
        divisors: Sequence[Tensor] = (),
    ) -> None:
        self.opset, self.double, self.noise = opset, double, noise
        self.channel_axes, self.far, self._exact = channel_axes, far, divisors
        self.divisors: list[Tensor] = []
        self.functions = {(f.domain, f.name): f for f in functions}
        self.approximate = self.undefined = False

    def held(
        self,
        array: np.ndarray,
        dtype: np.dtype | None = None,
        exact: bool = False,
        size: float | np.ndarray = 0,
    ) -> Tensor:
        """Return an array as this evaluation holds it; rounding is that of a `size` at least."""
        array = np.asarray(array)
        dtype = array.dtype if dtype is None else dtype
        if dtype not in FLOATS:
            return Tensor(array, dtype)
        if not self.double:
            with np.errstate(over="ignore", invalid="ignore"):
                rounded = array.astype(dtype)
            return Tensor(rounded.astype(np.float32) if dtype == BFLOAT16 else rounded, dtype)
        array = array.astype(np.float64)
        return Tensor(array if exact else self._moved(array, dtype, size), dtype)

    def written(self, array: np.ndarray) -> Tensor:
        """Return a constant; noise moves it where it is read, unless it only says a size."""
        return self.held(array, exact=True)._replace(written=True)

    def _moved(
        self, array: np.ndarray, dtype: np.dtype, size: float | np.ndarray = 0
    ) -> np.ndarray:
        if self.noise is None:
            return array
        size = np.maximum(np.abs(array), size)
        if self.channel_axes:
            size = np.maximum(size, self._broad(array))
        signs = self.noise.choice([-1.0, 1.0], array.shape)
        units = self._most(dtype) if self.far else 1
        moved = array + signs * units * (UNIT[dtype] * size + TINY[dtype])
        return np.where(np.isfinite(array), moved, array)

    def _most(self, dtype: np.dtype) -> int:
        """Return how many units a fold may add."""
        return TIMES_BROAD[dtype] if self.channel_axes else PERMITTED[dtype]

    def _broad(self, array: np.ndarray) -> np.ndarray:
        """Return for each element the largest value of its channel."""
        if array.ndim < 2:
            return np.abs(array)
        return np.asarray(np.min([_peaks(array, a) for a in self.channel_axes], axis=0))

    def _left_out(self, node: NodeProto, env: Mapping[str, Tensor]) -> np.ndarray:
        """Return how large what a node cuts off, or does not pick, may have been."""
        if node.op_type in _CLAMPS:
            factor = attributes(node).get("alpha", _CLAMPS[node.op_type])
            return abs(factor) * self._broad(env[node.input[0]].array)
        arrays = [env[node.input[slot]].array for slot in _MIXED[node.op_type]]
        return functools.reduce(np.maximum, map(self._broad, arrays))

    def _shaken(self, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return the input of what jumps, moved by all that a fold may be off by."""
        assert self.noise is not None
        reach = _JUMP_UNITS * UNIT[dtype] * np.abs(array).max(initial=0, where=np.isfinite(array))
        return np.asarray(array + self.noise.uniform(-reach, reach, array.shape))

    def _read(self, node: NodeProto, env: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return a node's inputs; in float32 what can be nothing else (a Resize's scales)."""
        kinds = () if node.domain else allowed(node.op_type, self.opset)
        found = {}
        for i, name in enumerate(node.input):
            if not name:
                continue
            array, dtype, written = env[name]
            if self.double and dtype in FLOATS:
                if kinds and len(kinds[min(i, len(kinds) - 1)]) == 1:
                    array = array.astype(np.float32)
                elif written and node.op_type not in _SETTINGS:
                    array = self._moved(array, dtype)
                if i == 0 and node.op_type in _STASHING and dtype == np.float64:
                    array = self._moved(array, np.dtype(np.float32))
                if i == 0 and (self.channel_axes or self.far) and _is_root(node, env):
                    array = np.abs(array)
                if self.noise is not None and node.op_type in _JUMPS:
                    array = self._shaken(array, dtype)
            found[name] = array
        return found

    def model(self, model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[Tensor]:
        """Evaluate a whole model."""
        env = {name: self.held(array, exact=True) for name, array in feeds.items()}
        return self.graph(model.graph, env)

    def graph(self, graph: GraphProto, env: dict[str, Tensor]) -> list[Tensor]:
        """Evaluate a graph; `env` holds its inputs and what it may capture, and is filled."""
        for t in graph.initializer:
            if t.name not in env:
                env[t.name] = self.written(numpy_helper.to_array(t))
        for s in graph.sparse_initializer:
            env[s.values.name] = self.written(_dense(s))
        self.nodes(graph.node, env)
        return [env[o.name] for o in graph.output]

    def nodes(self, nodes: Sequence[NodeProto], env: dict[str, Tensor]) -> None:
        """Evaluate nodes in whatever order they can be."""
        waiting = list(nodes)
        while waiting:
            late = []
            for node in waiting:
                if all(name in env for name in reads(node)):
                    found = self.node(node, env)
                    env.update((n, t) for n, t in zip(node.output, found, strict=False) if n)
                else:
                    late.append(node)
            if len(late) == len(waiting):
                raise ValueError(f"nothing makes an input of {late[0].op_type} {late[0].name}")
            waiting = late

    def node(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        """Evaluate one node."""
        if (node.domain, node.op_type) in self.functions:
            return self._call(node, env)
        special = getattr(self, f"_{node.op_type.lower()}", None)
        if special is not None and not node.domain:
            return special(node, env)
        return self._plain(node, env)

    def _plain(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        """Evaluate a node by onnxruntime's kernel, or one in numpy."""
        inputs = {n: env[n] for n in node.input if n}
        dtype = next((t.dtype for t in inputs.values() if t.dtype in FLOATS), None)
        exact, size = node.op_type in _EXACT, _SIZES.get(node.op_type, 0)
        if self.channel_axes and node.op_type in {*_CLAMPS, *_MIXED}:
            exact, size = False, self._left_out(node, env)
        results = self._computed(node, self._read(node, env))
        if node.op_type in _POLES and (
            node.op_type != "Pow" or (env[node.input[1]].array < 0).any()
        ):
            results = [self._open_at_pole(results[0], env[node.input[_POLES[node.op_type]]])]
        if self.double and node.op_type in _LOSE_NAN and _holds_nan(env[node.input[0]].array):
            results = [_without_lowest(r) for r in results]
        if node.op_type in _NEED_ELEMENTS and not env[node.input[0]].array.size:
            self.undefined |= any(r.size for r in results)
        # The specification has no such window, onnxruntime one that holds what is not there.
        if node.op_type == "AveragePool":
            self.undefined |= window_is_larger(node, env[node.input[0]].array.shape[2:])
        kinds = [dtype if r.dtype in FLOATS and dtype is not None else r.dtype for r in results]
        return [self.held(r, k, exact, size) for r, k in zip(results, kinds, strict=True)]

    def _open_at_pole(self, result: np.ndarray, now: Tensor) -> np.ndarray:
        """Return a result without those elements of which noise may make anything."""
        turn = len(self.divisors)
        self.divisors.append(now)
        before = self._exact[turn] if turn < len(self._exact) else None
        if result.dtype.kind != "f" or before is None or before.array.shape != now.array.shape:
            return result
        off = (1 if self.far else self._most(now.dtype)) * np.abs(now.array - before.array)
        return np.where(off < np.abs(before.array), result, np.nan)

    def _computed(self, node: NodeProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        # onnxruntime interpolates float64 by weights in float32, which do not quite add up to one.
        self.approximate |= node.op_type in ("Resize", "Upsample")
        try:
            return run_node(node, inputs, self.opset)
        except NoKernel:
            pass
        narrow = {n: a.astype(np.float32) if a.dtype in FLOATS else a for n, a in inputs.items()}
        single = run_node(node, narrow, self.opset)
        wide = widened(node, inputs, single, self.opset)
        if wide is not None:
            return wide
        self.approximate = True
        return single

    def _concat(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        """Join what fits; onnxruntime leaves out what is empty, whatever its shape."""
        parts = [env[name] for name in node.input]
        joined = np.concatenate([t.array for t in parts], attributes(node)["axis"])
        return [self.held(joined, parts[0].dtype, exact=True)]

    def _instancenormalization(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        """Subtract the mean and multiply; onnxruntime multiplies first, and rounds that.

        So its result is all rounding where an image is one element, or nearly constant. Of float64
        it has no kernel.
        """
        if not self.double and env[node.input[0]].dtype != np.float64:
            return self._plain(node, env)
        read = self._read(node, env)
        x, scale, bias = (read[name] for name in node.input)
        axes, epsilon = tuple(range(2, x.ndim)), attributes(node).get("epsilon", np.float32(1e-5))
        deviation = np.sqrt(x.var(axes, keepdims=True) + float(epsilon))
        factor, summand = (v.reshape(-1, *[1] * len(axes)) for v in (scale, bias))
        y = (x - x.mean(axes, keepdims=True)) * (factor / deviation) + summand
        return [self.held(y, env[node.input[0]].dtype, size=np.abs(x * factor / deviation))]

    def _topk(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        """Pick the largest; of values that a fold cannot keep apart either may be the one."""
        values, positions = self._plain(node, env)
        if self.noise is not None:
            x = env[node.input[0]]
            shaken = x._replace(array=self._shaken(x.array, x.dtype), written=False)
            positions = self._plain(node, {**env, node.input[0]: shaken})[1]
        return [values, positions]

    def _constant(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        ((name, value),) = attributes(node).items()
        if name == "value":
            return [self.written(numpy_helper.to_array(value))]
        kind = np.float32 if name.startswith("value_float") else np.int64
        return [self.written(np.asarray(value, kind))]

    def _cast(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        to = np.dtype(helper.tensor_dtype_to_np_dtype(attributes(node)["to"]))
        return [self._converted(env[node.input[0]], to)]

    def _castlike(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        return [self._converted(env[node.input[0]], env[node.input[1]].dtype)]

    def _converted(self, x: Tensor, to: np.dtype) -> Tensor:
        with np.errstate(over="ignore", invalid="ignore"):
            return self.held(x.array if to in FLOATS else x.array.astype(to), to)

    def _quantizelinear(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        inputs = {n: env[n].array for n in node.input if n}
        narrow = {n: a.astype(np.float32) if a.dtype in FLOATS else a for n, a in inputs.items()}
        return [self.held(r) for r in run_node(node, narrow, self.opset)]

    def _dequantizelinear(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        x, scale, *zero = [env[n] for n in node.input if n]
        axis, block = (attributes(node).get(k, d) for k, d in (("axis", 1), ("block_size", 0)))

        def spread(parameter: np.ndarray) -> np.ndarray:
            wide = parameter.astype(np.float64)
            if block:
                return np.repeat(wide, block, axis).take(range(x.array.shape[axis]), axis)
            shape = [-1 if i == axis % x.array.ndim else 1 for i in range(x.array.ndim)]
            return wide.reshape(shape) if wide.ndim else wide

        moved = x.array.astype(np.float64) - sum(spread(z.array) for z in zero)
        return [self.held(moved * spread(scale.array), scale.dtype)]

    def _if(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        branch = "then_branch" if env[node.input[0]].array.reshape(()) else "else_branch"
        return self.graph(attributes(node)[branch], dict(env))

    def _loop(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        body = attributes(node)["body"]
        trips = int(env[node.input[0]].array.reshape(())) if node.input[0] else 1 << 30
        go = (
            bool(env[node.input[1]].array.reshape(()))
            if len(node.input) > 1 and node.input[1]
            else True
        )
        carried = [env[n] for n in node.input[2:]]
        scans: list[list[Tensor]] = []
        turn = 0
        while turn < trips and go:
            turn_tensor, go_tensor = self.held(np.asarray(turn)), self.held(np.asarray(go))
            names = [i.name for i in body.input]
            inner = dict(env) | dict(zip(names, [turn_tensor, go_tensor, *carried], strict=True))
            out = self.graph(body, inner)
            go, turn = bool(out[0].array.reshape(())), turn + 1
            carried = out[1 : 1 + len(carried)]
            scans.append(out[1 + len(carried) :])
        stacked = [
            Tensor(np.stack([t.array for t in column]), column[0].dtype)
            for column in zip(*scans, strict=True)
        ]
        return [*carried, *stacked]

    def _scan(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        a = attributes(node)
        body, number = a["body"], a["num_scan_inputs"]
        given = [env[n] for n in node.input]
        states, streams = given[:-number], given[-number:]
        axes = a.get("scan_input_axes") or [0] * number
        back = a.get("scan_input_directions") or [0] * number
        length = streams[0].array.shape[axes[0]]
        rows: list[list[Tensor]] = []
        for i in range(length):
            parts = [
                Tensor(np.take(t.array, length - 1 - i if b else i, axis), t.dtype)
                for t, axis, b in zip(streams, axes, back, strict=True)
            ]
            inner = dict(env)
            inner.update(zip([v.name for v in body.input], [*states, *parts], strict=True))
            out = self.graph(body, inner)
            states = out[: len(states)]
            rows.append(out[len(states) :])
        outs = list(zip(*rows, strict=True))
        out_axes = a.get("scan_output_axes") or [0] * len(outs)
        out_back = a.get("scan_output_directions") or [0] * len(outs)
        stacked = [
            Tensor(np.stack([t.array for t in (c[::-1] if b else c)], axis), c[0].dtype)
            for c, axis, b in zip(outs, out_axes, out_back, strict=True)
        ]
        return [*states, *stacked]

    def _call(self, node: NodeProto, env: Mapping[str, Tensor]) -> list[Tensor]:
        function = self.functions[node.domain, node.op_type]
        given = {a.name: a for a in node.attribute}
        inner = {f: env[n] for f, n in zip(function.input, node.input, strict=False) if n}
        self.nodes([_bound(n, given) for n in function.node], inner)
        return [inner[name] for name in function.output]


def _bound(node: NodeProto, given: Mapping) -> NodeProto:
    """Return a node of a function with the attributes of the call."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    bound = NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for a in node.attribute:
        if a.ref_attr_name and a.ref_attr_name in given:
            bound.attribute.add().CopyFrom(given[a.ref_attr_name])
            bound.attribute[-1].name = a.name
        elif not a.ref_attr_name:
            bound.attribute.add().CopyFrom(a)
    return bound


def _is_root(node: NodeProto, env: Mapping[str, Tensor]) -> bool:
    """Whether a node makes nothing of what is negative."""
    if node.op_type != "Pow":
        return node.op_type == "Sqrt"
    exponent = env[node.input[1]].array
    return bool((exponent % 1 != 0).all())


def _holds_nan(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _without_lowest(result: np.ndarray) -> np.ndarray:
    """Return a result with NaN instead of the lowest number that a type has."""
    if result.dtype.kind != "f":
        return result
    is_lowest = np.isin(result, [np.finfo(t).min for t in (np.float16, np.float32, np.float64)])
    return np.where(is_lowest, np.nan, result)


def _peaks(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the largest finite magnitude at each position of an axis."""
    size = np.where(np.isfinite(array), np.abs(array), 0)
    others = tuple(i for i in range(size.ndim) if i != axis % size.ndim)
    return np.broadcast_to(size.max(axis=others, keepdims=True, initial=0), size.shape)


def _dense(sparse: SparseTensorProto) -> np.ndarray:
    values, indices = (numpy_helper.to_array(t) for t in (sparse.values, sparse.indices))
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return array


def reads(node: NodeProto) -> set[str]:
    """Return the names that a node reads, those that its bodies capture included."""
    names = {n for n in node.input if n}
    for a in node.attribute:
        for graph in [a.g] if a.HasField("g") else list(a.graphs):
            inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            inner |= {o for n in graph.node for o in n.output}
            inner |= {s.values.name for s in graph.sparse_initializer}
            names |= set().union(*(reads(n) for n in graph.node)) - inner if graph.node else set()
            names |= {o.name for o in graph.output} - inner
    return names
