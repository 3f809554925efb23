"""The rule table: every operator with a BN it must let pass, and with one it must refuse.

Each rule is tried in both directions, so that only one side of the BN can take it:
`up` is layer -> operator -> BN -> graph output, `down` is graph input -> BN -> operator -> layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Case, Cases, Net, assert_report_names_nodes
from onnx import TensorProto, helper
from support import (
    KERNELS_AS_READ,
    bn,
    feeds_for,
    fold_checked,
    join,
    layer,
    model_of,
    node,
    ops,
    reasons,
    run,
    tensor,
)

import onnx_bnfold
from onnx_bnfold import Reason

FOLDS = "folds"
Outcome = Reason | str | None  # FOLDS, the reason of a refusal, or None: not a case of this rule.
VECTOR = ("N", 4)
LINE = ("N", 4, 6)
POSITIVE = {"signs": "positive"}
SCALE = {"shift": False}
POSITIVE_SCALE = {"signs": "positive", "shift": False}


@dataclass(frozen=True)
class Rule:
    """An operator between a layer and a BN; `norm` are options of the BN."""

    id: str
    build: Callable[[Net, str], str]
    shape: tuple[Any, ...] = IMAGE
    up: Outcome = FOLDS
    down: Outcome = FOLDS
    opset: int = 17
    norm: dict[str, Any] = field(default_factory=dict)


def simple(op: str, *inputs: Callable[[Net], str], **attributes) -> Callable[[Net, str], str]:
    """A node that reads the tensor, then the constants that `inputs` make."""
    return lambda n, t: n.op(op, t, *(make(n) for make in inputs), **attributes)


def ints(*values: int) -> Callable[[Net], str]:
    return lambda n: n.ints(*values)


def const(value, dtype=np.float32) -> Callable[[Net], str]:
    return lambda n: n.const(value, dtype)


def absent(_: Net) -> str:
    return ""


def refused(reason: Reason) -> dict[str, Reason]:
    return {"up": reason, "down": reason}


FLT_MAX = float(np.finfo(np.float32).max)


def clip(low: float | None, high: float | None, opset: int) -> Callable[[Net, str], str]:
    """Clip, its bounds being attributes before opset 11."""
    if opset < 11:
        given = {"min": low, "max": high}
        return simple("Clip", **{name: float(v) for name, v in given.items() if v is not None})
    bounds = [absent if v is None else const(np.float32(v)) for v in (low, high)]
    return simple("Clip", *bounds)


MOVING = [
    Rule("identity", simple("Identity")),
    Rule("dropout-7", simple("Dropout", ratio=0.5), opset=7),
    Rule("dropout-10", simple("Dropout", ratio=0.3), opset=10),
    Rule("dropout-12", simple("Dropout", const(np.float32(0.5))), opset=12),
    Rule("dropout-13-no-ratio", simple("Dropout"), opset=13),
    Rule(
        "dropout-13-training-false",
        simple("Dropout", const(np.float32(0.5)), const(np.array(False))),
        opset=13,
    ),
    Rule("squeeze-11", simple("Squeeze", axes=[2, 3]), ("N", 4, 1, 1), opset=11),
    Rule("squeeze-9-one-axis", simple("Squeeze", axes=[2]), ("N", 4, 1, 3), opset=9),
    Rule("squeeze-11-negative", simple("Squeeze", axes=[-1]), ("N", 4, 3, 1), opset=11),
    Rule("squeeze-13", simple("Squeeze", ints(2, 3)), ("N", 4, 1, 1), opset=13),
    Rule("squeeze-13-negative", simple("Squeeze", ints(-1)), ("N", 4, 3, 1), opset=13),
    Rule("squeeze-all-static", simple("Squeeze"), (2, 4, 1, 1)),
    Rule("unsqueeze-9", simple("Unsqueeze", axes=[3]), LINE, opset=9),
    Rule("unsqueeze-11-negative", simple("Unsqueeze", axes=[-1, 2]), LINE, opset=11),
    Rule("unsqueeze-13", simple("Unsqueeze", ints(2)), LINE, opset=13),
    Rule("unsqueeze-13-vector", simple("Unsqueeze", ints(2, 3)), VECTOR, opset=13),
    Rule("unsqueeze-13-negative", simple("Unsqueeze", ints(-1)), LINE, opset=13),
    Rule("unsqueeze-before-batch", simple("Unsqueeze", ints(0)), (2, 4, 3), **refused(Reason.AXES)),
    Rule("transpose-spatial", simple("Transpose", perm=[0, 1, 3, 2])),
    Rule("transpose-moves-channel", simple("Transpose", perm=[0, 2, 1, 3]), **refused(Reason.AXES)),
    Rule(
        "transpose-moves-two-channels",
        simple("Transpose", perm=[0, 2, 1]),
        ("N", 2, 2),
        **refused(Reason.AXES),
    ),
    Rule("transpose-default", simple("Transpose"), (3, 4), **refused(Reason.AXES)),
    Rule(
        "transpose-there-and-back",
        lambda n, t: n.op("Transpose", n.op("Transpose", t, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]),
    ),
    Rule("flatten-spatial-1x1", simple("Flatten"), ("N", 4, 1, 1)),
    Rule("flatten-9", simple("Flatten", axis=1), ("N", 4, 1, 1), opset=9),
    Rule("flatten-negative", simple("Flatten", axis=-3), ("N", 4, 1, 1), opset=13),
    Rule("flatten-spatial", simple("Flatten"), up=Reason.AXES),
    Rule("flatten-vector", simple("Flatten"), VECTOR),
    Rule("flatten-axis-2", simple("Flatten", axis=2), (2, 4, 1, 3), **refused(Reason.AXES)),
    Rule("flatten-axis-0", simple("Flatten", axis=0), (2, 4, 1, 3), up=Reason.AXES),
    Rule("reshape-merge-spatial", simple("Reshape", ints(0, 0, -1))),
    Rule("reshape-split-spatial", simple("Reshape", ints(0, 4, 2, 3)), LINE),
    Rule("reshape-flatten", simple("Reshape", ints(0, -1)), up=Reason.AXES),
    Rule("reshape-flatten-1x1", simple("Reshape", ints(0, -1)), ("N", 4, 1, 1)),
    Rule("reshape-dynamic-batch", simple("Reshape", ints(-1, 4, 16))),
    Rule("reshape-static", simple("Reshape", ints(2, 4, 16)), (2, 4, 4, 4)),
    Rule("reshape-noop", simple("Reshape", ints(0, 0, 0, 0))),
    Rule("reshape-7", simple("Reshape", ints(0, 4, 16)), opset=7),
    Rule("reshape-allowzero", simple("Reshape", ints(2, 4, 16), allowzero=1), (2, 4, 4, 4)),
    Rule(
        "reshape-splits-channels", simple("Reshape", ints(-1, 2, 2, 2, 3)), ("N", 8, 3), down=None
    ),
    Rule(
        "reshape-splits-channels-for-a-gemm",
        lambda n, t: n.op("Flatten", n.op("Reshape", t, n.ints(-1, 2, 2, 2, 3))),
        ("N", 8, 3),
        up=Reason.AXES,
    ),
    Rule("reshape-of-one-channel", simple("Reshape", ints(-1, 3)), (2, 1, 6), up=Reason.AXES),
    Rule("reshape-of-two-rows", simple("Reshape", ints(0, 2, 2)), ("N", 4), down=Reason.AXES),
    Rule("reshape-into-batch", simple("Reshape", ints(8, 3)), (2, 4, 3), **refused(Reason.AXES)),
    Rule(
        "reshape-batch-dynamic-merge",
        simple("Reshape", ints(-1, 16)),
        up=Reason.AXES,
        down=Reason.UNKNOWN_SHAPE,
    ),
    Rule(
        "reshape-batch-dynamic-splits-spatial",
        simple("Reshape", ints(-1, 2, 3)),
        ("N", 2, 6),
        up=Reason.AXES,
        down=Reason.UNKNOWN_SHAPE,
    ),
    Rule(
        "reshape-mixes-channel",
        simple("Reshape", ints(0, 3, 4)),
        ("N", 4, 3),
        **refused(Reason.AXES),
    ),
    Rule("expand-spatial", simple("Expand", ints(1, 1, 3, 2)), ("N", 4, 1, 1)),
    Rule("expand-static", simple("Expand", ints(2, 4, 3, 2)), (2, 4, 1, 1)),
    Rule("expand-lower-rank", simple("Expand", ints(3, 2)), ("N", 4, 1, 1)),
    Rule("expand-channel", simple("Expand", ints(1, 4, 1, 1)), ("N", 1, 3, 3), up=Reason.AXES),
    Rule("tile-spatial", simple("Tile", ints(1, 1, 2, 3))),
    Rule("tile-channel", simple("Tile", ints(1, 2, 1, 1)), up=Reason.AXES),
    Rule("depth-to-space", simple("DepthToSpace", blocksize=2), ("N", 8, 2, 2), down=Reason.AXES),
    Rule(
        "depth-to-space-crd",
        simple("DepthToSpace", blocksize=2, mode="CRD"),
        ("N", 8, 2, 2),
        down=Reason.AXES,
    ),
    Rule("space-to-depth", simple("SpaceToDepth", blocksize=2), ("N", 2, 4, 4), up=Reason.AXES),
    Rule("squeeze-9-unsorted", simple("Squeeze", axes=[3, 2]), ("N", 4, 1, 1), opset=9,
         down=None, up=Reason.UNKNOWN_SHAPE),
    Rule("squeeze-9-negative", simple("Squeeze", axes=[-1]), ("N", 4, 3, 1), opset=9,
         down=None, up=Reason.UNKNOWN_SHAPE),
    Rule("squeeze-11-unsorted", simple("Squeeze", axes=[3, -2]), ("N", 4, 1, 1), opset=11),
    Rule("squeeze-13-unsorted", simple("Squeeze", ints(-1, 2)), ("N", 4, 1, 1)),
    Rule("squeeze-13-one-axis-twice", simple("Squeeze", ints(2, 2)), ("N", 4, 1, 3)),
    Rule("squeeze-13-empty", simple("Squeeze", ints()), ("N", 4, 1, 1),
         down=None, up=Reason.UNKNOWN_SHAPE),
    Rule("unsqueeze-9-unsorted", simple("Unsqueeze", axes=[4, 2]), LINE, opset=9),
    Rule("unsqueeze-9-negative", simple("Unsqueeze", axes=[-1]), LINE, opset=9,
         down=None, up=Reason.UNKNOWN_SHAPE),
    Rule("unsqueeze-11-unsorted", simple("Unsqueeze", axes=[-1, 2]), LINE, opset=11),
    Rule("unsqueeze-13-unsorted", simple("Unsqueeze", ints(3, -1)), LINE),
    # Behind it there is one channel: whatever a norm does there is the same everywhere.
    Rule("flatten-at-the-end", simple("Flatten", axis=4), (2, 4, 1, 3), down=Reason.AXES),
    Rule("expand-to-less", simple("Expand", ints(1)), LINE),
    Rule("tile-with-a-repeated-batch", simple("Tile", ints(3, 1, 1)), (2, 4, 3)),
]  # fmt: skip
if onnx.defs.onnx_opset_version() >= 28:
    MOVING += [
        Rule(f"space-to-depth-28-{mode.lower()}",
             simple("SpaceToDepth", blocksize=2, mode=mode), ("N", 2, 4, 4), opset=28, up=up)
        for mode, up in (("DCR", Reason.AXES), ("CRD", Reason.AXES))
    ]  # fmt: skip


def channels(start: int, end: int, step: int) -> Callable[[Net, str], str]:
    """Slice of the channel axis."""
    return simple("Slice", ints(start), ints(end), ints(1), ints(step))


SLICES = [
    Rule("slice-9-spatial", simple("Slice", axes=[2], starts=[1], ends=[3]), opset=9),
    Rule("slice-9-channel", simple("Slice", axes=[1], starts=[1], ends=[3]), opset=9),
    Rule("slice-10", simple("Slice", ints(1), ints(3), ints(2)), opset=10),
    Rule("slice-11-channel", simple("Slice", ints(1), ints(4), ints(1)), opset=11),
    Rule("slice-13-channel-negative", simple("Slice", ints(-3), ints(-1), ints(-3))),
    Rule("slice-13-channel-step", simple("Slice", ints(0), ints(4), ints(1), ints(2))),
    Rule(
        "slice-13-channel-reversed",
        simple("Slice", ints(-1), ints(-100), ints(1), ints(-1)),
    ),
    Rule(
        "slice-13-channel-reversed-to-the-very-beginning",
        simple("Slice", ints(-2), ints(-(2**31)), ints(1), ints(-2)),
    ),
    Rule("slice-13-no-axes", simple("Slice", ints(0, 1), ints(9, 3)), (2, 4, 3)),
    Rule("slice-13-end-too-large", simple("Slice", ints(1), ints(2**63 - 1), ints(3))),
    *(
        Rule(f"slice-13-channel-{start}-{end}-{step}", channels(start, end, step))
        for start, end, step in (
            (-10, -(2**40), -1),  # starts in front of the first channel, which it takes
            (10, -10, -1),
            (10, 1, -2),
            (-3, -5, -1),
            (3, 0, -1),
            (-10, 10, 3),
            (1, 2**62, 1),
        )
    ),
    Rule("slice-10-channel-start-clamped", channels(-9, -(2**31), -1), opset=10),
    Rule("gather-channel-negative", simple("Gather", ints(-1, 0, -3), axis=1)),
    Rule("gather-spatial", simple("Gather", ints(0, 2, 2), axis=2)),
    Rule("gather-scalar", simple("Gather", const(np.int64(1)), axis=2), LINE),
    Rule("gather-negative-axis", simple("Gather", const(np.int64(-1)), axis=-1)),
    Rule("gather-default-axis", simple("Gather", ints(1, 0, 1)), (2, 4, 3)),
    Rule("gather-channel", simple("Gather", ints(2, 0, 3), axis=1)),
    Rule(
        "gather-channel-matrix",
        simple("Gather", const(np.array([[2, 0]])), axis=1),
        (2, 4, 3),
        down=Reason.AXES,
    ),
    Rule("gather-channel-twice", simple("Gather", ints(2, 0, 2), axis=1), up=Reason.CONFLICT),
    Rule(
        "gather-computed-indices",
        lambda n, t: n.op("Gather", t, n.input("i", ["K"], TensorProto.INT64), axis=2),
    ),
    Rule(
        "gather-channel-computed-indices",
        lambda n, t: n.op("Gather", t, n.input("i", [4], TensorProto.INT64), axis=1),
        **refused(Reason.PARAMETERS_NOT_CONSTANT),
    ),
]

ACTIVATIONS = (
    [
        rule
        for op, build, signs in (
            ("relu", simple("Relu"), refused(Reason.NEEDS_POSITIVE_SCALE)),
            ("leaky-relu", simple("LeakyRelu", alpha=0.2), refused(Reason.NEEDS_POSITIVE_SCALE)),
            ("prelu", lambda n, t: n.op("PRelu", t, n.const(np.full((4, 1, 1), 0.3))), {}),
            ("prelu-scalar", lambda n, t: n.op("PRelu", t, n.const(np.full(1, 0.25))), {}),
        )
        for rule in (
            Rule(f"{op}-scale", build, norm=POSITIVE_SCALE),
            Rule(f"{op}-shift", build, norm=POSITIVE, **refused(Reason.NO_SHIFT)),
            Rule(f"{op}-sign", build, norm=SCALE, **signs),
        )
    ]
    + [
        Rule(f"{op.lower()}-opaque", simple(op), norm=POSITIVE_SCALE, **refused(Reason.OPAQUE))
        for op in (
            "Sigmoid",
            "Tanh",
            "HardSwish",
            "Softplus",
            "Exp",
            "Erf",
            "Softmax",
            "Elu",
            "Sin",
        )
    ]
    + [
        Rule(
            "clip-7",
            simple("Clip", min=0.0, max=6.0),
            opset=7,
            norm=POSITIVE_SCALE,
            **refused(Reason.OPAQUE),
        ),
        Rule(
            "clip-11",
            simple("Clip", const(np.float32(0)), const(np.float32(6))),
            opset=11,
            norm=POSITIVE_SCALE,
            **refused(Reason.OPAQUE),
        ),
        Rule(
            "clip-13-max",
            simple("Clip", absent, const(np.float32(1))),
            norm=POSITIVE,
            **refused(Reason.OPAQUE),
        ),
    ]
    + [
        Rule(f"clip-{opset}-{low}-{high}", clip(low, high, opset), opset=opset, **expected)
        for opset in (7, 11, 17)
        for low, high, expected in (
            (0, FLT_MAX, {"norm": POSITIVE_SCALE}),
            (0, None, {"norm": POSITIVE_SCALE}),
            (None, 0, {"norm": POSITIVE_SCALE}),
            (None, None, {}),
            (-FLT_MAX, FLT_MAX, {}),
            (0, FLT_MAX, {"norm": POSITIVE, **refused(Reason.NO_SHIFT)}),
            (0, None, {"norm": SCALE, **refused(Reason.NEEDS_POSITIVE_SCALE)}),
            (0, 3.402e38, {"norm": POSITIVE_SCALE, **refused(Reason.OPAQUE)}),
            (-3.402e38, None, {"norm": POSITIVE_SCALE, **refused(Reason.OPAQUE)}),
            (-1, FLT_MAX, {"norm": POSITIVE_SCALE, **refused(Reason.OPAQUE)}),
        )
    ]
)


# Along one axis: whether a window lies wholly in the padding, for this size or for some.
FILLED = [
    ("padding-of-a-kernel-less-one", LINE, {"kernel_shape": [3], "pads": [2, 2]}),
    (
        "padding-at-any-size",
        ("N", 4, "W"),
        {"kernel_shape": [3], "pads": [1, 1], "strides": [2], "ceil_mode": 1},
    ),
    ("dilated", ("N", 4, 5), {"kernel_shape": [2], "pads": [1, 1], "dilations": [3]}),
    (
        "dilated-at-any-size",
        ("N", 4, "W"),
        {"kernel_shape": [3], "pads": [2, 1], "dilations": [2], "strides": [2]},
    ),
    ("same-at-any-size", ("N", 4, "W"), {"kernel_shape": [4], "auto_pad": "SAME_LOWER"}),
    ("dilated-valid", LINE, {"kernel_shape": [2], "auto_pad": "VALID", "dilations": [3]}),
]
EMPTY = [
    ("dilated-over-a-short-axis", ("N", 4, 2), {"kernel_shape": [2], "pads": [1, 1],
                                                "dilations": [3]}),
    ("dilated-over-any-axis", ("N", 4, "W"), {"kernel_shape": [2], "pads": [1, 1],
                                              "dilations": [3]}),
    ("dilated-and-too-long", ("N", 4, 1), {"kernel_shape": [2], "pads": [1, 0], "strides": [2],
                                           "dilations": [2]}),
    ("dilated-same", LINE, {"kernel_shape": [2], "auto_pad": "SAME_UPPER", "dilations": [3]}),
    ("beyond-the-padding", ("N", 4, "W"), {"kernel_shape": [2], "pads": [0, 1], "strides": [2],
                                           "ceil_mode": 1}),
]  # fmt: skip
POOLS = [
    rule
    for op, build, shape, opset in (
        ("max-pool", simple("MaxPool", kernel_shape=[2, 2]), IMAGE, 17),
        (
            "max-pool-pads",
            simple("MaxPool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
            IMAGE,
            11,
        ),
        ("max-pool-same", simple("MaxPool", kernel_shape=[3, 3], auto_pad="SAME_UPPER"), IMAGE, 12),
        (
            "max-pool-ceil",
            simple("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            IMAGE,
            12,
        ),
        ("global-max-pool", simple("GlobalMaxPool"), IMAGE, 17),
        ("reduce-max-13", simple("ReduceMax", axes=[2, 3]), IMAGE, 13),
        ("reduce-max-18", simple("ReduceMax", ints(-1), keepdims=0), IMAGE, 18),
    )
    for rule in (
        Rule(f"{op}-positive", build, shape, opset=opset, norm=POSITIVE),
        Rule(f"{op}-sign", build, shape, opset=opset, **refused(Reason.NEEDS_POSITIVE_SCALE)),
    )
] + [
    Rule("reduce-max-channel", simple("ReduceMax", axes=[1]), norm=POSITIVE, down=Reason.AXES),
    Rule("average-pool", simple("AveragePool", kernel_shape=[2, 2])),
    Rule("average-pool-7", simple("AveragePool", kernel_shape=[2, 2], strides=[2, 2]), opset=7),
    *(
        rule
        for id, shape, options in FILLED
        for rule in (
            Rule(f"max-pool-{id}", simple("MaxPool", **options), shape, opset=19, norm=POSITIVE),
            Rule(f"average-pool-{id}", simple("AveragePool", **options), shape, opset=19),
        )
    ),
    Rule("average-pool-line", simple("AveragePool", kernel_shape=[3]), LINE),
    Rule("average-pool-pads", simple("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)),
    Rule("average-pool-same", simple("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_LOWER")),
    Rule(
        "average-pool-pads-counted",
        simple("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        **refused(Reason.NO_SHIFT),
    ),
    Rule(
        "average-pool-pads-counted-no-shift",
        simple("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        norm=SCALE,
    ),
    Rule(
        "average-pool-zero-pads-counted",
        simple("AveragePool", kernel_shape=[3, 3], pads=[0] * 4, count_include_pad=1),
    ),
    Rule(
        "average-pool-valid-counted",
        simple("AveragePool", kernel_shape=[3, 3], auto_pad="VALID", count_include_pad=1),
    ),
    Rule(
        "average-pool-ceil",
        simple("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        ("N", 4, 5, 5),
    ),
    Rule("global-average-pool", simple("GlobalAveragePool")),
    Rule("global-average-pool-line", simple("GlobalAveragePool"), LINE),
    Rule("reduce-mean-13", simple("ReduceMean", axes=[2, 3]), opset=13),
    Rule("reduce-mean-13-no-keepdims", simple("ReduceMean", axes=[-1, -2], keepdims=0), opset=13),
    Rule("reduce-mean-18", simple("ReduceMean", ints(2, 3)), opset=18),
    Rule("reduce-mean-18-no-keepdims", simple("ReduceMean", ints(-1), keepdims=0), opset=18),
    Rule("reduce-mean-no-axes", simple("ReduceMean"), down=None),
    Rule(
        "reduce-mean-no-axes-no-keepdims",
        lambda n, t: n.op("Unsqueeze", n.op("ReduceMean", t, keepdims=0), n.ints(0, 1, 2, 3)),
        down=None,
    ),
    Rule(
        "reduce-mean-without-elements",
        simple("ReduceMean", axes=[2], keepdims=0),
        (2, 4, 0),
        up=None,
        down=Reason.OPAQUE,
    ),
    Rule("reduce-mean-one-axis-twice", simple("ReduceMean", ints(2, -2, 3), keepdims=0), opset=18),
    Rule("reduce-mean-channel", simple("ReduceMean", axes=[1]), down=Reason.AXES),
    Rule(
        "reduce-mean-channel-no-keepdims",
        simple("ReduceMean", axes=[1], keepdims=0),
        up=None,
        down=Reason.AXES,
    ),
    Rule("reduce-sum-11", simple("ReduceSum", axes=[2, 3]), opset=11),
    Rule("reduce-sum-13", simple("ReduceSum", ints(-1), keepdims=0)),
    Rule("reduce-sum-13-one-axis-twice", simple("ReduceSum", ints(2, -2), keepdims=0), opset=13),
    Rule("reduce-sum-13-noop", simple("ReduceSum", noop_with_empty_axes=1)),
    Rule("reduce-sum-channel", simple("ReduceSum", ints(1)), up=None, down=Reason.AXES),
    Rule(
        "reduce-sum-of-any-number",
        simple("ReduceSum", ints(2)),
        ("N", 4, "H", 3),
        **refused(Reason.UNKNOWN_SHAPE),
    ),
    Rule(
        "reduce-sum-of-any-number-scale", simple("ReduceSum", ints(2)), ("N", 4, "H", 3), norm=SCALE
    ),
    Rule("reduce-mean-batch", simple("ReduceMean", axes=[0]), (2, 4, 3)),
    Rule("reduce-mean-18-noop", simple("ReduceMean", noop_with_empty_axes=1), opset=18),
]

RESIZES = [
    Rule("upsample-7", simple("Upsample", scales=[1.0, 1.0, 2.0, 2.0]), opset=7),
    Rule("upsample-9", simple("Upsample", const(np.array([1.0, 1, 2, 3]))), opset=9),
    Rule(
        "upsample-9-linear",
        simple("Upsample", const(np.array([1.0, 1, 2, 2])), mode="linear"),
        opset=9,
    ),
    Rule("resize-10", simple("Resize", const(np.array([1.0, 1, 2, 2]))), opset=10),
    Rule(
        "resize-10-linear",
        simple("Resize", const(np.array([1.0, 1, 0.5, 2])), mode="linear"),
        opset=10,
    ),
    Rule(
        "resize-11", simple("Resize", const(np.zeros(0)), const(np.array([1.0, 1, 2, 2]))), opset=11
    ),
    Rule(
        "resize-11-sizes",
        simple("Resize", const(np.zeros(0)), const(np.zeros(0)), ints(2, 4, 7, 5), mode="linear"),
        (2, 4, 4, 4),
        opset=11,
    ),
    Rule("resize-13", simple("Resize", absent, const(np.array([1.0, 1, 2, 2]))), opset=13),
    Rule(
        "resize-13-cubic",
        simple("Resize", absent, const(np.array([1.0, 1, 2, 2])), mode="cubic"),
        opset=13,
    ),
    Rule(
        "resize-18-axes",
        simple("Resize", absent, absent, ints(7, 5), axes=[2, 3], mode="linear"),
        opset=18,
    ),
    Rule(
        "resize-18-antialias",
        simple("Resize", absent, const(np.array([1.0, 1, 0.5, 0.5])), antialias=1, mode="linear"),
        opset=18,
    ),
    Rule(
        "resize-19-sizes",
        simple(
            "Resize", absent, absent, ints(2, 4, 8, 8), coordinate_transformation_mode="asymmetric"
        ),
        (2, 4, 4, 4),
        opset=19,
    ),
    Rule(
        "resize-extrapolates",
        simple(
            "Resize",
            const(np.array([0, 0, 0, 0, 1, 1, 1.5, 1.5])),
            const(np.array([1.0, 1, 2, 2])),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=3.0,
        ),
        norm=SCALE,
        **refused(Reason.OPAQUE),
    ),
    *(
        Rule(
            f"resize-{opset}-fractional-on-channels",
            simple(
                "Resize",
                *(absent if opset > 11 else const(np.zeros(0)),)[: opset > 10],
                const(np.array([1, 1.2, 2, 2])),
                **options,
            ),
            opset=opset,
            **refused(Reason.AXES),
        )
        for opset, options in (
            (10, {}),
            (11, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            (13, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            (19, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        )
    ),
    Rule(
        "upsample-7-fractional-on-channels",
        simple("Upsample", scales=[1.0, 1.2, 2.0, 2.0]),
        opset=7,
        **refused(Reason.AXES),
    ),
    Rule(
        "upsample-9-fractional-on-channels",
        simple("Upsample", const(np.array([1, 1.2, 2, 2]))),
        opset=9,
        **refused(Reason.AXES),
    ),
    Rule(
        "resize-11-half-a-pixel-on",
        simple(
            "Resize",
            const(np.zeros(0)),
            const(np.array([1.0, 1, 2, 2])),
            coordinate_transformation_mode="tf_half_pixel_for_nn",
        ),
        opset=11,
        **refused(Reason.AXES),
    ),
    *(
        Rule(
            f"resize-{opset}-{options.get('coordinate_transformation_mode', 'default')}-{i}",
            simple("Resize", absent, const(np.array([1.0, 1, 1.5, 0.7])), **options),
            opset=opset,
        )
        for opset in (13, 19)
        for i, options in enumerate(
            (
                {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
                {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
                {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
                {"mode": "cubic", "coordinate_transformation_mode": "asymmetric"},
                {"mode": "nearest", "nearest_mode": "ceil"},
            )
        )
    ),
    Rule(
        "resize-19-symmetric",
        simple(
            "Resize",
            absent,
            const(np.array([1.0, 1, 1.3, 2])),
            mode="linear",
            coordinate_transformation_mode="half_pixel_symmetric",
        ),
        opset=19,
    ),
    Rule(
        "resize-18-antialias-cubic",
        simple("Resize", absent, const(np.array([1.0, 1, 0.5, 0.7])), antialias=1, mode="cubic"),
        opset=18,
    ),
    Rule(
        "resize-18-aspect-ratio-of-all-axes",
        simple("Resize", absent, absent, ints(2, 4, 8, 8), keep_aspect_ratio_policy="not_larger"),
        (2, 4, 4, 4),
        opset=18,
        **refused(Reason.AXES),
    ),
    Rule(
        "resize-18-aspect-ratio-of-two-axes",
        simple(
            "Resize",
            absent,
            absent,
            ints(8, 9),
            axes=[2, 3],
            keep_aspect_ratio_policy="not_larger",
        ),
        opset=18,
    ),
    Rule(
        "resize-18-aspect-ratio-of-axes-from-the-back",
        simple(
            "Resize",
            absent,
            absent,
            ints(8, 9),
            axes=[-2, 3],
            keep_aspect_ratio_policy="not_larger",
        ),
        opset=18,
        up=Reason.UNKNOWN_SHAPE,
    ),
    Rule(
        "resize-18-axes-with-channels",
        simple("Resize", absent, const(np.array([2.0, 1.0])), axes=[2, 1]),
        opset=18,
    ),
    Rule(
        "resize-18-axes-with-channels-changed",
        simple("Resize", absent, const(np.array([2.0, 1.2])), axes=[2, 1]),
        opset=18,
        **refused(Reason.AXES),
    ),
    Rule(
        "resize-sizes-from-the-shape",
        lambda n, t: n.op(
            "Resize",
            t,
            "",
            "",
            n.op("Concat", n.op("Shape", t, start=0, end=2), n.ints(7, 8), axis=0),
        ),
        opset=17,
    ),
    Rule(
        "resize-channel",
        simple("Resize", absent, const(np.array([1.0, 2, 1, 1]))),
        **refused(Reason.AXES),
    ),
]

PADS = [
    Rule(
        "pad-zeros-more-than-there-are",
        simple("Pad", ints(0, 5, 0, 0, 0, 6, 0, 0)),
        norm=SCALE,
    ),
    Rule("pad-2-reflect", simple("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"), opset=9),
    Rule("pad-2-zero", simple("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1]), opset=9, norm=SCALE),
    Rule(
        "pad-2-shift",
        simple("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        opset=9,
        **refused(Reason.NO_SHIFT),
    ),
    Rule("pad-11-edge", simple("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0), mode="edge"), opset=11),
    Rule("pad-11-zero", simple("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0)), opset=11, norm=SCALE),
    Rule(
        "pad-11-zero-shift",
        simple("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0)),
        opset=11,
        **refused(Reason.NO_SHIFT),
    ),
    Rule(
        "pad-13-explicit-zero",
        simple("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0), const(np.float32(0))),
        norm=SCALE,
    ),
    Rule(
        "pad-13-value",
        simple("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0), const(np.float32(1.5))),
        norm=SCALE,
        **refused(Reason.OPAQUE),
    ),
    Rule("pad-13-nothing", simple("Pad", ints(*[0] * 8))),
    Rule("pad-13-crops", simple("Pad", ints(0, 0, -1, -1, 0, 0, 0, 0))),
    Rule("pad-18-axes", simple("Pad", ints(1, 1), absent, ints(-1)), opset=18, norm=SCALE),
    Rule("pad-19-wrap", simple("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="wrap"), opset=19),
    Rule("pad-13-both-signs", simple("Pad", ints(0, 0, -1, 0, 0, 0, 2, 0)), norm=SCALE),
    Rule(
        "pad-13-both-signs-shift",
        simple("Pad", ints(0, 0, -1, 0, 0, 0, 2, 0)),
        up=Reason.NO_SHIFT,
        down=Reason.AXES,
    ),
    Rule(
        "pad-13-crops-more-than-it-adds",
        simple("Pad", ints(0, 0, 1, 0, 0, 0, -3, 0)),
        up=Reason.NO_SHIFT,
        down=Reason.AXES,
    ),
    Rule("pad-13-channel-both-signs", simple("Pad", ints(0, -1, 0, 0, 0, 2, 0, 0)), norm=SCALE),
    Rule(
        "pad-13-channel-both-signs-shift",
        simple("Pad", ints(0, 2, 0, 0, 0, -1, 0, 0)),
        up=Reason.NO_SHIFT,
    ),
    Rule("pad-13-channel-cropped", simple("Pad", ints(0, -1, 0, 0, 0, -1, 0, 0))),
    Rule("pad-13-channel-cropped-edge", simple("Pad", ints(0, -2, 1, 0, 0, 0, 0, 0), mode="edge")),
    Rule(
        "pad-13-channel-edge",
        simple("Pad", ints(0, -2, 0, 0, 0, 1, 0, 0), mode="edge"),
        **refused(Reason.AXES),
    ),
    Rule("pad-13-both-signs-edge", simple("Pad", ints(0, 0, -1, 0, 0, 0, 2, 0), mode="edge")),
    Rule("pad-13-both-signs-reflect", simple("Pad", ints(0, 0, -1, 0, 0, 0, 1, 0), mode="reflect")),
    Rule(
        "pad-18-axes-of-channels",
        simple("Pad", ints(-1, 2), absent, ints(-3)),
        opset=18,
        norm=SCALE,
    ),
    Rule(
        "pad-19-wrap-beyond-the-size",
        simple("Pad", ints(0, 0, -1, 5, 0, 0, 7, 0), mode="wrap"),
        opset=19,
    ),
    Rule("center-both", simple("CenterCropPad", ints(3, 7), axes=[2, 3]), opset=18, norm=SCALE),
    Rule("center-cropped", simple("CenterCropPad", ints(1, 3), axes=[2, -1]), opset=18),
    Rule("center-as-it-was", simple("CenterCropPad", ints(2, 4, 4, 4)), (2, 4, 4, 4), opset=18),
    Rule(
        "center-padded-shift",
        simple("CenterCropPad", ints(3, 7), axes=[2, 3]),
        opset=18,
        up=Reason.NO_SHIFT,
        down=Reason.AXES,
    ),
    Rule(
        "center-padded-twice-shift",
        simple("CenterCropPad", ints(6, 7), axes=[2, 3]),
        opset=18,
        **refused(Reason.NO_SHIFT),
    ),
    Rule(
        "center-padded-twice",
        simple("CenterCropPad", ints(6, 7), axes=[2, 3]),
        opset=18,
        norm=SCALE,
    ),
    Rule("center-channel-cropped", simple("CenterCropPad", ints(1), axes=[1]), opset=18),
    Rule(
        "center-channel-padded",
        simple("CenterCropPad", ints(7), axes=[-3]),
        opset=18,
        norm=SCALE,
    ),
    Rule(
        "center-channel-padded-shift",
        simple("CenterCropPad", ints(7), axes=[1]),
        opset=18,
        up=Reason.NO_SHIFT,
    ),
    Rule(
        "center-open-batch",
        simple("CenterCropPad", ints(3), axes=[0]),
        opset=18,
        **refused(Reason.UNKNOWN_SHAPE),
    ),
    Rule(
        "center-open-batch-scale",
        simple("CenterCropPad", ints(3), axes=[0]),
        opset=18,
        norm=SCALE,
    ),
    Rule("pad-channel", simple("Pad", ints(0, 1, 0, 0, 0, 0, 0, 0)), up=Reason.NO_SHIFT),
]


def trilu(k: int | None = None, **attributes) -> Callable[[Net, str], str]:
    return simple("Trilu", *([] if k is None else [const(np.int64(k))]), **attributes)


def trilu_of_computed_k(n: Net, t: str) -> str:
    return n.op("Trilu", t, n.input("k", [], TensorProto.INT64))


FIRST_TWO = {"shift": np.array([1, 1, 0, 0])}
TRIANGLES = [
    *(
        rule
        for id, build, shape in (
            ("default", trilu(), IMAGE),
            ("14", trilu(upper=1), IMAGE),
            ("lower", trilu(upper=0), IMAGE),
            ("upper-of-any-number", trilu(upper=-3), IMAGE),
            ("k", trilu(1), IMAGE),
            ("all-but-one", trilu(-2), IMAGE),
            ("lower-all-but-one", trilu(2, upper=0), IMAGE),
            ("nothing-kept", trilu(4), IMAGE),
            ("rows-are-channels", trilu(), (2, 4, 3)),
            ("matrix", trilu(-1), (3, 4)),
        )
        for rule in (
            Rule(f"trilu-{id}-scale", build, shape, opset=14, norm=SCALE),
            Rule(f"trilu-{id}-shift", build, shape, **refused(Reason.NO_SHIFT)),
        )
    ),
    Rule("trilu-all-kept", trilu(-3)),
    Rule("trilu-lower-all-kept", trilu(3, upper=0)),
    Rule("trilu-all-kept-k-a-vector", simple("Trilu", ints(-3))),
    Rule("trilu-all-kept-of-few-columns", trilu(-3), ("N", 2, 4, 1)),
    Rule("trilu-all-kept-of-a-matrix", trilu(-2), (3, 4)),
    Rule("trilu-far-k", trilu(-100)),
    # One axis tells what becomes zero: there, a layer behind needs no shift.
    Rule("trilu-one-column", trilu(-1), ("N", 4, 1), up=Reason.NO_SHIFT),
    Rule("trilu-one-column-lower", trilu(-2, upper=0), ("N", 4, 1), up=Reason.NO_SHIFT),
    Rule("trilu-one-row", trilu(2), (1, 4), up=Reason.NO_SHIFT),
    # A shift of channels that are kept as a whole.
    Rule("trilu-shift-of-whole-rows", trilu(-1), (2, 4, 3), norm=FIRST_TWO),
    Rule("trilu-shift-of-a-cut-row", trilu(), (2, 4, 3), norm=FIRST_TWO,
         **refused(Reason.NO_SHIFT)),
    Rule("trilu-computed-k", trilu_of_computed_k, norm=SCALE),
    Rule("trilu-computed-k-shift", trilu_of_computed_k, **refused(Reason.PARAMETERS_NOT_CONSTANT)),
    Rule("trilu-open-sizes", trilu(), ("N", 4, "H", "W"), norm=SCALE),
    Rule("trilu-open-sizes-shift", trilu(), ("N", 4, "H", "W"), **refused(Reason.UNKNOWN_SHAPE)),
]  # fmt: skip


def pow_by(exponent, dtype=np.float32) -> Callable[[Net, str], str]:
    return simple("Pow", const(np.asarray(exponent), dtype))


def of_norms(op: str) -> Callable[[Net, str], str]:
    """The operator on norms of positions, which are positive."""
    return lambda n, t: n.op(op, n.op("ReduceL2", t, n.ints(2, 3)))


# Norms, which lose the sign of a scale; `odd` functions keep it.
NORMS = {
    "abs": (simple("Abs"), 17),
    "reduce-l1-13": (simple("ReduceL1", axes=[2, 3]), 13),
    "reduce-l1-18": (simple("ReduceL1", ints(-1), keepdims=0), 18),
    "reduce-l2-13": (simple("ReduceL2", axes=[2], keepdims=0), 13),
    "reduce-l2-18": (simple("ReduceL2", ints(2, 3)), 18),
    "reduce-sum-square-13": (simple("ReduceSumSquare", axes=[-1]), 13),
    "reduce-sum-square-18": (simple("ReduceSumSquare", ints(2)), 18),
    "global-lp-pool": (simple("GlobalLpPool"), 17),
    "global-lp-pool-of-magnitudes": (simple("GlobalLpPool", p=1), 13),
    "lp-pool": (simple("LpPool", kernel_shape=[2, 2], p=3), 17),
    "lp-pool-pads": (simple("LpPool", kernel_shape=[3, 3], pads=[1] * 4), 18),
    "lp-pool-of-magnitudes": (simple("LpPool", kernel_shape=[2, 2], strides=[2, 2], p=1), 22),
    "pow-2": (pow_by(2.0), 17),
    "pow-2-of-integers": (pow_by(np.int64(2)), 17),
    "pow-2-a-vector": (pow_by([2.0]), 7),
    "pow-4": (pow_by(4.0), 17),
}
ODD_FUNCTIONS = {"reciprocal": simple("Reciprocal"), "pow-3": pow_by(3.0), "pow-1": pow_by(1.0)}
HOMOGENEOUS = [
    *(
        rule
        for id, (build, opset) in NORMS.items()
        for rule in (
            Rule(f"{id}-positive", build, opset=opset, norm=POSITIVE_SCALE),
            Rule(f"{id}-sign", build, opset=opset, norm=SCALE, up=Reason.NEEDS_POSITIVE_SCALE),
            Rule(f"{id}-shift", build, opset=opset, norm=POSITIVE, **refused(Reason.NO_SHIFT)),
        )
    ),
    *(
        rule
        for id, build in ODD_FUNCTIONS.items()
        for rule in (
            Rule(f"{id}-scale", build, norm=SCALE),
            Rule(f"{id}-shift", build, norm=POSITIVE, **refused(Reason.NO_SHIFT)),
        )
    ),
    *(
        rule
        for id, build in {
            "sqrt": of_norms("Sqrt"),
            "pow-half": lambda n, t: pow_by(0.5)(n, n.op("Abs", t)),
        }.items()
        for rule in (
            Rule(f"{id}-positive", build, norm=POSITIVE_SCALE, opset=18),
            Rule(f"{id}-sign", build, norm=SCALE, opset=18, up=Reason.NEEDS_POSITIVE_SCALE),
        )
    ),
    Rule("sign-scale", simple("Sign"), norm=SCALE, up=Reason.OPAQUE),
    Rule("sign-shift", simple("Sign"), norm=POSITIVE, **refused(Reason.NO_SHIFT)),
    *(
        Rule(f"{id}-some-zero", build, norm=SCALE | {"signs": "some zero"}, up=None, down=down)
        for id, build, down in (
            ("reduce-l2", simple("ReduceL2", axes=[2]), FOLDS),
            # A channel that was zero has a sign of its own when it is not.
            ("sign", simple("Sign"), Reason.PRECISION),
            ("pow-2", pow_by(2.0), Reason.PRECISION),
        )
    ),
    Rule("reduce-l1-channel", simple("ReduceL1", axes=[1]), norm=POSITIVE_SCALE, opset=13,
         down=Reason.AXES),
    *(
        Rule(f"{op}-18-noop", simple(op, noop_with_empty_axes=1), opset=18, norm=POSITIVE_SCALE,
             **refused(Reason.OPAQUE))
        for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare")
    ),
    Rule("pow-0", pow_by(0.0), norm=POSITIVE_SCALE, **refused(Reason.OPAQUE)),
    Rule("pow-of-several", pow_by([2.0, 3, 2, 2]), norm=POSITIVE_SCALE, **refused(Reason.OPAQUE)),
    Rule("pow-of-more-axes", pow_by([[[2.0]]]), (2, 4), norm=POSITIVE_SCALE, up=None,
         down=Reason.OPAQUE),
    Rule("pow-computed", lambda n, t: n.op("Pow", t, n.input("e", [], TensorProto.INT64)),
         norm=POSITIVE_SCALE, **refused(Reason.PARAMETERS_NOT_CONSTANT)),
]  # fmt: skip


def masked(value, *, swapped: bool = False) -> Callable[[Net, str], str]:
    """A Where of the tensor and a constant, by a mask of positions that is an input."""

    def build(n: Net, t: str) -> str:
        mask = n.input("mask", [1, *n.shape(t)[2:]], TensorProto.BOOL)
        sides = [t, n.const(np.array(value))]
        return n.op("Where", mask, *(sides[::-1] if swapped else sides))

    return build


def masked_by_itself(n: Net, t: str) -> str:
    return n.op("Where", n.op("Greater", t, n.const(np.float32(0))), t, n.const(np.float32(0)))


CHOICES = [
    Rule("where-zeros", masked(0.0), norm=SCALE),
    Rule("where-a-number", masked(1.5, swapped=True)),
    Rule("where-9", masked(np.arange(4.0).reshape(4, 1, 1)), opset=9),
    Rule("where-a-constant-that-would-grow", masked(np.ones((1, 1, 16, 20))), ("N", 4, 16, 20),
         **refused(Reason.NOT_SMALLER)),
    Rule("where-by-itself", masked_by_itself, norm=POSITIVE_SCALE, **refused(Reason.OPAQUE)),
]  # fmt: skip


def scattered(dims: tuple[int, ...], op: str, indices, **attributes) -> Callable[[Net, str], str]:
    """The tensor written into zeros of some shape."""
    return lambda n, t: n.op(
        op, n.const(np.zeros(dims)), n.const(np.array(indices)), t, **attributes
    )


def picked(op: str, indices, **attributes) -> Callable[[Net, str], str]:
    return simple(op, const(np.array(indices)), **attributes)


def largest(*inputs: Callable[[Net], str], **attributes) -> Callable[[Net, str], str]:
    """The values of a TopK."""
    return lambda n, t: n.op("TopK", t, *(m(n) for m in inputs), outputs=2, **attributes)[0]


def sampled(**attributes) -> Callable[[Net, str], str]:
    grid = np.random.default_rng(0).uniform(-1.5, 1.5, (1, 3, 2, 2))
    return simple("GridSample", const(grid), **attributes)


def regions(*, computed: bool = False, **attributes) -> Callable[[Net, str], str]:
    """A RoiAlign of three regions, the last of which leaves the image."""
    corners = np.array([[0, 0, 3, 3], [1, 1, 2.5, 3], [-4, -4, 9, 9]])

    def build(n: Net, t: str) -> str:
        rois = n.input("rois", [3, 4]) if computed else n.const(corners)
        return n.op("RoiAlign", t, rois, n.ints(0, 0, 0), **{"output_height": 2} | attributes)

    return build


def largest_of_regions(n: Net, t: str) -> str:
    """A MaxRoiPool of two regions, the last of which leaves the image."""
    corners = n.const(np.array([[0.0, 0, 0, 2, 3], [0, -4, -4, 9, 9]]))
    return n.op("MaxRoiPool", t, corners, pooled_shape=[2, 2])


def fourier(axis: int | None, **attributes) -> Callable[[Net, str], str]:
    """A DFT along an axis, an attribute before opset 20."""

    def build(n: Net, t: str) -> str:
        if n.opset < 20:
            return n.op("DFT", t, axis=axis, **attributes)
        slots = [] if axis is None else ["", n.const(np.int64(axis), np.int64)]
        return n.op("DFT", t, *slots, **attributes)

    return build


def cast_there_and_back(n: Net, t: str) -> str:
    return n.op("CastLike", n.op("CastLike", t, n.const(1.0, np.float64)), n.const(1.0))


def compressed_to_a_vector(n: Net, t: str) -> str:
    kept = n.const(np.array([True] * 4))
    return n.op("Reshape", n.op("Compress", t, kept), n.ints(2, 2))


def picked_by_an_input(n: Net, t: str) -> str:
    return n.op("GatherND", t, n.input("i", [3, 1], TensorProto.INT64))


ROWS = (2, 4, 6)
SIGNAL = ("N", 4, 6, 1)
TO_TWO = [[0], [2]]
TO_CHANNELS = [[[0, 1]] * 4] * 2
THREE = np.random.default_rng(0).integers(-6, 6, (2, 4, 3))
CHOSEN = np.array([True, False, True])
PLACES = [
    Rule("cast-like", cast_there_and_back),
    Rule("cast-like-integer", lambda n, t: n.op("CastLike", n.op("CastLike", t, n.ints(1)), t),
         norm=POSITIVE_SCALE, **refused(Reason.UNSUPPORTED_TYPE)),
    Rule("cum-sum", simple("CumSum", ints(2), exclusive=1), norm=SCALE),
    Rule("cum-sum-11", simple("CumSum", const(np.int64(-1)), reverse=1), opset=11, norm=SCALE),
    Rule("cum-sum-shift", simple("CumSum", ints(2)), **refused(Reason.NO_SHIFT)),
    Rule("cum-sum-channel", simple("CumSum", ints(1)), norm=SCALE, **refused(Reason.AXES)),
    Rule("cum-sum-computed", lambda n, t: n.op("CumSum", t, n.input("a", [], TensorProto.INT64)),
         norm=SCALE, **refused(Reason.PARAMETERS_NOT_CONSTANT)),
    Rule("reverse-sequence", simple("ReverseSequence", ints(1, 3, 2, 1)), (3, 4, 2)),
    Rule("reverse-sequence-channel",
         simple("ReverseSequence", ints(4, 2), batch_axis=0, time_axis=1), (2, 4, 3),
         **refused(Reason.AXES)),
    Rule("compress", simple("Compress", const(CHOSEN), axis=2)),
    Rule("compress-all", compressed_to_a_vector, ROWS, **refused(Reason.AXES)),
    Rule("gather-elements", picked("GatherElements", THREE, axis=2), ROWS),
    Rule("gather-elements-11", picked("GatherElements", THREE, axis=-1), ROWS, opset=11),
    Rule("gather-elements-channel", picked("GatherElements", THREE % 4, axis=1), ROWS,
         **refused(Reason.AXES)),
    Rule("gather-elements-of-the-first-channels", picked("GatherElements", THREE[:, :3], axis=2),
         ROWS, **refused(Reason.AXES)),
    Rule("gather-nd", picked("GatherND", [[1], [0], [1]]), ROWS),
    Rule("gather-nd-by-more-axes", lambda n, t: n.op("Reshape", picked(
        "GatherND", [[[1], [0]]])(n, t), n.ints(*ROWS)), ROWS),
    Rule("gather-nd-11", picked("GatherND", [[-1], [0]]), ROWS, opset=11),
    Rule("gather-nd-computed", picked_by_an_input, ROWS),
    Rule("gather-nd-channel", picked("GatherND", [[1, 2], [0, 3]]), ROWS, up=None,
         down=Reason.AXES),
    Rule("gather-nd-in-a-batch", picked("GatherND", [[[1], [2]], [[0], [3]]], batch_dims=1), ROWS,
         **refused(Reason.AXES)),
    Rule("scatter-nd", scattered((3, 4, 6), "ScatterND", TO_TWO), ROWS),
    Rule("scatter-nd-11", scattered((3, 4, 6), "ScatterND", TO_TWO), ROWS, opset=11),
    Rule("scatter-nd-channel", scattered((3, 5, 6), "ScatterND", TO_CHANNELS), ROWS,
         **refused(Reason.AXES)),
    Rule("scatter-nd-add", scattered((3, 4, 6), "ScatterND", TO_TWO, reduction="add"), ROWS,
         norm=SCALE),
    Rule("scatter-nd-add-shift", scattered((3, 4, 6), "ScatterND", TO_TWO, reduction="add"), ROWS,
         **refused(Reason.NO_SHIFT)),
    Rule("scatter-nd-mul", scattered((3, 4, 6), "ScatterND", TO_TWO, reduction="mul"), ROWS,
         norm=SCALE, **refused(Reason.OPAQUE)),
    *(
        rule
        for op, opset in (("Scatter", 9), ("ScatterElements", 11), ("ScatterElements", 18))
        for rule in (
            Rule(f"{op}-{opset}", scattered((2, 4, 7), op, THREE % 7, axis=2), (2, 4, 3),
                 opset=opset),
            Rule(f"{op}-{opset}-channel", scattered((2, 5, 3), op, THREE % 5, axis=1), (2, 4, 3),
                 opset=opset, **refused(Reason.AXES)),
        )
    ),
    *(
        Rule(f"scatter-elements-max-{signs}",
             scattered((2, 4, 7), "ScatterElements", THREE % 7, axis=2, reduction="max"),
             (2, 4, 3), opset=18, norm={"signs": signs}, up=outcome, down=outcome)
        for signs, outcome in (("positive", FOLDS), ("mixed", Reason.NEEDS_POSITIVE_SCALE))
    ),
    Rule("top-k-7", largest(k=2), opset=7, norm=POSITIVE),
    Rule("top-k-10", largest(ints(2), axis=2), opset=10, norm=POSITIVE),
    Rule("top-k-smallest", largest(ints(2), axis=-2, largest=0), norm=POSITIVE),
    Rule("top-k-sign", largest(ints(2)), norm=SCALE, **refused(Reason.NEEDS_POSITIVE_SCALE)),
    Rule("top-k-channel", largest(ints(2), axis=1), norm=POSITIVE, **refused(Reason.AXES)),
    Rule("roi-align-10", regions(computed=True), opset=10, norm=SCALE),
    Rule("roi-align-16", regions(sampling_ratio=2), opset=16, norm=SCALE),
    Rule("roi-align-shift", regions(output_width=2), norm=POSITIVE, **refused(Reason.NO_SHIFT)),
    Rule("roi-align-max", regions(mode="max"), norm=POSITIVE_SCALE),
    Rule("roi-align-max-sign", regions(mode="max"), norm=SCALE,
         **refused(Reason.NEEDS_POSITIVE_SCALE)),
    Rule("max-roi-pool", largest_of_regions, norm=POSITIVE_SCALE),
    Rule("max-roi-pool-sign", largest_of_regions, norm=SCALE,
         **refused(Reason.NEEDS_POSITIVE_SCALE)),
    Rule("max-roi-pool-shift", largest_of_regions, norm=POSITIVE, **refused(Reason.NO_SHIFT)),
    *(
        Rule(f"dft-{opset}-{name}", fourier(axis, **given), SIGNAL, opset=opset, norm=SCALE)
        for opset in (17, 20)
        for name, axis, given in (
            ("complex", 2, {}), ("negative-axis", -2, {"inverse": 1}), ("real", 2, {"onesided": 1})
        )
    ),
    Rule("dft-default-axis", fourier(None), SIGNAL, opset=20, norm=SCALE),
    Rule("dft-17-default-axis", simple("DFT"), SIGNAL, norm=SCALE, **refused(Reason.AXES)),
    Rule("dft-channel", fourier(-3), SIGNAL, opset=20, norm=SCALE, **refused(Reason.AXES)),
    Rule("dft-shift", fourier(2), SIGNAL, opset=20, **refused(Reason.NO_SHIFT)),
    Rule("dft-computed-axis",
         lambda n, t: n.op("DFT", t, "", n.input("a", [], TensorProto.INT64)), SIGNAL, opset=20,
         norm=SCALE, **refused(Reason.PARAMETERS_NOT_CONSTANT)),
    Rule("grid-sample-zeros", sampled(), (1, 4, 4, 4), norm=SCALE),
    Rule("grid-sample-zeros-shift", sampled(padding_mode="zeros"), (1, 4, 4, 4),
         **refused(Reason.NO_SHIFT)),
    *(
        Rule(f"grid-sample-{opset}-{mode}-{padding}", sampled(mode=mode, padding_mode=padding),
             (1, 4, 4, 4), opset=opset)
        for opset, modes in ((16, ("bilinear", "bicubic")), (20, ("linear", "nearest", "cubic")))
        for mode in modes
        for padding in ("border", "reflection")
    ),
]  # fmt: skip

OTHERS = [
    Rule("neg", simple("Neg")),
    Rule("mul-constant", lambda n, t: n.op("Mul", t, n.random(4, 1, 1))),
    Rule("mul-scalar", lambda n, t: n.op("Mul", n.random(), t)),
    Rule("add-constant", lambda n, t: n.op("Add", n.random(1, 4, 1, 1), t)),
    Rule("sub-constant", lambda n, t: n.op("Sub", t, n.random(4, 1, 1))),
    Rule("constant-sub", lambda n, t: n.op("Sub", n.random(4, 1, 1), t)),
    Rule("div-constant", lambda n, t: n.op("Div", t, n.random(1, 4, 1, 1))),
    Rule("constant-div", lambda n, t: n.op("Div", n.random(4, 1, 1), t), norm=SCALE),
    Rule("add-one", lambda n, t: n.op("Add", t, n.const(np.ones(1)))),
    Rule(
        "cast-double",
        lambda n, t: n.op("Cast", n.op("Cast", t, to=TensorProto.DOUBLE), to=TensorProto.FLOAT),
    ),
    Rule(
        "cast-integer",
        lambda n, t: n.op("Cast", n.op("Cast", t, to=TensorProto.INT32), to=TensorProto.FLOAT),
        norm=POSITIVE_SCALE,
        **refused(Reason.UNSUPPORTED_TYPE),
    ),
]

RULES = (
    MOVING
    + SLICES
    + ACTIVATIONS
    + POOLS
    + RESIZES
    + PADS
    + TRIANGLES
    + HOMOGENEOUS
    + CHOICES
    + PLACES
    + OTHERS
)


def cases(direction: str) -> list:
    return [pytest.param(r, id=r.id) for r in RULES if getattr(r, direction) is not None]


def check(net: Net, output: str, outcome: Outcome) -> None:
    """Fold the model and compare with the outcome; whatever folds, the function is the same."""
    kept = 0 if outcome == FOLDS else 1
    model = net.model(output)
    _, report = fold_checked(model, kept=kept)
    assert_report_names_nodes(model, report)
    assert report.nodes_before - report.nodes_after >= 1 - kept
    if kept:
        assert outcome in reasons(report)[0], report.lines()


# Cases that onnxruntime before 1.32 computes otherwise, or not at all.
ODD = ("reduce-sum-13-noop", "resize-18-aspect-ratio-of-axes-from-the-back")
ODD += tuple(f"{op}-18-noop" for op in ("reduce-mean", "ReduceL1", "ReduceL2", "ReduceSumSquare"))
ODD += ("pad-19-wrap-beyond-the-size", "split-18-into-more-parts-than-channels")


def require_kernel(name: str) -> None:
    """Skip a case that the installed onnxruntime does not compute as the specification says."""
    if name in ODD and not KERNELS_AS_READ:
        pytest.skip("onnxruntime before 1.32 computes it otherwise, or not at all")


@pytest.mark.parametrize("rule", cases("up"))
def test_bn_after_the_operator(rule: Rule):
    require_kernel(rule.id)
    net = Net(rule.shape, opset=rule.opset)
    y = rule.build(net, net.head("x", rule.shape[1]))
    check(net, net.bn(y, **rule.norm), rule.up)


@pytest.mark.parametrize("rule", cases("down"))
def test_bn_before_the_operator(rule: Rule):
    require_kernel(rule.id)
    net = Net(rule.shape, opset=rule.opset)
    y = rule.build(net, net.bn("x", **rule.norm))
    check(net, net.head(y), rule.down)


several = Cases()


@several()
def concat_before_bn(n):
    return n.bn(n.op("Concat", n.conv("x", 2), n.conv("x", 3), axis=1))


@several()
def concat_negative_axis(n):
    return n.bn(n.op("Concat", n.conv("x", 2), n.conv("x", 3), axis=-3))


@several()
def concat_of_three_with_one_twice(n):
    t = n.conv("x", 2)
    return n.conv(n.op("Concat", n.bn("x"), t, t, axis=1), 3)


@several(1, Reason.CONFLICT)
def concat_of_the_same_tensor(n):
    t = n.conv("x", 2)
    return n.bn(n.op("Concat", t, t, axis=1))


@several(1, Reason.GRAPH_INPUT)
def concat_with_graph_input(n):
    return n.bn(n.op("Concat", n.conv("x", 2), "x", axis=1))


@several()
def concat_in_front_of_a_layer(n):
    return n.conv(n.op("Concat", n.bn("x"), "x", axis=1), 2)


@several()
def concat_of_two_bns(n):
    return n.conv(n.op("Concat", n.bn("x"), n.bn("x"), axis=1), 2)


@several()
def concat_spatial(n):
    return n.bn(n.op("Concat", n.conv("x", 4), n.conv("x", 4), axis=2))


@several(1, Reason.GRAPH_INPUT)
def concat_spatial_in_front_of_a_layer(n):
    return n.conv(n.op("Concat", n.bn("x"), "x", axis=2), 2)


@several()
def concat_spatial_of_a_layer_in_front_of_a_layer(n):
    return n.conv(n.op("Concat", n.bn("x"), n.conv("x", 4), axis=2), 2)


@several(1, Reason.CONFLICT, Reason.GRAPH_INPUT)
def concat_spatial_of_two_bns(n):
    return n.conv(n.op("Concat", n.bn("x"), n.bn("x"), axis=2), 2)


@several(shape=(2, 4, 3))
def concat_batch(n):
    return n.bn(n.op("Concat", n.conv("x", 4), n.conv("x", 4), axis=0))


@several()
def concat_with_a_constant(n):
    return n.bn(n.op("Concat", n.conv("x", 2), n.random(2, 1, 4, 4), axis=1))


@several(opset=11)
def split_11_before_bn(n):
    a, b = n.op("Split", n.conv("x", 4), outputs=2, axis=1, split=[1, 3])
    return n.bn(b), a


@several(opset=13)
def split_13_before_two_bns(n):
    a, b = n.op("Split", n.conv("x", 4), n.ints(1, 3), outputs=2, axis=1)
    return n.bn(a), n.bn(b)


@several(opset=13)
def split_13_equal_parts(n):
    a, b = n.op("Split", n.bn("x"), outputs=2, axis=1)
    return n.conv(a, 2), n.conv(b, 3)


@several(opset=18)
def split_18_num_outputs(n):
    a, b = n.op("Split", n.bn("x"), outputs=2, axis=-3, num_outputs=2)
    return n.conv(a, 2), n.conv(b, 3)


@several(opset=18, shape=("N", 5, 3))
def split_18_uneven(n):
    a, b = n.op("Split", n.bn("x"), outputs=2, axis=1, num_outputs=2)
    return n.conv(a, 2), n.conv(b, 3)


@several(opset=18, shape=("N", 5, 3))
def split_18_into_more_parts_than_channels(n):
    parts = n.op("Split", n.bn("x"), outputs=6, axis=1, num_outputs=6)
    return *(n.conv(part, 2) for part in parts[:5]), parts[5]


@several(shape=(2, 4, 3))
def split_13_with_a_part_of_no_channels(n):
    a, b = n.op("Split", n.conv("x", 4), n.ints(0, 4), outputs=2, axis=1)
    return n.bn(b), a


@several(shape=(2, 4, 3))
def concat_with_a_part_of_no_channels(n):
    nothing = n.const(np.zeros((2, 0, 3)))
    return n.bn(n.op("Concat", nothing, n.conv("x", 2), n.conv("x", 1), axis=1))


@several(1, Reason.GRAPH_OUTPUT)
def split_with_a_part_that_goes_out(n):
    a, b = n.op("Split", n.bn("x"), outputs=2, axis=1)
    return n.conv(a, 2), b


@several(1, Reason.GRAPH_OUTPUT, Reason.CONFLICT)
def split_spatial_before_bn(n):
    a, b = n.op("Split", n.conv("x", 4), outputs=2, axis=2)
    return n.bn(a), b


@several()
def split_spatial_in_front_of_layers(n):
    a, b = n.op("Split", n.bn("x"), outputs=2, axis=2)
    return n.conv(a, 2), n.conv(b, 2)


@several(shape=("N", 4, 1))
def trilu_of_a_tensor_that_is_read_beside_it(n):
    """What becomes zero may be shifted as the other reader needs it."""
    t = n.conv("x", 4)
    y = n.op("Concat", n.op("Trilu", t, n.const(np.int64(-1))), n.op("Identity", t), axis=1)
    shift = np.array([1.0, 2, 0, 0, 1, 2, 3, 4])
    ones, zeros = n.const(np.ones(8)), n.const(np.zeros(8))
    return n.op("BatchNormalization", y, ones, n.const(shift), zeros, ones)


@several()
def add_of_two_layers(n):
    return n.bn(n.op("Add", n.conv("x", 4), n.conv("x", 4)))


@several(1, Reason.GRAPH_INPUT)
def add_of_the_graph_input(n):
    return n.bn(n.op("Add", n.conv("x", 4), "x"))


@several()
def add_of_the_graph_input_takes_a_shift(n):
    y = n.bn(n.op("Add", "x", n.conv("x", 4)), signs="positive")
    return n.conv(n.relu(y), 2)


@several()
def add_in_front_of_a_layer(n):
    return n.conv(n.op("Add", n.bn("x"), n.conv("x", 4)), 2)


@several(1, Reason.GRAPH_INPUT)
def add_of_bn_and_graph_input(n):
    return n.conv(n.op("Add", n.bn("x"), "x"), 2)


@several()
def add_of_a_tensor_to_itself(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Add", t, t))


@several()
def add_of_two_bns_behind_layers(n):
    return n.op("Add", n.bn(n.conv("x", 4)), n.bn(n.conv("x", 4)))


@several(1)
def add_of_two_bns_in_front_of_a_layer(n):
    return n.conv(n.op("Add", n.bn("x"), n.bn("x")), 2)


@several()
def add_broadcasts_over_space(n):
    return n.bn(n.op("Add", n.conv("x", 4), n.op("GlobalAveragePool", n.conv("x", 4))))


@several(1, Reason.AXES)
def add_broadcasts_over_channels(n):
    return n.bn(n.op("Add", n.conv("x", 4), n.conv("x", 1)))


@several()
def sub_of_two_layers(n):
    return n.bn(n.op("Sub", n.conv("x", 4), n.conv("x", 4)))


@several()
def sub_in_front_of_a_layer(n):
    return n.conv(n.op("Sub", n.conv("x", 4), n.bn("x")), 2)


@several()
def sum_of_three_layers(n):
    return n.bn(n.op("Sum", *(n.conv("x", 4) for _ in range(3))))


@several()
def sum_of_one(n):
    return n.bn(n.op("Sum", n.conv("x", 4)))


@several()
def mean_of_three_layers(n):
    return n.bn(n.op("Mean", *(n.conv("x", 4) for _ in range(3))))


@several(opset=7)
def mean_before_opset_8(n):
    return n.bn(n.op("Mean", n.conv("x", 4), n.conv("x", 4)))


@several()
def mean_of_one(n):
    return n.bn(n.op("Mean", n.conv("x", 4)))


@several()
def mean_of_one_tensor_twice_and_another(n):
    t, u = n.conv("x", 4), n.conv("x", 4)
    return n.bn(n.op("Mean", t, u, t))


@several()
def mean_with_constants(n):
    return n.bn(n.op("Mean", n.random(4, 1, 1), n.conv("x", 4), n.random(1, 1, 1)), channels=4)


@several()
def mean_in_front_of_a_layer(n):
    return n.conv(n.op("Mean", n.conv("x", 4), n.bn("x"), n.conv("x", 4)), 2)


@several()
def mean_broadcasts_over_space(n):
    return n.bn(n.op("Mean", n.conv("x", 4), n.op("GlobalAveragePool", n.conv("x", 4))))


@several(1, Reason.AXES)
def mean_broadcasts_over_channels(n):
    return n.bn(n.op("Mean", n.conv("x", 4), n.conv("x", 1)))


@several(1)
def mean_of_two_bns_in_front_of_a_layer(n):
    return n.conv(n.op("Mean", n.bn("x"), n.bn("x")), 2)


@several(1, Reason.GRAPH_INPUT)
def mean_with_graph_input(n):
    return n.bn(n.op("Mean", n.conv("x", 4), "x", n.conv("x", 4)))


@several(1, Reason.GRAPH_INPUT)
def sum_with_graph_input(n):
    return n.bn(n.op("Sum", n.conv("x", 4), "x", n.conv("x", 4)))


def mask(n):
    return n.input("mask", ["N", 1, 4, 4], TensorProto.BOOL)


@several()
def where_of_two_layers(n):
    return n.bn(n.op("Where", mask(n), n.conv("x", 4), n.conv("x", 4)))


@several(1, Reason.GRAPH_INPUT)
def where_with_graph_input(n):
    return n.bn(n.op("Where", mask(n), n.conv("x", 4), "x"))


@several()
def where_in_front_of_a_layer(n):
    return n.conv(n.op("Where", mask(n), n.bn("x"), n.conv("x", 4)), 2)


@several()
def where_of_constants(n):
    return n.bn(n.op("Where", mask(n), n.random(4, 1, 1), n.random(1, 1, 1)), channels=4)


@several(1, Reason.AXES)
def where_broadcasts_over_channels(n):
    return n.bn(n.op("Where", mask(n), n.conv("x", 4), n.conv("x", 1)))


@several(1, Reason.NOT_FINITE)
def where_the_lowest_number(n):
    t = n.op("Where", mask(n), n.conv("x", 4), n.const(np.float32(-np.inf)))
    return n.bn(n.op("ReduceMax", t, axes=[2, 3]), signs="positive")


@several()
def max_of_two_layers(n):
    return n.bn(n.op("Max", n.conv("x", 4), n.conv("x", 4)), signs="positive")


@several(1, Reason.NEEDS_POSITIVE_SCALE)
def max_needs_a_positive_scale(n):
    return n.bn(n.op("Max", n.conv("x", 4), n.conv("x", 4)))


@several()
def min_of_two_layers(n):
    return n.bn(n.op("Min", n.conv("x", 4), n.conv("x", 4)), signs="positive")


@several(1, Reason.GRAPH_INPUT, Reason.OPAQUE)
def max_with_graph_input(n):
    return n.bn(n.op("Max", n.conv("x", 4), "x"), signs="positive")


def gate(n, t):
    """Squeeze and excite: one factor per channel, computed from the mean of a tensor."""
    squeezed = n.relu(n.conv(n.op("GlobalAveragePool", t), 2))
    return n.op("Sigmoid", n.conv(squeezed, 4))


@several()
def gating_passes_a_scale(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Mul", t, gate(n, "x")), shift=False)


@several()
def gating_passes_a_scale_to_the_other_operand(n):
    return n.bn(n.op("Mul", "x", n.conv("x", 4)), shift=False)


@several(1, Reason.NO_SHIFT)
def gating_refuses_a_shift(n):
    return n.bn(n.op("Mul", n.conv("x", 4), gate(n, "x")), signs="positive")


@several()
def gating_in_front_of_a_layer(n):
    return n.conv(n.op("Mul", n.bn("x", shift=False), gate(n, "x")), 2)


@several()
def gating_of_a_bn_that_the_gate_reads(n):
    t = n.bn("x", shift=False)
    return n.conv(n.op("Mul", t, gate(n, t)), 2)


@several(1, Reason.OPAQUE)
def gating_by_a_sigmoid_of_itself(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Mul", t, n.op("Sigmoid", t)), shift=False)


@several()
def square(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Mul", t, t), **POSITIVE_SCALE)


@several()
def square_in_front_of_a_layer(n):
    t = n.bn("x", shift=False)
    return n.conv(n.op("Mul", t, t), 2)


@several(1, Reason.NEEDS_POSITIVE_SCALE)
def square_has_no_negative_root(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Mul", t, t), shift=False)


@several(1, Reason.NO_SHIFT)
def square_refuses_a_shift(n):
    t = n.bn("x", signs="positive")
    return n.conv(n.op("Mul", t, t), 2)


@several(opset=9)
def compress_9_in_front_of_a_layer(n):
    y = n.op("Compress", n.bn("x"), n.const(CHOSEN), axis=3)
    return n.conv(y, 2, channels=4, rank=4)


@several(1, Reason.AXES)
def compress_of_channels(n):
    return n.bn(n.op("Compress", n.conv("x", 4), n.const(CHOSEN), axis=1), channels=2)


INTO = np.array([[1], [0]])


@several(shape=(2, 4, 4, 4))
def scatter_of_two_layers(n):
    """One writes into what the other has made."""
    return n.bn(n.op("ScatterND", n.conv("x", 4), n.const(INTO), n.conv("x", 4)))


@several(1, Reason.GRAPH_INPUT, shape=(2, 4, 4, 4))
def scatter_into_the_graph_input(n):
    return n.bn(n.op("ScatterND", "x", n.const(INTO), n.conv("x", 4)))


@several()
def the_largest_and_where_they_are(n):
    """A positive scale leaves the indices as they are."""
    values, indices = n.op("TopK", n.conv("x", 4), n.ints(2), outputs=2)
    return n.bn(values, **POSITIVE_SCALE), indices


@several(1, Reason.NO_SHIFT)
def the_largest_and_where_they_are_refuse_a_shift(n):
    values, indices = n.op("TopK", n.conv("x", 4), n.ints(2), outputs=2)
    return n.bn(values, signs="positive"), indices


@several(1, Reason.PRECISION)
def the_largest_of_zeros_are_no_others(n):
    t = n.bn("x", signs=(1, 0), shift=False)
    values, indices = n.op("TopK", t, n.ints(2), outputs=2)
    return n.conv(values, 2), indices


@several()
def div_passes_a_scale_of_its_numerator(n):
    return n.bn(n.op("Div", n.conv("x", 4), n.op("Exp", "x")), shift=False)


@several(1, Reason.NO_SHIFT, Reason.OPAQUE)
def div_refuses_a_shift(n):
    return n.bn(n.op("Div", n.conv("x", 4), n.op("Exp", "x")))


@several()
def div_in_front_of_a_layer(n):
    return n.conv(n.op("Div", n.bn("x", shift=False), n.op("Exp", "x")), 2)


@several(1)
def bn_after_bn_is_merged(n):
    return n.bn(n.bn("x"))


@several()
def bn_after_bn_behind_a_layer(n):
    return n.bn(n.bn(n.conv("x", 3)))


@several()
def bn_after_bn_in_front_of_a_layer(n):
    return n.conv(n.bn(n.bn("x")), 3)


@several(1, Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT)
def bn_alone(n):
    return n.bn("x")


@several()
def max_pool_with_indices_that_nobody_reads(n):
    y, _ = n.op("MaxPool", n.conv("x", 4), outputs=2, kernel_shape=[2, 2])
    return n.bn(y, signs="positive")


@several()
def dropout_with_a_mask_that_nobody_reads(n):
    y, _ = n.op("Dropout", n.conv("x", 4), outputs=2)
    return n.bn(y)


@several(1, Reason.OPAQUE)
def dropout_in_training(n):
    y = n.op("Dropout", n.conv("x", 4), n.const(np.float32(0)), n.const(np.array(True)))
    return n.bn(y)


@several(1, Reason.OPAQUE, Reason.PARAMETERS_NOT_CONSTANT)
def dropout_in_training_computed(n):
    flag = n.input("flag", [], TensorProto.BOOL)
    return n.bn(n.op("Dropout", n.conv("x", 4), n.const(np.float32(0)), flag))


@several()
def prelu_with_a_computed_slope(n):
    slope = n.op("GlobalAveragePool", "x")
    return n.bn(n.op("PRelu", n.conv("x", 4), slope), **POSITIVE_SCALE)


@several()
def prelu_with_a_slope_per_element(n):
    return n.bn(n.op("PRelu", n.conv("x", 4), n.random(4, 4, 4)), **POSITIVE_SCALE)


@several(1, Reason.UNKNOWN_SHAPE, Reason.PARAMETERS_NOT_CONSTANT)
def reshape_by_a_graph_input(n):
    shape = n.input("shape", [4], TensorProto.INT64)
    return n.bn(n.op("Reshape", n.conv("x", 4), shape), channels=4)


@several(1, Reason.PARAMETERS_NOT_CONSTANT)
def resize_by_a_graph_input(n):
    y = n.op("Resize", n.conv("x", 4), "", n.input("scales", [4]))
    return n.bn(y, channels=4)


@several(1, Reason.UNKNOWN_SHAPE)
def squeeze_of_axes_that_may_be_one(n):
    return n.bn(n.op("Squeeze", n.conv("x", 4, kernel=4)), channels=4)


def of_the_batch(n, op, t):
    """Move blocks of positions to the batch, or back, as TensorFlow's atrous convolutions do."""
    turned = n.op(op, n.op("Transpose", t, perm=[1, 0, 2, 3]), blocksize=2)
    return n.op("Transpose", turned, perm=[1, 0, 2, 3])


@several(shape=(2, 6, 8, 8))
def atrous_conv_of_blocks_in_the_batch(n):
    padded = n.op("Pad", n.relu(n.bn("x", **POSITIVE_SCALE)), n.ints(0, 0, 2, 2, 0, 0, 2, 2))
    y = n.conv(of_the_batch(n, "SpaceToDepth", padded), 6, 3, bias=False, group=6)
    whole = of_the_batch(n, "DepthToSpace", y)
    return n.bn(n.op("Slice", whole, n.ints(0, 0), n.ints(8, 8), n.ints(2, 3)))


@several(shape=(2, 6, 8, 8))
def atrous_conv_of_blocks_by_reshape(n):
    """The same as TensorFlow's own nodes write it, with the channels last."""
    t = n.op("Transpose", n.conv("x", 6), perm=[0, 2, 3, 1])
    blocks = n.op(
        "Transpose", n.op("Reshape", t, n.ints(2, 4, 2, 4, 2, 6)), perm=[2, 4, 0, 1, 3, 5]
    )
    small = n.op("Reshape", blocks, n.ints(8, 4, 4, 6))
    y = n.conv(n.op("Transpose", small, perm=[0, 3, 1, 2]), 6, 3, pads=[1] * 4)
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 3, 1]), n.ints(2, 2, 2, 4, 4, 6))
    whole = n.op("Reshape", n.op("Transpose", y, perm=[2, 3, 0, 4, 1, 5]), n.ints(2, 8, 8, 6))
    return n.bn(n.op("Transpose", whole, perm=[0, 3, 1, 2]))


@several(1, Reason.AXES)
def blocks_of_rows_that_become_channels(n):
    y = n.op("Transpose", n.conv("x", 4), perm=[0, 2, 1, 3])
    return n.bn(n.op("Transpose", n.op("DepthToSpace", y, blocksize=2), perm=[0, 2, 1, 3]))


def shuffled(n, t, *order):
    return n.op("Gather", t, n.ints(*order), axis=1)


def bn_of(n, *gamma, shift=0.0, x="x"):
    """A BN of these scales and shifts."""
    zero, one = np.zeros(len(gamma)), np.ones(len(gamma))
    values = (np.array(gamma, float), zero + shift, zero, one)
    return n.op("BatchNormalization", x, *map(n.const, values), epsilon=0.0)


# A channel of zero says nothing of the others, though it stands for a scale of 2^500.
ZEROS = (0, 1, 0, 3)


@several(1, Reason.CONFLICT, Reason.AXES)
def add_of_a_tensor_and_its_channels_in_another_order(n):
    y = bn_of(n, *ZEROS)
    return n.conv(n.op("Add", y, shuffled(n, y, 0, 3, 2, 1)), 2)


@several(1, Reason.CONFLICT, Reason.AXES)
def max_of_a_tensor_and_its_channels_in_another_order(n):
    y = bn_of(n, *ZEROS)
    return n.conv(n.op("Max", y, shuffled(n, y, 0, 3, 2, 1)), 2)


@several(1, Reason.CONFLICT, Reason.AXES)
def add_of_the_parts_of_a_split(n):
    y = bn_of(n, *ZEROS)
    return n.conv(n.op("Add", *n.op("Split", y, outputs=2, axis=1)), 2)


@several(1, Reason.CONFLICT, Reason.AXES)
def depth_to_space_of_unequal_channels(n):
    y = bn_of(n, *ZEROS)
    return n.conv(n.op("DepthToSpace", y, blocksize=2), 2)


@several(1, Reason.AXES)
def tile_of_channels_that_differ_beside_one_of_zero(n):
    return bn_of(n, *ZEROS, x=n.op("Tile", n.conv("x", 2), n.ints(1, 2, 1, 1)))


@several(1, Reason.CONFLICT)
def shifts_that_add_up_only_beside_a_large_one(n):
    """Max wants y and the difference shifted alike, which is 1, 2, 3 and 1 too much."""
    y = bn_of(n, 1, 1, 1, 1, shift=(1e16, 1, 2, 3))
    return n.conv(n.op("Max", n.op("Sub", y, shuffled(n, y, 1, 2, 3, 1)), y), 2)


@several(1, Reason.CONFLICT)
def sub_of_a_tensor_from_itself_takes_no_shift(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Sub", t, t))


@several()
def sub_of_a_tensor_from_itself_passes_a_scale(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Sub", t, t), shift=False)


@several()
def sub_from_itself_swallows_a_shift(n):
    t = n.bn("x")
    return n.conv(n.op("Sub", t, t), 2)


@several()
def sum_of_three_of_one_tensor(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Sum", t, t, t))


@several()
def sum_of_one_tensor_twice_and_another(n):
    t, u = n.conv("x", 4), n.conv("x", 4)
    return n.bn(n.op("Sum", t, u, t))


@several()
def max_of_a_tensor_and_itself(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Max", t, t), signs="positive")


@several(1, Reason.CONFLICT)
def div_of_a_tensor_by_itself_takes_no_scale(n):
    t = n.conv("x", 4)
    return n.bn(n.op("Div", t, t), shift=False)


@several()
def div_by_itself_swallows_a_scale(n):
    t = n.bn("x", shift=False)
    return n.conv(n.op("Div", t, t), 2)


@several(1, Reason.CONFLICT)
def mul_by_a_constant_reached_from_both_sides(n):
    """Max wants its sides shifted alike, and the constant makes another shift of it."""
    y = n.bn("x", signs="positive")
    return n.conv(n.op("Max", n.op("Mul", y, n.random(4, 1, 1)), y), 2)


@several()
def mul_by_a_constant_reached_from_both_sides_alike(n):
    """What Max asks of the second product is what its own operand makes of the shift."""
    y, factor = n.bn("x", signs="positive"), n.values(4, 1, 1)
    return n.conv(n.op("Max", *(n.op("Mul", y, n.const(factor)) for _ in range(2))), 2)


@pytest.mark.parametrize("case", several)
def test_several_tensors(case: Case):
    require_kernel(case.build.__name__.replace("_", "-"))
    runs = case.build not in (reshape_by_a_graph_input, resize_by_a_graph_input)
    case.check(compare=runs)


def test_cast_to_half_and_back():
    """The values between the casts are others than before, rounded to the same number of bits."""
    net = Net(IMAGE)
    half = net.op("Cast", net.conv("x", 4), to=TensorProto.FLOAT16)
    y = net.bn(net.op("Cast", half, to=TensorProto.FLOAT))
    fold_checked(net.model(y), tolerance=5e-3)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "alone"])
@pytest.mark.parametrize("divisor", [[2, 0, 4, 1], [0, 0, 0, 0]], ids=["some", "all"])
def test_a_division_by_zero_stays(divisor, norm):
    """Infinite in one channel, and what it was in the others."""
    net = Net(IMAGE)
    y = net.op("Div", net.conv("x", 4), net.const(np.array(divisor, float).reshape(4, 1, 1)))
    model = net.model(net.bn(y) if norm else y)
    folded, _ = fold_checked(model, kept=int(norm), compare=False)
    assert ops(folded) == ops(model)
    with np.errstate(invalid="ignore"):
        for a, b in zip(run(model, feeds_for(model)), run(folded, feeds_for(model)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("shape", "options"), [pytest.param(*e[1:], id=e[0]) for e in EMPTY])
@pytest.mark.parametrize(
    ("op", "norm", "reason"),
    [("MaxPool", POSITIVE_SCALE, Reason.PADDING), ("AveragePool", {}, Reason.NO_SHIFT)],
)
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_a_window_in_the_padding_passes_nothing(op, norm, reason, shape, options, up):
    """Its largest element is the lowest number, and its mean 0 or none."""
    net = Net(shape, opset=19)
    y = net.op(op, net.conv("x", 4) if up else net.bn("x", **norm), **options)
    y = net.bn(y, **norm) if up else net.conv(y, 2)
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    assert reason in reasons(report)[0], report.lines()


CLIPPED = {
    "a double's own": (np.float64, 0, 1e39),
    "a double's lowest": (np.float64, -1e39, 0),
    "a half's own": (np.float16, 0, 60000),
}


@pytest.mark.parametrize(("dtype", "low", "high"), CLIPPED.values(), ids=CLIPPED)
def test_a_bound_is_one_of_the_type_that_it_clips(dtype, low, high):
    """1e39 is no number of float32, and one of float64."""
    net = Net(())
    x = net.input("t", [2, 4], helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    t = net.op("Gemm", x, net.random(4, 4, dtype=dtype))
    bounds = ("" if v is None else net.const(np.array(v, float), dtype) for v in (low, high))
    y = net.bn(net.op("Clip", t, *bounds), channels=4, signs="positive", shift=False, dtype=dtype)
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


@pytest.mark.parametrize("bounds", [(0, np.nan), (np.nan, FLT_MAX), (0, -1)], ids=str)
def test_a_clip_of_odd_bounds_stays(bounds):
    net = Net(IMAGE)
    clipped = net.op("Clip", net.conv("x", 4), *(net.const(np.float32(b)) for b in bounds))
    _, report = fold_checked(net.model(net.bn(clipped, **POSITIVE_SCALE)), kept=1, compare=False)
    assert Reason.OPAQUE in reasons(report)[0]


@pytest.mark.parametrize(
    ("build", "norm", "reason"),
    [(simple("Sqrt"), SCALE, Reason.NEEDS_POSITIVE_SCALE),
     (pow_by(-0.5), SCALE, Reason.NEEDS_POSITIVE_SCALE),
     (pow_by(np.inf), POSITIVE_SCALE, Reason.OPAQUE)],
)  # fmt: skip
def test_what_makes_numbers_of_positive_ones_only(build, norm, reason):
    net = Net(IMAGE)
    model = net.model(net.conv(build(net, net.bn("x", **norm)), 2))
    _, report = fold_checked(model, kept=1, compare=False)
    assert reason in reasons(report)[0], report.lines()


@pytest.mark.parametrize("op", ["ReduceL2", "LpPool", "GlobalLpPool"])
def test_squares_of_halves_are_not_rescaled(op):
    """Of 200, which a scale of 1 leaves alone, a scale of 2 makes a square beyond 65504."""
    net = Net(())
    x = net.input("t", [2, 4, 6], TensorProto.FLOAT16)
    t = net.bn(x, channels=4, signs="positive", shift=False, dtype=np.float16)
    given = {"ReduceL2": {"axes": [2]}, "LpPool": {"kernel_shape": [6]}}.get(op, {})
    y = net.op(op, t, **given)
    y = net.op("Conv", y, net.random(2, 4, 1, dtype=np.float16))
    report = onnx_bnfold.plan(net.model(y))
    assert Reason.RANGE in reasons(report)[0], report.lines()


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(0,), (2, 1), (1, 1, 1), (1, 0)], ids=str)
def test_a_constant_that_changes_the_shape_is_no_identity(op, shape):
    """x has the shape (1, 1): a constant without elements leaves none, another repeats it."""
    net = Net([1, 1])
    neutral = np.zeros(shape) if op in ("Add", "Sub") else np.ones(shape)
    model = net.model(net.relu(net.op(op, net.relu("x"), net.const(neutral))))
    folded, _ = fold_checked(model)
    assert ops(folded) == ops(model)


@pytest.mark.parametrize("opset", [7, 9])
def test_a_mask_of_floats_takes_no_change(opset):
    """Before opset 10 a Dropout writes its mask in the type of its data."""
    net = Net(IMAGE, opset=opset)
    _, mask = net.op("Dropout", net.conv("x", 4), outputs=2)
    y = net.op("Sigmoid", net.bn(mask, channels=4))
    _, report = fold_checked(net.model(net.conv(y, 2, channels=4, rank=4)), kept=1)
    assert "writes the tensor beside its data" in report.lines()[0]


def test_beside_a_mask_that_is_read_the_data_changes():
    net = Net(IMAGE, opset=9)
    y, mask = net.op("Dropout", net.conv("x", 4), outputs=2)
    fold_checked(net.model(net.bn(y, channels=4), mask))


def test_an_index_out_of_range_is_said():
    net = Net(IMAGE)
    t = net.op("Gather", net.conv("x", 4), net.ints(0, 4), axis=1)
    report = onnx_bnfold.plan(net.model(net.bn(t, channels=2)))
    assert Reason.INCONSISTENT_SHAPES in reasons(report)[0]


def test_zeros_that_a_pad_adds_are_as_they_were():
    """Whatever the other channels are multiplied by."""
    net = Net(IMAGE)
    padded = net.op("Pad", net.bn("x", shift=False), net.ints(0, 0, 0, 0, 0, 4, 0, 0))
    front, zeros = net.op("Split", padded, outputs=2, axis=1)
    fold_checked(net.model(net.conv(front, 2, channels=4), net.op("Sigmoid", zeros)))


@pytest.mark.parametrize("op", ["Slice", "Split"])
def test_a_part_without_elements_changes_nothing(op):
    """Its change, of no elements, once came to the tensor that it is a part of."""
    net = Net((2, 4, 3, 3))
    t = net.conv("x", 4)
    if op == "Slice":
        part = net.op("Slice", t, net.ints(4), net.ints(4), net.ints(1))
    else:
        _, part = net.op("Split", t, net.ints(4, 0), outputs=2, axis=1)
    joined = net.op("Concat", part, net.conv("x", 4), axis=1)
    fold_checked(net.model(net.conv(net.bn(joined, channels=4), 2, channels=4, rank=4)))


@pytest.mark.parametrize("data_is_constant", [True, False])
def test_a_channel_of_gamma_zero_beside_constants_stays(data_is_constant, rng):
    """What it held is taken back as one number, whichever elements are constants."""
    norm = bn("s", "n", 4, rng, dtype=np.float64)
    norm.initializers[0].CopyFrom(tensor("n_scale", np.array([0.0, 0, 1, 1])))
    sides = ["c", "i", "n"] if data_is_constant else ["n", "i", "c"]
    constants = [tensor("c", rng.standard_normal((1, 4))), tensor("i", np.zeros((1, 4), np.int64))]
    if data_is_constant:
        constants[0] = tensor("c", rng.standard_normal((3, 4)))
    parts = join(
        node("Sigmoid", ["x"], ["s"]), norm,
        node("ScatterElements", sides, ["t"], axis=0),
        layer("MatMul", "t", "y", (4, 5), rng, dtype=np.float64),
    )  # fmt: skip
    shape = (1, 4) if data_is_constant else (3, 4)
    given = [*parts.initializers, *constants]
    fold_checked(model_of(parts.nodes, {"x": shape}, ["y"], given, dtype=np.float64), kept=1)
