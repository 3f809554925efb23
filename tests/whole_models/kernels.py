"""Float64 kernels in numpy for the operators that onnxruntime has for float32 alone.

A kernel gets the inputs in float64 and what onnxruntime made of them in float32 (``single``), which
says the shape of the output; ``widened`` compares the two.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from .runtime import run_node, single_node


def attributes(node: NodeProto) -> dict:
    """Return the attributes of a node by name, strings decoded."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {n: v.decode() if isinstance(v, bytes) else v for n, v in found.items()}


def _window(node: NodeProto, kernel: Sequence[int], into: Sequence[int], out: Sequence[int]):
    """Return strides, dilations and the pads in front, for a window on `into` that makes `out`."""
    a = attributes(node)
    rank = len(kernel)
    strides = a.get("strides") or [1] * rank
    dilations = a.get("dilations") or [1] * rank
    pads = list((a.get("pads") or [0] * (2 * rank))[:rank])
    if a.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            total = (out[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - into[i]
            total = max(total, 0)
            pads[i] = total // 2 if a["auto_pad"] == "SAME_UPPER" else total - total // 2
    elif a.get("auto_pad") == "VALID":
        pads = [0] * rank
    return strides, dilations, pads


def window_is_larger(node: NodeProto, image: Sequence[int]) -> bool:
    """Return whether the window of a pool is larger than an image with its padding."""
    a = attributes(node)
    if a.get("auto_pad", "NOTSET").startswith("SAME"):
        return False
    kernel, rank = a["kernel_shape"], len(image)
    pads = a.get("pads") if a.get("auto_pad", "NOTSET") == "NOTSET" else None
    around = np.reshape(pads or [0] * (2 * rank), (2, rank)).sum(axis=0)
    reach = (np.array(kernel) - 1) * (a.get("dilations") or [1] * rank)
    return bool((np.array(image) + around <= reach).any())


def _taps(node, kernel, x, out, padding=0.0):
    """Yield each position of the kernel with what lies under it."""
    strides, dilations, pads = _window(node, kernel, x.shape[2:], out)
    ends = [
        max((n - 1) * s + (k - 1) * d + 1 - p - size, 0)
        for n, s, k, d, p, size in zip(
            out, strides, kernel, dilations, pads, x.shape[2:], strict=True
        )
    ]
    around = [(0, 0), (0, 0), *zip(pads, ends, strict=True)]
    padded = np.pad(x, around, constant_values=padding)
    for position in itertools.product(*map(range, kernel)):
        starts = [k * d for k, d in zip(position, dilations, strict=True)]
        cut = [
            slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, out, strides, strict=True)
        ]
        yield position, padded[(..., *cut)]


def _conv(node, inputs, single):
    x, w, *rest = inputs
    group = attributes(node).get("group", 1)
    out = single.shape[2:]
    y = np.zeros(single.shape)
    parts = y.reshape(y.shape[0], group, -1, *out)
    weights = w.reshape(group, -1, *w.shape[1:])
    for position, under in _taps(node, w.shape[2:], x, out):
        under = under.reshape(x.shape[0], group, -1, *out)
        parts += np.einsum("ngi...,goi->ngo...", under, weights[(..., *position)])
    if rest and rest[0] is not None:
        y += rest[0].reshape(-1, *[1] * len(out))
    return y


def _conv_transpose(node, inputs, single):
    x, w, *rest = inputs
    a = attributes(node)
    group, kernel, out, into = a.get("group", 1), w.shape[2:], single.shape[2:], x.shape[2:]
    rank = len(kernel)
    strides, dilations = a.get("strides") or [1] * rank, a.get("dilations") or [1] * rank
    extra = a.get("output_padding") or [0] * rank
    full = [
        s * (n - 1) + (k - 1) * d + 1
        for s, n, k, d in zip(strides, into, kernel, dilations, strict=True)
    ]
    pads = list((a.get("pads") or [0] * (2 * rank))[:rank])
    if "output_shape" in a or a.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(f + e - o, 0) for f, e, o in zip(full, extra, out, strict=True)]
        upper = a.get("auto_pad") == "SAME_UPPER"
        pads = [t // 2 if upper else t - t // 2 for t in total]
    sizes = [max(f, o + p) for f, o, p in zip(full, out, pads, strict=True)]
    y = np.zeros((x.shape[0], group, w.shape[1], *sizes))
    data = x.reshape(x.shape[0], group, -1, *into)
    weights = w.reshape(group, -1, *w.shape[1:])
    for position in itertools.product(*map(range, kernel)):
        cut = [
            slice(k * d, k * d + s * (n - 1) + 1, s)
            for k, d, s, n in zip(position, dilations, strides, into, strict=True)
        ]
        y[(..., *cut)] += np.einsum("ngi...,gio->ngo...", data, weights[(..., *position)])
    y = y[(..., *[slice(p, p + o) for p, o in zip(pads, out, strict=True)])]
    y = y.reshape(x.shape[0], -1, *out)
    if rest and rest[0] is not None:
        y = y + rest[0].reshape(-1, *[1] * rank)
    return y


def _average_pool(node, inputs, single):
    (x,) = inputs
    kernel = attributes(node)["kernel_shape"]
    if attributes(node).get("count_include_pad", 0):
        raise NotImplementedError("the divisor at the border")
    taps = [under for _, under in _taps(node, kernel, x, single.shape[2:])]
    ones = [under for _, under in _taps(node, kernel, np.ones_like(x), single.shape[2:])]
    return sum(taps) / sum(ones)


def _max_pool(node, inputs, single):
    (x,) = inputs
    kernel = attributes(node)["kernel_shape"]
    return np.max([t for _, t in _taps(node, kernel, x, single.shape[2:], -np.inf)], axis=0)


def _p_relu(node, inputs, single):
    x, slope = inputs
    if slope.shape and slope.ndim == 1 and slope.size > 1 and x.ndim > 2 and _opset_6(x, slope):
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return np.where(x < 0, x * slope, x)


def _opset_6(x, slope):
    return x.shape[-1] != slope.size


def _alpha(default: float, function: Callable) -> Callable:
    return lambda node, inputs, single: function(
        inputs[0], attributes(node).get("alpha", np.float32(default))
    )


def _clip(node, inputs, single):
    a = attributes(node)
    low, high = [*inputs[1:], None, None][:2]
    x = inputs[0]
    low = a.get("min") if low is None else low
    high = a.get("max") if high is None else high
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _hard_sigmoid(node, inputs, single):
    a = attributes(node)
    slope, offset = a.get("alpha", np.float32(0.2)), a.get("beta", np.float32(0.5))
    return np.clip(inputs[0] * float(slope) + float(offset), 0, 1)


def _selu(node, inputs, single):
    alpha, gamma = 1.67326319217681884765625, 1.05070102214813232421875
    x = inputs[0]
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _space_axes(x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


_KERNELS: dict[str, Callable] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalMaxPool": lambda n, i, s: i[0].max(_space_axes(i[0]), keepdims=True),
    "GlobalAveragePool": lambda n, i, s: i[0].mean(_space_axes(i[0]), keepdims=True),
    "PRelu": _p_relu,
    "LeakyRelu": _alpha(0.01, lambda x, a: np.where(x < 0, x * float(a), x)),
    "Elu": _alpha(1.0, lambda x, a: np.where(x < 0, float(a) * np.expm1(np.minimum(x, 0)), x)),
    "ThresholdedRelu": _alpha(1.0, lambda x, a: np.where(x > float(a), x, 0)),
    "Selu": _selu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda n, i, s: i[0] * np.clip(i[0] / 6 + 0.5, 0, 1),
    "Softplus": lambda n, i, s: np.logaddexp(i[0], 0),
    "Softsign": lambda n, i, s: i[0] / (1 + np.abs(i[0])),
    "Erf": lambda n, i, s: np.vectorize(math.erf, otypes=[float])(i[0]),
    "Mish": lambda n, i, s: i[0] * np.tanh(np.logaddexp(i[0], 0)),
    "Mean": lambda n, i, s: sum(i) / len(i),
}
# What only moves values is exact in float32 on each of three parts that add up to the value.
_MOVEMENTS = frozenset({"DepthToSpace", "SpaceToDepth", "Upsample", "Pad"})


def _thirds(x: np.ndarray) -> list[np.ndarray]:
    """Split a float64 array into three of float32 that add up to it (to 2^-72)."""
    parts = []
    for _ in range(3):
        parts.append(x.astype(np.float32))
        x = x - parts[-1]
    return parts


def widened(
    node: NodeProto, inputs: Mapping[str, np.ndarray], single: list[np.ndarray], opset: int
) -> list[np.ndarray] | None:
    """Return what a node makes in float64, or None where no way agrees with onnxruntime."""
    for way in (_by_numpy, _by_parts, _by_reference):
        try:
            with np.errstate(all="ignore"):
                wide = way(node, inputs, single, opset)
        except Exception:
            continue
        size = functools.partial(_size, way, node, inputs, single, opset)
        if wide is None or not _agree(wide[0], single[0], size):
            continue
        others = _others(wide, single)
        if others is not None:
            return [np.asarray(wide[0], np.float64), *others]
    return None


def _others(wide: list[np.ndarray], single: list[np.ndarray]) -> list[np.ndarray] | None:
    """Return all outputs but the first, or None where a way does not make one of them."""
    found = []
    for i, array in enumerate(single[1:], 1):
        if array.dtype.kind == "f":
            if i >= len(wide) or not _agree(wide[i], array, lambda: 0.0):
                return None
            array = np.asarray(wide[i], np.float64)
        found.append(array)
    return found


def _by_numpy(node, inputs, single, opset):
    kernel = _KERNELS.get(node.op_type)
    ordered = [inputs[n] if n else None for n in node.input]
    return None if kernel is None else [kernel(node, ordered, single[0])]


def _by_parts(node, inputs, single, opset):
    first = node.input[0]
    if (
        node.op_type not in _MOVEMENTS
        or len([a for a in inputs.values() if a.dtype.kind == "f"]) > 1
    ):
        return None
    return [
        sum(
            run_node(node, {**inputs, first: part}, opset)[0].astype(np.float64)
            for part in _thirds(inputs[first])
        )
    ]


def _by_reference(node, inputs, single, opset):
    return ReferenceEvaluator(single_node(node, inputs, opset, 10)).run(None, dict(inputs))


def _size(way, node, inputs, single, opset) -> float:
    """Return what the terms that are added up may reach, beside which rounding is judged."""
    sizes = {n: np.abs(a) if a.dtype.kind == "f" else a for n, a in inputs.items()}
    found = np.abs(way(node, sizes, single, opset)[0])
    return float(found.max(initial=0, where=np.isfinite(found)))


def _agree(wide: np.ndarray, single: np.ndarray, size: Callable[[], float]) -> bool:
    """Whether two results are one, as far as float32 can tell: not where it overflows."""
    wide, firm = np.asarray(wide), np.isfinite(single)
    if wide.shape != single.shape or (single.size and not firm.any()):
        return False
    off = np.abs(wide - single).max(initial=0, where=firm)
    peak = np.abs(single).max(initial=0, where=firm)
    return bool(off <= 1e-4 * peak or off <= 1e-5 * size())
