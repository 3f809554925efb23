"""Constructs by what stands before and behind the BatchNormalization."""

from __future__ import annotations

import numpy as np

from tools.peers.build import AFFINE, CONV, MATRIX, SEQUENCE, W1, W3, Construct, L, construct


def behind_a_layer() -> list[Construct]:
    """Return constructs in which a BN reads, directly or not, what layers compute."""
    w, w2 = {"W": W3}, {"W": W3, "V": W3}
    both = CONV + "d = Conv <pads = [1,1,1,1]> (x, V)\n"
    return [
        construct("Conv, BN", CONV + "y = BN4(c)", tensors=w),
        construct(
            "grouped Conv with bias, BN",
            "c = Conv <group = 2> (x, W, B)\ny = BN6(c)",
            tensors={"W": (6, 2, 3, 3), "B": (6,)},
        ),
        construct(
            "depthwise Conv, BN", "c = Conv <group = 4> (x, W)\ny = BN4(c)",
            tensors={"W": (4, 1, 3, 3)},
        ),
        construct(
            "Conv over one axis, BN", "c = Conv (x, W)\ny = BN4(c)",
            tensors={"W": (4, 4, 3)}, inputs="float[2,4,8] x",
        ),
        construct("ConvTranspose, BN", "c = ConvTranspose (x, W)\ny = BN4(c)", tensors=w),
        construct(
            "grouped ConvTranspose, BN",
            "c = ConvTranspose <group = 2> (x, W)\ny = BN6(c)",
            tensors={"W": (4, 3, 3, 3)},
        ),
        construct(
            "Gemm with alpha and beta, BN",
            "c = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, W, B)\ny = BN6(c)",
            tensors={"W": (6, 4), "B": (6,)}, inputs=MATRIX,
        ),
        construct("Gemm without C, BN", "c = Gemm (x, W)\ny = BN6(c)", tensors={"W": L},
                  inputs=MATRIX),
        construct("MatMul, BN", "c = MatMul (x, W)\ny = BN6(c)", tensors={"W": L}, inputs=MATRIX),
        construct(
            "MatMul, Add, BN", "c = MatMul (x, W)\nd = Add (c, B)\ny = BN6(d)",
            tensors={"W": L, "B": (6,)}, inputs=MATRIX,
        ),
        construct(
            "Linear over three axes, Transpose, BN",
            "c = MatMul (x, W)\nd = Add (c, B)\ne = Transpose <perm = [0,2,1]> (d)\ny = BN6(e)",
            tensors={"W": L, "B": (6,)}, inputs=SEQUENCE,
        ),
        construct(
            "Linear over three axes, Reshape, BN",
            "c = MatMul (x, W)\nd = Add (c, B)\ne = Reshape (d, S)\ny = BN6(e)",
            tensors={"W": L, "B": (6,), "S": np.array([-1, 6])}, inputs=SEQUENCE,
        ),
        construct(
            "MatMul over three axes, BN on the middle one", "c = MatMul (x, W)\ny = BN6(c)",
            foldable=0, tensors={"W": (4, 6)}, inputs="float[2,6,4] x",
        ),
        construct("Conv, Identity, BN", CONV + "d = Identity (c)\ny = BN4(d)", tensors=w),
        construct("Conv, BN, BN", CONV + "d = BN4(c)\ny = BN4(d)", foldable=2, tensors=w),
        construct("Conv, Add of a constant, BN", CONV + "d = Add (c, A)\ny = BN4(d)",
                  tensors=w | {"A": (4, 1, 1)}),
        construct(
            "Conv, BN as Mul and Add", CONV + "d = Mul (c, A)\ny = Add (d, B)", foldable=2,
            tensors=w | {"A": (4, 1, 1), "B": (1, 4, 1, 1)}, counted=AFFINE,
        ),
        construct("two Convs, Concat, BN", both + "e = Concat <axis = 1> (c, d)\ny = BN8(e)",
                  tensors=w2),
        construct("two Convs, Add, BN", both + "e = Add (c, d)\ny = BN4(e)", tensors=w2),
        construct("Conv, Split, two BNs",
                  CONV + "d, e = Split <axis = 1> (c)\ny = BN2(d)\nz = BN2(e)",
                  foldable=2, tensors=w, outputs=("y", "z")),
        construct("Conv, MaxPool, BN", CONV + "d = MaxPool <kernel_shape = [2,2]> (c)\ny = BN4(d)",
                  tensors=w, positive=True),
        construct("Conv, AveragePool, BN",
                  CONV + "d = AveragePool <kernel_shape = [2,2]> (c)\ny = BN4(d)", tensors=w),
        construct("Conv, GlobalAveragePool, BN", CONV + "d = GlobalAveragePool (c)\ny = BN4(d)",
                  tensors=w),
        construct("Conv, Resize, BN",
                  CONV + 'd = Resize <mode = "linear"> (c, , S)\ny = BN4(d)',
                  tensors=w | {"S": np.array([1, 1, 2, 2], np.float32)}),
        construct("Conv, DepthToSpace, BN",
                  "c = Conv (x, W)\nd = DepthToSpace <blocksize = 2> (c)\ny = BN2(d)",
                  tensors={"W": (8, 4, 1, 1)}),
        construct(
            "Conv, channel shuffle, BN",
            CONV + "d = Reshape (c, S)\ne = Transpose <perm = [0,2,1,3,4]> (d)\n"
            "f = Reshape (e, T)\ny = BN4(f)",
            tensors=w | {"S": np.array([0, 2, 2, 8, 8]), "T": np.array([0, 4, 8, 8])},
        ),
        construct("Conv, Relu, BN: nothing behind", CONV + "d = Relu (c)\ny = BN4(d)", foldable=0,
                  tensors=w),
        construct("Conv, Clip, BN, Clip", CONV + "d = Clip (c, L, H)\ne = BN4(d)\n"
                  "y = Clip (e, L, H)", foldable=0,
                  tensors=w | {"L": np.float32(0), "H": np.float32(6)}),
    ]  # fmt: skip


def before_a_layer() -> list[Construct]:
    """Return constructs in which layers read, directly or not, what a BN computes."""
    w = {"W": W3}
    relu = "r = Relu (x)\n"
    return [
        construct("BN, Conv without padding", "b = BN4(x)\ny = Conv (b, W)", tensors=w),
        construct("BN, Conv with padding",
                  "b = BN4(x)\ny = Conv <pads = [1,1,1,1]> (b, W)", foldable=0, tensors=w),
        construct("BN, Conv with auto_pad",
                  'b = BN4(x)\ny = Conv <auto_pad = "SAME_UPPER"> (b, W)', foldable=0, tensors=w),
        construct("BN, Pad, Conv", "b = BN4(x)\np = Pad (b, P)\ny = Conv (p, W)", foldable=0,
                  tensors=w | {"P": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        construct(
            "BN without a shift, Conv with padding",
            "b = BatchNormalization (x, s, z, z, v)\ny = Conv <pads = [1,1,1,1]> (b, W)",
            tensors=w | {"s": (4,), "z": np.zeros(4, np.float32), "v": np.ones(4, np.float32)},
        ),
        construct("Relu, BN, Conv without padding", relu + "b = BN4(r)\ny = Conv (b, W)",
                  tensors=w),
        construct("Relu, BN, Conv with padding",
                  relu + "b = BN4(r)\ny = Conv <pads = [1,1,1,1]> (b, W)", foldable=0, tensors=w),
        construct("Conv, MaxPool, BN, Conv with padding",
                  CONV + "d = MaxPool <kernel_shape = [2,2]> (c)\nb = BN4(d)\n"
                  "y = Conv <pads = [1,1,1,1]> (b, V)", tensors=w | {"V": W3}, positive=True),
        construct("BN, two Convs", "b = BN4(x)\ny = Conv (b, W)\nz = Conv (b, V)",
                  tensors={"W": W3, "V": W1}, outputs=("y", "z")),
        construct("BN, depthwise Conv", "b = BN4(x)\ny = Conv <group = 4> (b, W)",
                  tensors={"W": (4, 1, 3, 3)}),
        construct("BN, ConvTranspose", "b = BN4(x)\ny = ConvTranspose (b, W)", foldable=0,
                  tensors=w),
        construct("BN, Gemm", "b = BN4(x)\ny = Gemm (b, W, B)", tensors={"W": L, "B": (6,)},
                  inputs=MATRIX),
        construct("BN, MatMul, Add", "b = BN4(x)\nm = MatMul (b, W)\ny = Add (m, B)",
                  tensors={"W": L, "B": (6,)}, inputs=MATRIX),
        construct("BN, Flatten, Gemm", "b = BN4(x)\nf = Flatten (b)\ny = Gemm (f, W, B)",
                  tensors={"W": (256, 6), "B": (6,)}),
        construct("BN, GlobalAveragePool, Flatten, Gemm",
                  "b = BN4(x)\np = GlobalAveragePool (b)\nf = Flatten (p)\ny = Gemm (f, W, B)",
                  tensors={"W": L, "B": (6,)}),
        construct("BN, Transpose, MatMul",
                  "b = BN4(x)\nt = Transpose <perm = [0,2,3,1]> (b)\nm = MatMul (t, W)\n"
                  "y = Add (m, B)", tensors={"W": L, "B": (6,)}),
        construct("Relu, BN, Concat with a Relu, Conv",
                  relu + "s = Sigmoid (x)\nb = BN4(r)\nc = Concat <axis = 1> (b, s)\n"
                  "y = Conv (c, W)", tensors={"W": (4, 8, 3, 3)}),
        construct("gated by Sigmoid, BN, Conv",
                  "p = GlobalAveragePool (x)\ns = Sigmoid (p)\ng = Mul (x, s)\nb = BN4(g)\n"
                  "y = Conv (b, W)", tensors=w),
        construct(
            "residual stream, BN, Relu, Conv",
            CONV + "d = Relu (c)\ne = Conv <pads = [1,1,1,1]> (d, V)\nf = Add (c, e)\n"
            "b = BN4(f)\nr = Relu (b)\ny = Conv <pads = [1,1,1,1]> (r, U)",
            tensors=w | {"V": W3, "U": W3}, positive=True,
        ),
        construct(
            "input by Mul and Add, Conv", "d = Mul (x, A)\ne = Add (d, B)\ny = Conv (e, W)",
            foldable=2, tensors=w | {"A": (4, 1, 1), "B": (4, 1, 1)}, counted=AFFINE,
        ),
    ]  # fmt: skip
