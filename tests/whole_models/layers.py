"""Linear layers over the whole of their specification."""

from collections.abc import Sequence

import numpy as np

from .builder import Builder
from .constants import constant


def _weight(b: Builder, x: str, shape: Sequence[int], fan_in: int) -> str:
    values = b.draw.normal(*shape) / np.sqrt(max(fan_in, 1))
    if b.draw.chance(0.05):
        values = values * (b.draw.uniform(0, 1, *shape[:1], *[1] * (len(shape) - 1)) > 0.3)
    if b.draw.chance(0.02) and b.scope is b.main:
        return b.input(b.fresh("w"), values.astype(b.type(x)))
    return constant(b, values, b.type(x), "weight")


def _bias(b: Builder, x: str, shape: Sequence[int]) -> str:
    return constant(b, b.draw.normal(*shape), b.type(x), "bias")


def _windows(b: Builder, x: str, transposed: bool = False) -> tuple[list[int], dict]:
    """Return a kernel and the attributes that go with it."""
    d, space = b.draw, b.shape(x)[2:]
    rank = len(space)
    kernel = [1] * rank if d.chance(0.45) else [d.between(1, 3) for _ in range(rank)]
    extra: dict = {}
    if d.chance(0.3):
        extra["strides"] = [d.between(1, 2) for _ in range(rank)]
    if d.chance(0.2):
        extra["dilations"] = [d.between(1, 2) for _ in range(rank)]
    padding = d.weighted({"none": 5, "pads": 4, "auto": 1})
    if padding == "pads":
        extra["pads"] = [d.between(0, k - 1 if d.chance(0.8) else 2) for k in kernel * 2]
    if padding == "auto":
        extra["auto_pad"] = d.pick(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
        if extra["auto_pad"].startswith("SAME") and not transposed:
            extra.pop("dilations", None)
    if d.chance(0.6):
        extra["kernel_shape"] = kernel
    return kernel, extra


def conv(b: Builder, x: str) -> str:
    b.need(b.rank(x) >= 3)
    d, into = b.draw, b.channels(x)
    kernel, extra = _windows(b, x)
    group = d.pick([g for g in range(1, into + 1) if into % g == 0]) if d.chance(0.35) else 1
    out = group * (1 if group == into and d.chance(0.7) else d.between(1, max(1, 8 // group)))
    if group > 1 or d.chance(0.3):
        extra["group"] = group
    inputs = [x, _weight(b, x, (out, into // group, *kernel), into // group * np.prod(kernel))]
    if d.chance(0.6):
        inputs.append(_bias(b, x, (out,)))
    elif d.chance(0.1):
        inputs.append("")
    return b.one("Conv", inputs, **extra)


def conv_transpose(b: Builder, x: str) -> str:
    b.need(b.rank(x) >= 3)
    b.need(0 not in b.shape(x))  # onnxruntime ends the process on an empty image
    d, into = b.draw, b.channels(x)
    kernel, extra = _windows(b, x, transposed=True)
    group = d.pick([g for g in range(1, into + 1) if into % g == 0]) if d.chance(0.35) else 1
    out = d.between(1, max(1, 6 // group))
    if group > 1:
        extra["group"] = group
    if d.chance(0.2):
        strides = extra.get("strides", [1] * len(kernel))
        extra["output_padding"] = [d.between(0, max(s - 1, 0)) for s in strides]
    if d.chance(0.1) and "output_padding" not in extra:
        strides = extra.get("strides", [1] * len(kernel))
        extra["output_shape"] = [
            max(1, n * s + d.between(-1, 1)) for n, s in zip(b.shape(x)[2:], strides, strict=True)
        ]
        extra.pop("pads", None)
    inputs = [x, _weight(b, x, (into, out, *kernel), into // group * np.prod(kernel))]
    if d.chance(0.6):
        inputs.append(_bias(b, x, (out * group,)))
    return b.one("ConvTranspose", inputs, **extra)


def gemm(b: Builder, x: str) -> str:
    b.need(b.rank(x) == 2)
    d, (rows, columns) = b.draw, b.shape(x)
    extra: dict = {}
    if d.chance(0.3):
        extra["alpha"] = d.pick([0.5, -2.0, 3.0, 1.0])
    if d.chance(0.3):
        extra["beta"] = d.pick([0.5, -2.0, 0.0, 1.0])
    across = d.chance(0.15)  # the transpose of x is what is multiplied
    if d.chance(0.1):  # x is the second operand
        if across:
            extra["transB"] = 1
        inner, out = (columns, rows) if across else (rows, columns)
        m = d.between(1, 5)
        inputs, shape = [_weight(b, x, (m, inner), inner), x], (m, out)
    else:
        inner, m = (rows, columns) if across else (columns, rows)
        if across:
            extra["transA"] = 1
        out = d.between(1, 8)
        swapped = d.chance(0.5)
        if swapped:
            extra["transB"] = 1
        weight = _weight(b, x, (out, inner) if swapped else (inner, out), inner)
        inputs, shape = [x, weight], (m, out)
    if b.opset < 11 or d.chance(0.7):
        n = shape[1]
        whole = [shape, (shape[0], 1)] if d.chance(0.1) else []
        inputs.append(_bias(b, x, d.pick([(n,), (n,), (n,), (1, n), (), (1,), (1, 1), *whole])))
    return b.one("Gemm", inputs, **extra)


def mat_mul(b: Builder, x: str) -> str:
    b.need(b.rank(x) >= 1)
    d, shape = b.draw, b.shape(x)
    kind = d.weighted({"matrix": 10, "vector": 0.7, "batch": 1.5, "left": 1.5})
    if kind == "left":
        b.need(len(shape) >= 2)
        weight = _weight(b, x, (d.between(1, 5), shape[-2]), shape[-2])
        return b.one("MatMul", [weight, x])
    inner = shape[-1]
    if kind == "vector":
        return b.one("MatMul", [x, _weight(b, x, (inner,), inner)])
    batch: Sequence[int] = ()
    if kind == "batch" and len(shape) > 2:
        batch = [n if d.chance(0.6) else 1 for n in shape[1:-2]]
        batch = [b.draw.pick([1, shape[0]]), *batch][d.between(0, len(batch)) :]
    y = b.one("MatMul", [x, _weight(b, x, (*batch, inner, d.between(1, 8)), inner)])
    if d.chance(0.3):
        bias = _bias(b, x, d.pick([b.shape(y)[-1:], (1,) * (b.rank(y) - 1) + b.shape(y)[-1:]]))
        y = b.one("Add", d.shuffled([y, bias]))
    return y


def layer(b: Builder, x: str) -> str:
    """Append the layer that fits the rank of a tensor best, most often."""
    rank = b.rank(x)
    if rank >= 3 and b.draw.chance(0.85):
        return (conv if b.draw.chance(0.8) else conv_transpose)(b, x)
    if rank == 2 and b.draw.chance(0.65):
        return gemm(b, x)
    return mat_mul(b, x)


_EQUATIONS = {  # and the rank of the data, or 0 for any
    "...i,io->...o": 0,
    "...i,oi->...o": 0,
    "...i,i->...i": 0,
    "...i,i->...": 0,
    "io,...i->...o": 0,
    "bc...,dc->bd...": 0,
    "bc...,c->bc...": 0,
    "ij,jk": 2,
    "bcl,cd->bdl": 3,
    "bcl,cl->bc": 3,
    "bchw,dc->bhwd": 4,
    "bchw,chd->bwd": 4,
}


def einsum(b: Builder, x: str) -> str:
    """Append an Einsum by a constant, or of the tensor alone."""
    d, rank = b.draw, b.rank(x)
    b.need(b.opset >= 12 and rank >= 2)
    if d.chance(0.15):
        return b.one("Einsum", [x], equation=d.pick(["i...->...i", "i...j->j...i", "...i->..."]))
    equation = d.pick([e for e, r in _EQUATIONS.items() if r in (0, rank)])
    terms = equation.split("->")[0].split(",")
    slot = next(i for i, term in enumerate(terms) if "..." in term or len(term) == rank)
    ahead, _, behind = terms[slot].partition("...")
    sizes = dict(zip(ahead, b.shape(x), strict=False))
    sizes |= dict(zip(behind[::-1], b.shape(x)[::-1], strict=False))
    shape = [sizes.setdefault(letter, d.between(1, 4)) for letter in terms[1 - slot]]
    operands = [x, _weight(b, x, shape, 4)]
    return b.one("Einsum", operands[::-1] if slot else operands, equation=equation)


def deform_conv(b: Builder, x: str) -> str:
    b.need(b.opset >= 19 and b.rank(x) == 4)
    d, into = b.draw, b.channels(x)
    kernel = [d.between(1, 2), d.between(1, 2)]
    out, group = d.between(1, 4), d.pick([g for g in range(1, into + 1) if into % g == 0])
    space = [n - k + 1 for n, k in zip(b.shape(x)[2:], kernel, strict=True)]
    b.need(min(space) > 0)
    taps = int(np.prod(kernel))
    offset = d.uniform(-0.4, 0.4, b.shape(x)[0], 2 * taps, *space) * d.pick([0, 1])
    weight = _weight(b, x, (out * group, into // group, *kernel), taps)
    inputs = [x, weight, constant(b, offset, b.type(x), "offset")]
    inputs.append(_bias(b, x, (out * group,)) if d.chance(0.6) else "")
    if d.chance(0.4):
        mask = d.uniform(0.5, 1, b.shape(x)[0], taps, *space)
        inputs.append(constant(b, mask if d.chance(0.6) else np.ones_like(mask), b.type(x)))
    while not inputs[-1]:
        inputs.pop()
    return b.one("DeformConv", inputs, group=group)


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RECURRENT = frozenset(_GATES)
_FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}


def _as_sequence(b: Builder, x: str) -> str:
    """Return a tensor of three axes, steps, batch and features: channels are the last of them."""
    d, rank = b.draw, b.rank(x)
    if rank == 2:
        axes = [d.pick([0, 1])]
        if b.opset < 13:
            return b.one("Unsqueeze", [x], axes=axes)
        return b.one("Unsqueeze", [x, b.integers(*axes)])
    if rank > 3:
        x = b.one("Reshape", [x, b.integers(0, 0, -1)])
    if d.chance(0.7):
        x = b.one("Transpose", [x], perm=[2, 0, 1])
    return x


def recurrent(b: Builder, x: str) -> str:
    """Append an LSTM, a GRU or an RNN."""
    d = b.draw
    b.need(b.rank(x) >= 2 and b.array(x).size > 0)
    op = d.pick(list(_GATES))
    b.need(op != "LSTM" or b.type(x) != np.float64)  # which onnxruntime loads and cannot run
    x = _as_sequence(b, x)
    (steps, batch, channels), hidden = b.shape(x), d.between(1, 3)
    extra: dict = {"hidden_size": hidden}
    direction = d.pick([None, "forward", "reverse", "bidirectional"])
    both = 2 if direction == "bidirectional" else 1
    rows = _GATES[op] * hidden
    inputs = [x, _weight(b, x, (both, rows, channels), channels)]
    inputs.append(constant(b, d.normal(both, rows, hidden) / 2, b.type(x), "recurrence"))
    inputs.append(_bias(b, x, (both, 2 * rows)) if d.chance(0.6) else "")
    lengths = d.arrays.integers(1, steps + 1, batch).astype(np.int32)
    inputs.append(b.initializer(lengths) if d.chance(0.2) else "")
    for _ in range(2 if op == "LSTM" else 1):
        state = d.normal(both, batch, hidden)
        inputs.append(constant(b, state, b.type(x), "state") if d.chance(0.25) else "")
    if op == "LSTM" and d.chance(0.25):
        inputs.append(constant(b, d.normal(both, 3 * hidden), b.type(x), "peephole"))
    while not inputs[-1]:
        inputs.pop()
    if d.chance(0.2):
        functions = ["Sigmoid", "Tanh", "Softsign"] + (["Relu"] if op == "RNN" else [])
        extra["activations"] = [d.pick(functions) for _ in range(_FUNCTIONS[op] * both)]
    if d.chance(0.15):
        extra["clip"] = d.pick([0.5, 3.0])
    if op == "GRU" and d.chance(0.5):
        extra["linear_before_reset"] = d.pick([0, 1])
    if op == "LSTM" and d.chance(0.2):
        extra["input_forget"] = d.pick([0, 1])
    outputs = b.add(
        op, inputs, d.between(1, 3 if op == "LSTM" else 2), direction=direction, **extra
    )
    b.scope.pool += d.shuffled(outputs)
    return b.scope.pool[-1]


SPECIAL_LAYERS = {einsum: 2, deform_conv: 2, recurrent: 5}
