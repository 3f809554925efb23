"""Generators of the operators that reduce, pool or resample."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import Case, Draw, Operand, generator


def windows(d: Draw, sizes: list[int], kernel: list[int]) -> dict[str, Any]:
    """Strides, dilations and pads of windows, some of them wholly in the padding."""
    spatial, free = len(kernel), d.chance(0.1)
    auto_pad = d.pick(None, None, None, "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    dilations = d.pick(None, d.integers(1, 3, spatial))
    extents = [(k - 1) * n + 1 for k, n in zip(kernel, dilations or [1] * spatial, strict=True)]
    needed = [max(e - n, 0) for e, n in zip(extents, sizes, strict=True)]
    pads = None
    if auto_pad == "VALID" and any(needed):  # of a negative size onnxruntime makes one window
        auto_pad = None
    if auto_pad in (None, "NOTSET") and (any(needed) or d.chance(0.7)):
        # No kernel takes pads beyond the window, and windows have to fit.
        pads = [d.integer(0, 2 if free else k - 1) for k in (*kernel, *kernel)]
        for axis, (least, k) in enumerate(zip(needed, kernel, strict=True)):
            if pads[axis] + pads[axis + spatial] < least:
                pads[axis] = pads[axis + spatial] = k - 1
                if dilations and 2 * (k - 1) < least:
                    dilations[axis] = 1
    return {
        "kernel_shape": kernel,
        "strides": d.pick(None, d.integers(1, 3, spatial)),
        "dilations": dilations,
        "pads": pads,
        "auto_pad": auto_pad,
    }


def _image(d: Draw) -> tuple[list[int], int]:
    spatial = d.pick(1, 1, 2, 2, 3)
    sizes = [d.integer(1, 5 if spatial < 3 else 3) for _ in range(spatial)]
    return [d.integer(1, 2), d.integer(1, 3), *sizes], spatial


@generator("AveragePool")
def average_pool(d: Draw) -> Case:
    shape, spatial = _image(d)
    return d.node(
        d.data(shape),
        **windows(d, shape[2:], d.integers(1, 3, spatial)),
        ceil_mode=d.pick(None, 0, 1),
        count_include_pad=d.pick(None, 0, 1),
    )


@generator("MaxPool")
def max_pool(d: Draw) -> Case:
    shape, spatial = _image(d)
    return d.node(
        d.data(shape),
        outputs=2 if d.since >= 8 and d.chance(0.1) else 1,
        **windows(d, shape[2:], d.integers(1, 3, spatial)),
        ceil_mode=d.pick(None, 0, 1),
        storage_order=d.pick(None, None, 0, 1),
    )


@generator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(d: Draw) -> Case:
    return d.node(d.data(d.shape(d.pick(2, 3, 3), 5)))


@generator("GlobalLpPool")
def global_lp_pool(d: Draw) -> Case:
    return d.node(d.data(d.shape(d.pick(2, 3, 3), 5)), p=d.pick(None, 1, 2, 3))


@generator("LpPool")
def lp_pool(d: Draw) -> Case:
    shape, spatial = _image(d)
    return d.node(
        d.data(shape),
        **windows(d, shape[2:], d.integers(1, 3, spatial)),
        ceil_mode=d.pick(None, 0, 1),
        p=d.pick(None, 1, 2, 3),
    )


@generator(
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    "ReduceSumSquare",
)
def reduce(d: Draw) -> Case:
    shape = d.shape(0, 5)
    axes = d.axes(len(shape))
    if d.since < 11:
        axes = [a % len(shape) for a in axes]
    return d.node(
        d.data(shape),
        axes=axes if d.chance(0.85) and (axes or "axes" in d._inputs) else None,
        keepdims=d.pick(None, 0, 1),
        noop_with_empty_axes=d.pick(None, 0, 1),
    )


@generator("Upsample")
def upsample(d: Draw) -> Case:
    shape = d.shape(1, 4, sizes=(1, 2, 3, 4))
    scales = [_upscale(d) if d.chance(0.5) else 1.0 for _ in shape]
    mode = d.pick(None, "nearest", "linear")
    if mode == "linear" and d.chance(0.8):  # what onnxruntime has kernels for
        shape, scales = shape[:4], scales[:4]
        scales[:-2] = [1.0] * len(scales[:-2])
    return d.node(d.data(shape), scales=scales, mode=mode)


def _upscale(d: Draw) -> float:
    return d.pick(1.0, 2.0, 3.0, 1.2, 1.5, 1.9)


MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners"),
    *("asymmetric", "tf_crop_and_resize", "tf_half_pixel_for_nn"),
)


@generator("Resize")
def resize(d: Draw) -> Case:
    mode = d.pick(None, *MODES)
    shape = d.shape(1, 4, sizes=(1, 2, 3, 4)) if mode in (None, "nearest") else _image(d)[0]
    if mode == "cubic" and d.chance(0.9):  # onnxruntime has kernels for rank 2 and 4
        shape = [*shape[:2], *shape[2:], *shape[2:]][:4] if d.chance(0.8) else shape[:2]
    rank = len(shape)
    outer = mode not in (None, "nearest") and d.chance(0.9)  # most kernels keep outer axes
    if rank == 2:
        outer = False
    scales = [1.0 if d.chance(0.5) or (outer and a < 2) else _scale(d) for a in range(rank)]
    axes = None
    if d.has("axes") and d.chance(0.3):
        axes = [d.signed(a, rank) for a in d.rng.permutation(rank)[: d.integer(1, rank)].tolist()]
    listed = scales if axes is None else [scales[a] for a in axes]
    lengths = shape if axes is None else [shape[a] for a in axes]
    sizes = None
    if d.has("sizes") and d.chance(0.4):
        sizes = [max(1, int(n * s)) for n, s in zip(lengths, listed, strict=True)]
    coordinates = d.pick(None, *COORDINATES)
    odd = d.chance(0.05)  # settings that suit the mode no kernel takes
    antialias = d.pick(None, 0, 1) if odd or mode in ("linear", "cubic") else d.pick(None, 0)
    may_exclude = odd or mode == "cubic" or (mode == "linear" and antialias)
    crops = coordinates == "tf_crop_and_resize"
    roi = [0.0, *d.rng.uniform(-0.3, 0.4, len(listed) - 1)] + [1.0] * len(listed)
    return d.node(
        d.data(shape),
        mode=mode,
        roi=np.array(roi) if crops else (np.array([]) if d.since == 11 else None),
        scales=np.array([]) if sizes and d.since == 11 else (None if sizes else listed),
        sizes=sizes,
        axes=axes,
        coordinate_transformation_mode=coordinates,
        nearest_mode=d.pick(None, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        antialias=antialias,
        cubic_coeff_a=d.pick(None, None, -0.5),
        exclude_outside=d.pick(None, 0, 1) if may_exclude else d.pick(None, 0),
        extrapolation_value=d.pick(None, 0.0, 1.5),
        keep_aspect_ratio_policy=d.pick(None, None, "stretch", "not_larger", "not_smaller")
        if sizes
        else d.pick(None, None, None, "stretch"),
    )


def _scale(d: Draw) -> float:
    return d.pick(2.0, 0.5, 1.2, 1.5, 0.7, 0.9, 3.0, 1.0)


@generator("GridSample")
def grid_sample(d: Draw) -> Case:
    spatial = 3 if d.since >= 20 and d.chance(0.3) else 2
    sizes = d.integers(1, 4, spatial)
    shape = [d.integer(1, 2), d.integer(1, 3), *sizes]
    modes = ("bilinear", "nearest", "bicubic") if d.since < 20 else ("linear", "nearest", "cubic")
    reach = d.pick(0.9, 1.5, 4.0)
    grid = d.rng.uniform(-reach, reach, [shape[0], *d.integers(1, 4, spatial), spatial])
    return d.node(
        d.data(shape),
        Operand("grid", grid.astype(d.dtype), changes=False),
        mode=d.pick(None, *modes[: 2 if spatial == 3 else 3]),
        padding_mode=d.pick(None, "zeros", "border", "border", "reflection", "reflection"),
        align_corners=d.pick(None, 0, 1),
    )


@generator("RoiAlign")
def roi_align(d: Draw) -> Case:
    images, height, width = d.integer(1, 2), d.integer(1, 5), d.integer(1, 5)
    count, scale = d.integer(1, 3), d.pick(None, 1.0, 0.5, 2.0)
    reach = d.pick(0.0, 0.0, 3.0) / (scale or 1.0)  # beyond the image
    corners = d.rng.uniform(-reach, reach + max(height, width) / (scale or 1.0), [count, 2, 2])
    rois = np.sort(corners, axis=1).reshape(count, 4).astype(d.dtype)
    which = d.rng.integers(0, images, count)
    return d.node(
        d.data([images, d.integer(1, 3), height, width]),
        Operand("rois", rois, changes=False),
        Operand("batch_indices", which, changes=False),
        mode=d.pick(None, "avg", "avg", "max"),
        output_height=d.pick(None, 1, 2, 3),
        output_width=d.pick(None, 1, 2),
        sampling_ratio=d.pick(None, 0, 1, 2),
        spatial_scale=scale,
        coordinate_transformation_mode=d.pick(None, "half_pixel", "output_half_pixel"),
    )


@generator("Col2Im")
def col2im(d: Draw) -> Case:
    spatial = d.pick(2, 2, 2, 3)
    block = d.integers(1, 3 if spatial == 2 else 2, spatial)
    dilations = d.pick(None, None, d.integers(1, 2, spatial))
    strides = d.pick(None, block, d.integers(1, 3, spatial))
    pads = d.pick(None, None, d.integers(0, 2, 2 * spatial))
    extents = [(k - 1) * n + 1 for k, n in zip(block, dilations or [1] * spatial, strict=True)]
    image = [max(e, d.integer(1, 5 if spatial == 2 else 3)) for e in extents]
    if strides == block and d.chance(0.7):  # blocks that lie side by side
        dilations, pads = None, None
        image = [k * d.integer(1, 2) for k in block]
    extents = [(k - 1) * n + 1 for k, n in zip(block, dilations or [1] * spatial, strict=True)]
    steps, ends = strides or [1] * spatial, pads or [0] * 2 * spatial
    counts = [
        (n + ends[axis] + ends[axis + spatial] - extents[axis]) // steps[axis] + 1
        for axis, n in enumerate(image)
    ]
    shape = [d.integer(1, 2), d.integer(1, 3) * int(np.prod(block)), int(np.prod(counts))]
    return d.node(
        d.data(shape),
        image_shape=np.array(image, np.int64),
        block_shape=np.array(block, np.int64),
        dilations=dilations,
        pads=pads,
        strides=strides,
    )


@generator("MaxRoiPool")
def max_roi_pool(d: Draw) -> Case:
    images, height, width = d.integer(1, 2), d.integer(1, 5), d.integer(1, 5)
    count, scale = d.integer(1, 3), d.pick(None, 1.0, 0.5, 2.0)
    reach = d.pick(0, 0, 3)  # beyond the image
    corners = d.rng.integers(-reach, reach + max(height, width), [count, 2, 2]) / (scale or 1.0)
    which = d.rng.integers(0, images, [count, 1])
    rois = np.concatenate([which, np.sort(corners, axis=1).reshape(count, 4)], axis=1)
    return d.node(
        d.data([images, d.integer(1, 3), height, width]),
        Operand("rois", rois.astype(d.dtype), changes=False),
        pooled_shape=d.integers(1, 3, 2),
        spatial_scale=scale,
    )
