"""Pooling, resizing and reductions."""

import numpy as np

from .builder import Builder
from .constants import constant

_NORMS = {"ReduceL1": 1.5, "ReduceL2": 1.5, "ReduceSumSquare": 1.5, "ReduceLogSumExp": 0.3}


def _window(b: Builder, x: str) -> dict:
    d, rank = b.draw, b.rank(x) - 2
    b.need(rank >= 1)
    kernel = [d.between(1, 3) for _ in range(rank)]
    extra: dict = {"kernel_shape": kernel}
    if d.chance(0.5):
        extra["strides"] = [d.between(1, 3) for _ in range(rank)]
    padding = d.weighted({"none": 5, "pads": 4, "auto": 1})
    if padding == "pads":
        extra["pads"] = [d.between(0, k - 1) for k in kernel * 2]
    if padding == "auto":
        extra["auto_pad"] = d.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    if b.opset >= 10 and d.chance(0.3):
        extra["ceil_mode"] = d.pick([0, 1])
    return extra


def max_pool(b: Builder, x: str) -> str:
    extra, d = _window(b, x), b.draw
    if b.opset >= 10 and d.chance(0.2):
        extra["dilations"] = [d.between(1, 3) for _ in extra["kernel_shape"]]
    if b.opset >= 8 and d.chance(0.1):
        y = b.add("MaxPool", [x], outputs=2, storage_order=d.pick([0, 1]), **extra)[0]
        b.scope.pool.append(y)
        return y
    return b.one("MaxPool", [x], **extra)


def average_pool(b: Builder, x: str) -> str:
    extra = _window(b, x)
    if b.opset >= 19 and b.draw.chance(0.2):
        extra["dilations"] = [b.draw.between(1, 2) for _ in extra["kernel_shape"]]
    if b.draw.chance(0.5):
        extra["count_include_pad"] = b.draw.pick([0, 1])
    return b.one("AveragePool", [x], **extra)


def global_pool(b: Builder, x: str) -> str:
    b.need(b.rank(x) >= 3)
    op = b.draw.weighted({"GlobalAveragePool": 6, "GlobalMaxPool": 3, "GlobalLpPool": 1})
    extra = {"p": b.draw.pick([1, 2, 3])} if op == "GlobalLpPool" and b.draw.chance(0.7) else {}
    return b.one(op, [x], **extra)


def lp_pool(b: Builder, x: str) -> str:
    d, extra = b.draw, _window(b, x)
    if b.opset < 18:
        extra.pop("ceil_mode", None)
    elif d.chance(0.2):
        extra["dilations"] = [d.between(1, 2) for _ in extra["kernel_shape"]]
    if d.chance(0.7):
        extra["p"] = d.pick([1, 1, 2, 3])
    return b.one("LpPool", [x], **extra)


def cum_sum(b: Builder, x: str) -> str:
    d, rank = b.draw, b.rank(x)
    b.need(b.opset >= 11 and rank >= 1)
    axis = b.axis(rank, d.between(0, rank - 1))
    kind, shape = d.pick([np.int64, np.int32]), d.pick([(), (), (1,)])
    extra = {n: d.pick([0, 1]) for n in ("exclusive", "reverse") if d.chance(0.5)}
    return b.one("CumSum", [x, b.initializer(np.full(shape, axis, kind))], **extra)


def grid_sample(b: Builder, x: str) -> str:
    d, rank = b.draw, b.rank(x)
    b.need(b.opset >= 16 and (rank == 4 or (rank == 5 and b.opset >= 20)))
    newer = b.opset >= 20
    modes = ["linear", "nearest", "cubic"] if newer else ["bilinear", "nearest", "bicubic"]
    extra: dict = {"mode": d.pick(modes[: 3 if rank == 4 else 2])} if d.chance(0.7) else {}
    if d.chance(0.7):
        extra["padding_mode"] = d.pick(["zeros", "border", "border", "reflection"])
    if d.chance(0.5):
        extra["align_corners"] = d.pick([0, 1])
    size = [d.between(1, 3) for _ in range(rank - 2)]
    reach = d.pick([0.9, 1.3])
    grid = d.uniform(-reach, reach, b.shape(x)[0], *size, rank - 2)
    return b.one("GridSample", [x, constant(b, grid, b.type(x), "grid")], **extra)


def roi_align(b: Builder, x: str) -> str:
    d = b.draw
    b.need(b.rank(x) == 4 and b.opset >= 10)
    count = d.between(1, 2)
    low, size = d.uniform(-1, 2, count, 2), d.uniform(1, 4, count, 2)
    regions = constant(b, np.concatenate([low, low + size], axis=1), b.type(x), "regions")
    images = b.integers(*[d.between(0, b.shape(x)[0] - 1) for _ in range(count)])
    extra: dict = {"mode": d.pick(["avg", "max"])} if d.chance(0.5) else {}
    for name in ("output_height", "output_width", "sampling_ratio"):
        if d.chance(0.6):
            extra[name] = d.between(1, 3)
    return b.one("RoiAlign", [x, regions, images], **extra)


def reduce(b: Builder, x: str) -> str:
    d, rank = b.draw, b.rank(x)
    op = d.weighted({"ReduceMean": 4, "ReduceMax": 2, "ReduceMin": 1.5, "ReduceSum": 2} | _NORMS)
    extra = {} if d.chance(0.4) else {"keepdims": d.pick([0, 1])}
    since = 13 if op == "ReduceSum" else 18
    if d.chance(0.1):
        if b.opset >= since and d.chance(0.5):
            extra["noop_with_empty_axes"] = d.pick([0, 1])
            if d.chance(0.5):
                return b.one(op, [x, b.integers()], **extra)
        return b.one(op, [x], **extra)
    space = list(range(2, rank))
    axes = space if space and d.chance(0.5) else d.some(range(rank), d.between(1, min(2, rank)))
    axes = [b.axis(rank, a) for a in axes]
    if b.opset < since:
        return b.one(op, [x], axes=axes, **extra)
    return b.one(op, [x, b.integers(*axes)], **extra)


def _scales(b: Builder, x: str) -> list[float]:
    d, rank = b.draw, b.rank(x)
    scales = [1.0, 1.0] + [d.pick([1.0, 2.0, 2.0, 0.5, 1.5, 3.0]) for _ in range(rank - 2)]
    if d.chance(0.08):
        scales[1] = d.pick([2.0, 1.2, 0.5])
    return scales[:rank]


def upsample(b: Builder, x: str) -> str:
    b.need(b.opset <= 9 and b.rank(x) >= 3)
    scales = [max(1.0, s) for s in _scales(b, x)]
    mode = {} if b.draw.chance(0.3) else {"mode": b.draw.pick(["nearest", "nearest", "linear"])}
    if b.opset < 9:
        return b.one("Upsample", [x], scales=scales, **mode)
    return b.one("Upsample", [x, b.initializer(np.array(scales, np.float32))], **mode)


def resize(b: Builder, x: str) -> str:
    b.need(b.opset >= 10 and b.rank(x) >= 3)
    d, rank = b.draw, b.rank(x)
    mode = d.weighted({"nearest": 5, "linear": 4, "cubic": 1.5 if rank == 4 else 0})
    scales = _scales(b, x)
    if b.opset == 10:
        b.need(mode != "cubic")
        return b.one("Resize", [x, b.initializer(np.array(scales, np.float32))], mode=mode)
    extra: dict = {"mode": mode}
    if d.chance(0.7):
        extra["coordinate_transformation_mode"] = d.weighted(
            {
                "half_pixel": 4,
                "asymmetric": 4,
                "align_corners": 3,
                "pytorch_half_pixel": 2,
                "tf_half_pixel_for_nn": 1 if b.opset < 13 else 0,
                "half_pixel_symmetric": 1 if b.opset >= 19 else 0,
                "tf_crop_and_resize": 1.5,
            }
        )
    if mode == "nearest" and d.chance(0.6):
        extra["nearest_mode"] = d.pick(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    if mode == "cubic":
        extra |= {"cubic_coeff_a": d.pick([-0.75, -0.5]), "exclude_outside": d.pick([0, 1])}
    if b.opset >= 18 and mode != "nearest" and d.chance(0.2):
        extra["antialias"] = 1
    roi = "" if b.opset >= 13 else b.initializer(np.zeros(0, np.float32))
    if extra.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        low, high = d.pick([(0.0, 1.0), (0.2, 0.8), (-0.2, 1.2)])
        beside = [0.0, 0.0], [1.0, 1.0]
        region = beside[0] + [low] * (rank - 2) + beside[1] + [high] * (rank - 2)
        roi = b.initializer(np.array(region, np.float32))
        extra["extrapolation_value"] = d.pick([0.0, 1.0])
    if d.chance(0.35):
        sizes = [max(1, int(n * s)) for n, s in zip(b.shape(x), scales, strict=True)]
        empty = "" if b.opset >= 13 else b.initializer(np.zeros(0, np.float32))
        return b.one("Resize", [x, roi, empty, b.integers(*sizes)], **extra)
    if b.opset >= 18 and d.chance(0.2) and roi == "":
        extra["axes"] = [b.axis(rank, a) for a in range(2, rank)]
        scales = scales[2:]
    return b.one("Resize", [x, roi, b.initializer(np.array(scales, np.float32))], **extra)


WINDOWS = {
    max_pool: 4,
    average_pool: 4,
    global_pool: 3,
    reduce: 7,
    lp_pool: 1.5,
    cum_sum: 1.5,
    grid_sample: 3,
    roi_align: 1.5,
    upsample: 8,
    resize: 4,
}
