"""Constructs by where constants come from, by scopes, and by what must be respected."""

from __future__ import annotations

import numpy as np

from tools.peers.build import (
    AFFINE,
    CONV,
    HALF,
    IMAGE,
    MATRIX,
    W1,
    W3,
    Construct,
    also_output,
    construct,
    overridable,
    sparse,
)

_PARAMETERS = {
    "y_s": "0.5, -1.5, 1.0, 2.0",
    "y_b": "0.1, -0.2, 0.3, 0.4",
    "y_m": "1.0, 2.0, -1.0, 0.5",
    "y_v": "0.5, 1.0, 1.5, 0.7",
}


def _constant_nodes(form: str) -> str:
    nodes = "".join(
        f"{name} = Constant <{form.format(values)}> ()\n" for name, values in _PARAMETERS.items()
    )
    return nodes + CONV + f"y = BatchNormalization (c, {', '.join(_PARAMETERS)})"


def constants() -> list[Construct]:
    """Where weights and parameters come from."""
    w = {"W": W3}
    four = np.array([4])
    filled = "".join(
        f"y_{p} = ConstantOfShape <value = float[1] {{{v}}}> (N)\n"
        for p, v in {"s": 0.5, "b": 0.2, "m": 0.3, "v": 0.7}.items()
    )
    return [
        construct("parameters in Constant nodes (value)",
                  _constant_nodes("value = float[4] {{{}}}"), tensors=w),
        construct("parameters in Constant nodes (value_floats)",
                  _constant_nodes("value_floats = [{}]"), tensors=w),
        construct("parameters by ConstantOfShape",
                  filled + CONV + "y = BatchNormalization (c, y_s, y_b, y_m, y_v)",
                  tensors=w | {"N": four}),
        construct(
            "missing bias as PyTorch's dynamo exporter writes it",
            "zero = Constant <value = float {0.0}> ()\nlike = CastLike (zero, x)\n"
            "shape = Shape <start = 0, end = 1> (W)\nbias = Expand (like, shape)\n"
            "c = Conv (x, W, bias)\ny = BN4(c)", tensors=w,
        ),
        construct("weight behind a Transpose", "T = Transpose <perm = [1,0]> (W)\n"
                  "m = MatMul (x, T)\ny = BN6(m)", tensors={"W": (6, 4)}, inputs=MATRIX),
        construct("weight in float16 behind a Cast", "V = Cast <to = 1> (W)\nc = Conv (x, V)\n"
                  "y = BN4(c)",
                  tensors={"W": np.linspace(-1, 1, 144, dtype=np.float16).reshape(W3)}),
        construct("two Convs share a weight",
                  "c = Conv (x, W)\nd = Conv <strides = [2,2]> (x, W)\ny = BN4(c)\nz = BN4(d)",
                  foldable=2, tensors=w, outputs=("y", "z")),
        construct("name <weight>_bias is taken",
                  "c = Conv (x, W)\nd = BN4(c)\ny = Add (d, W_bias)",
                  tensors=w | {"W_bias": np.full((4, 6, 6), 0.5, np.float32)}),
        also_output(
            construct("weight is a graph output, too", CONV + "y = BN4(c)", tensors=w), "W"
        ),
        overridable(construct("weight is an overridable input", CONV + "y = BN4(c)",
                               foldable=0, tensors=w), "W"),
        construct("IR version 3", CONV + "y = BN4(c)", tensors=w, opset=8, ir_version=3),
        sparse(construct("weight is a sparse initializer", CONV + "y = BN4(c)", tensors=w), "W"),
        construct("bias computed at run time",
                  "g = ReduceMean <axes = [0,2,3], keepdims = 0> (x)\n"
                  "c = Conv (x, W, g)\ny = BN4(c)", foldable=0, tensors=w),
        construct("gamma computed at run time",
                  "g = ReduceMean <axes = [0,2,3], keepdims = 0> (x)\n" + CONV
                  + "y = BatchNormalization (c, g, b, b, v)", foldable=0,
                  tensors=w | {"b": (4,), "v": np.ones(4, np.float32)}),
        construct(
            "int8 weight by DequantizeLinear, Conv, BN",
            "V = DequantizeLinear <axis = 0> (W, S, Z)\nc = Conv (x, V)\ny = BN4(c)",
            tensors={
                "W": np.arange(-72, 72, dtype=np.int8).reshape(W3),
                "S": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
                "Z": np.zeros(4, np.int8),
            },
            positive=True,
        ),
    ]  # fmt: skip


def scopes() -> list[Construct]:
    """Branches, functions, and values that cross their borders."""
    w = {"W": W3}
    branch = "{name} = {g} () => (float[2,4,8,8] {y}) {{\nc{y} = Conv <pads = [1,1,1,1]> (x, {w})\n"
    then = branch.format(name="then_branch", g="t", y="p", w="W") + "p = BN4(cp) }, "
    other = branch.format(name="else_branch", g="e", y="q", w="V") + "q = BN4(cq) }"
    reader = (
        "then_branch = t () => (float[2,4,8,8] p) { p = Sigmoid (c) }, "
        "else_branch = e () => (float[2,4,8,8] q) { q = Neg (c) }"
    )
    return [
        construct("in both branches of an If", f"y = If (k) <{then}{other}>", foldable=2,
                  tensors=w | {"V": W3}, inputs=f"{IMAGE}, bool k"),
        construct("Conv captured by an If", CONV + f"y = BN4(c)\nz = If (k) <{reader}>",
                  foldable=0, tensors=w, inputs=f"{IMAGE}, bool k", outputs=("y", "z")),
        construct(
            "in a local function", "y = local.f (x)",
            functions='<domain: "local", opset_import: ["": 17]> f (a) => (b) {\n'
            "w = Constant <value = float[4,4,1,1] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> ()\n"
            "s = Constant <value = float[4] {0.5, -1.5, 1.0, 2.0}> ()\n"
            "v = Constant <value = float[4] {0.5, 1.5, 1.0, 2.0}> ()\n"
            "c = Conv (a, w)\nb = BatchNormalization (c, s, v, s, v)\n}",
        ),
        construct(
            "a Conv of another domain", "c = local.Conv (x, W)\ny = BN4(c)", foldable=0,
            tensors=w,
            functions='<domain: "local", opset_import: ["": 17]> Conv (a, w) => (b) {\n'
            "c = Conv (a, w)\nb = Sigmoid (c)\n}",
        ),
        construct(
            "a BatchNormalization of another domain",
            CONV + "y = local.BatchNormalization (c, s, b, m, v)", foldable=0,
            tensors=w | {"s": (4,), "b": (4,), "m": (4,), "v": np.ones(4, np.float32)},
            functions='<domain: "local", opset_import: ["": 17]> '
            "BatchNormalization (a, s, b, m, v) => (y) {\nt = Sigmoid (a)\n"
            "n = BatchNormalization (t, s, b, m, v)\ny = Relu (n)\n}",
        ),
    ]  # fmt: skip


def traps() -> list[Construct]:
    """Return constructs that must be left alone, or whose numbers do not fit."""
    w = {"W": W3}
    c4 = np.ones(4, np.float32)
    half = {"W": (4, 4, 3, 3)}
    big = {
        "W": np.full(W1, 300, np.float16), "s": np.full(4, 8, np.float16),
        "z": np.zeros(4, np.float16), "v": np.full(4, 1e-3, np.float16),
    }  # fmt: skip
    small = "d = Clip (x, L, H)\nc = Conv (d, W)\n"
    normalised = "y = BatchNormalization (c, s, z, z, v)"
    return [
        construct(
            "BN in training mode",
            CONV + "y, u, t = BatchNormalization <training_mode = 1> (c, s, b, b, s)", foldable=0,
            tensors=w | {"s": c4, "b": (4,)},
        ),
        construct("Conv is a graph output, too", CONV + "y = BN4(c)", foldable=0, tensors=w,
                  outputs=("y", "c")),
        construct("Conv read by a Sigmoid, too", CONV + "y = BN4(c)\nz = Sigmoid (c)", foldable=0,
                  tensors=w, outputs=("y", "z")),
        construct("Conv read by another Conv, too",
                  CONV + "b = BN4(c)\ny = Sigmoid (b)\nz = Conv (c, V)", tensors=w | {"V": W3},
                  outputs=("y", "z")),
        construct("gamma with a zero", CONV + "y = BatchNormalization (c, s, b, m, v)",
                  tensors=w | {"s": np.array([1, 0, 2, -1], np.float32), "b": (4,), "m": (4,),
                               "v": c4}),
        construct("negative variance in one channel", CONV + normalised, foldable=0,
                  tensors=w | {"s": c4, "z": 0 * c4, "v": np.array([1, 1, -1, 1], np.float32)}),
        construct("float16", CONV + "y = BN4(c)", tensors=half, inputs=HALF, dtype=np.float16),
        construct("float16 with float32 parameters",
                  CONV + "y = BatchNormalization (c, s, b, m, v)",
                  tensors={"W": (np.arange(144).reshape(W3) / 144).astype(np.float16),
                           "s": c4.astype(np.float16), "b": 0 * c4.astype(np.float16),
                           "m": c4, "v": 2 * c4}, inputs=HALF),
        construct("float16, folded weight above 65,504", small + normalised, foldable=0,
                  tensors=big | {"L": np.float16(-1e-4), "H": np.float16(1e-4)}, inputs=HALF),
        construct("float32, folded weight above 3.4e38", small + normalised, foldable=0,
                  tensors={"W": np.full(W1, 1e30, np.float32), "s": 1e10 * c4, "z": 0 * c4,
                           "v": c4, "L": np.float32(-1e-30), "H": np.float32(1e-30)}),
        construct(
            "Mul along the width, which has as many elements as channels",
            "c = Conv <pads = [1,1,1,1]> (x, W)\ny = Mul (c, A)", foldable=0,
            tensors={"W": W3, "A": (4,)}, inputs="float[2,4,4,4] x", counted=AFFINE,
        ),
        construct(
            "BN between QuantizeLinear and DequantizeLinear",
            CONV + "q = QuantizeLinear (c, S, Z)\nd = DequantizeLinear (q, S, Z)\nb = BN4(d)\n"
            "r = QuantizeLinear (b, S, Z)\ny = DequantizeLinear (r, S, Z)", foldable=0,
            tensors=w | {"S": np.float32(0.05), "Z": np.int8(0)},
        ),
    ]  # fmt: skip
