"""A plain numpy evaluation in float64, for what onnxruntime has no kernel for.

Written from the operator specification: float64 and bfloat16 convolutions, the operators before
opset 7. Every value is float64 until the outputs, which are rounded to their type once; the only
rounding errors seen are those of the model's own tensors.
"""

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import ModelProto, NodeProto, helper, numpy_helper

FLOATS = ("float16", "bfloat16", "float32", "float64")


def evaluate(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Every output of a model, computed in float64."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} | dict(feeds)
    values = {k: v.astype(np.float64) if v.dtype.name in FLOATS else v for k, v in values.items()}
    for node in model.graph.node:
        inputs = [values[name] if name else None for name in node.input]
        values[node.output[0]] = OPERATORS[node.op_type](node, *inputs)
    return [
        values[o.name].astype(helper.tensor_dtype_to_np_dtype(o.type.tensor_type.elem_type))
        for o in model.graph.output
    ]


def _attributes(node: NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _per_channel(values: np.ndarray, rank: int) -> np.ndarray:
    return values.reshape(-1, *[1] * (rank - 2))


def batch_normalization(node, x, scale, b, mean, var):
    attributes = _attributes(node)
    if attributes.get("spatial", 1):
        scale, b, mean, var = (_per_channel(v, x.ndim) for v in (scale, b, mean, var))
    epsilon = float(np.float32(attributes.get("epsilon", 1e-5)))
    return (x - mean) / np.sqrt(var + epsilon) * scale + b


def conv(node, x, w, b=None):
    attributes = _attributes(node)
    n = w.ndim - 2
    strides = attributes.get("strides", [1] * n)
    dilations = attributes.get("dilations", [1] * n)
    pads = _pads(attributes, x.shape[2:], w.shape[2:], strides, dilations)
    return _correlate(x, w, b, pads, strides, dilations, attributes.get("group", 1))


def _pads(attributes, sizes, kernel, strides, dilations):
    """Padding (begin, end) per axis; the larger half at the end for SAME_UPPER."""
    auto_pad = attributes.get("auto_pad", b"NOTSET")
    n = len(kernel)
    if auto_pad in (b"NOTSET", b"VALID"):
        pads = attributes.get("pads", [0] * 2 * n) if auto_pad == b"NOTSET" else [0] * 2 * n
        return [(pads[i], pads[i + n]) for i in range(n)]
    result = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if auto_pad == b"SAME_UPPER" else (large, small))
    return result


def _correlate(x, w, b, pads, strides, dilations, group):
    """Cross-correlation of x (N, C, ...) with w (M, C / group, ...) plus b (M,)."""
    n = w.ndim - 2
    extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    windows = sliding_window_view(x, extent, axis=tuple(range(2, 2 + n)))
    steps = [slice(None, None, step) for step in [*strides, *dilations]]
    windows = windows[(slice(None), slice(None), *steps)]  # (N, C, *out, *kernel)
    kernel_axes = list(range(2, 2 + n))
    out = [
        np.tensordot(part, weights, ([1, *range(2 + n, 2 + 2 * n)], [1, *kernel_axes]))
        for part, weights in zip(np.split(windows, group, 1), np.split(w, group), strict=True)
    ]
    y = np.moveaxis(np.concatenate(out, -1), -1, 1)
    return y if b is None else y + _per_channel(b, y.ndim)


def conv_transpose(node, x, w, b=None):
    """The gradient of a Conv: spread x by its strides, then correlate with the mirrored kernel."""
    attributes = _attributes(node)
    assert not attributes.keys() & {"auto_pad", "output_shape"}, "not in this reference"
    n, group = w.ndim - 2, attributes.get("group", 1)
    strides = attributes.get("strides", [1] * n)
    dilations = attributes.get("dilations", [1] * n)
    pads = attributes.get("pads", [0] * 2 * n)
    extra = attributes.get("output_padding", [0] * n)
    spread = np.zeros(
        x.shape[:2] + tuple((s - 1) * t + 1 for s, t in zip(x.shape[2:], strides, strict=True))
    )
    spread[(slice(None), slice(None), *(slice(None, None, t) for t in strides))] = x
    # (C, M / group, ...) -> (M, C / group, ...)
    w = np.concatenate([part.swapaxes(0, 1) for part in np.split(w, group)])
    w = np.flip(w, tuple(range(2, 2 + n)))
    reach = [(k - 1) * d for k, d in zip(w.shape[2:], dilations, strict=True)]
    pads = [(reach[i] - pads[i], reach[i] - pads[i + n] + extra[i]) for i in range(n)]
    return _correlate(spread, w, b, pads, [1] * n, dilations, group)


def gemm(node, a, b, c=None):
    attributes = _attributes(node)
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    y = attributes.get("alpha", 1.0) * (a @ b)
    return y if c is None else y + attributes.get("beta", 1.0) * c


def elementwise(function):
    """A binary operator; before opset 7 the `axis` attribute says where the second one starts."""

    def apply(node, a, b):
        axis = _attributes(node).get("axis")
        if axis is not None:
            b = b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))
        return function(a, b)

    return apply


OPERATORS = {
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": lambda node, a, b: a @ b,
    "Add": elementwise(np.add),
    "Sub": elementwise(np.subtract),
    "Mul": elementwise(np.multiply),
    "Div": elementwise(np.divide),
    "Relu": lambda node, x: np.maximum(x, 0),
    "Identity": lambda node, x: x,
    "Dropout": lambda node, x, *rest: x,
}
