"""Generators of the linear layers and of BatchNormalization, which take changes into constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .cases import Case, Draw, Operand, generator
from .pooling import windows


@generator("Conv")
def conv(d: Draw) -> Case:
    spatial, group = d.pick(1, 2, 2, 3), d.pick(1, 1, 2, 3)
    inner, outer = d.integer(1, 2), d.integer(1, 2)
    kernel = d.integers(1, 3 if spatial < 3 else 2, spatial)
    sizes = [d.integer(1, 5 if spatial < 3 else 3) for _ in range(spatial)]
    settings = windows(d, sizes, kernel)
    settings["kernel_shape"] = d.pick(None, kernel)
    bias = [d.constant([outer * group])] if d.chance(0.6) else []
    return d.node(
        d.data([d.integer(1, 2), inner * group, *sizes]),
        d.constant([outer * group, inner, *kernel]),
        *bias,
        group=group if group > 1 else d.pick(None, 1),
        **settings,
    )


@generator("ConvTranspose")
def conv_transpose(d: Draw) -> Case:
    spatial, group = d.pick(1, 2, 2, 3), d.pick(1, 1, 2, 3)
    inner, outer = d.integer(1, 2), d.integer(1, 2)
    kernel = d.integers(1, 3 if spatial < 3 else 2, spatial)
    if d.chance(0.3):
        kernel = [1] * spatial
    sizes = [d.integer(1, 3) for _ in range(spatial)]
    settings = windows(d, sizes, kernel)
    settings["kernel_shape"] = d.pick(None, kernel)
    bias = [d.constant([outer * group])] if d.chance(0.6) else []
    strides = settings["strides"] or [1] * spatial
    room = settings["dilations"] or strides if d.chance(0.1) else strides
    exact = [s * n + d.integer(0, 1) for s, n in zip(strides, sizes, strict=True)]
    if d.chance(0.4):  # what it gives up at the border
        exact = [d.integer(1, n) for n in exact]
    return d.node(
        d.data([d.integer(1, 2), inner * group, *sizes]),
        d.constant([inner * group, outer, *kernel]),
        *bias,
        group=group if group > 1 else d.pick(None, 1),
        output_padding=d.pick(None, None, [d.integer(0, n - 1) for n in room]),
        output_shape=d.pick(None, None, None, None, exact),
        **settings,
    )


@generator("DeformConv")
def deform_conv(d: Draw) -> Case:
    """Offsets of any size, most of them computed at run time; onnxruntime knows two axes only."""
    spatial, group, offset_group = d.pick(1, 2, 2, 2, 2, 2, 3), d.pick(1, 1, 2, 3), d.pick(1, 1, 2)
    inner, outer = d.integer(1, 2) * offset_group, d.integer(1, 2)
    batch, kernel = d.integer(1, 2), d.integers(1, 2, spatial)
    sizes = d.integers(1, 4, spatial)
    strides, dilations = d.integers(1, 2, spatial), d.integers(1, 2, spatial)
    pads = [0] * 2 * spatial if d.chance(0.5) else d.integers(0, 2, 2 * spatial)
    out = []
    for axis, (size, k) in enumerate(zip(sizes, kernel, strict=True)):
        room = size + pads[axis] + pads[axis + spatial] - (k - 1) * dilations[axis] - 1
        if room < 0:
            pads[axis] -= room
        out.append(max(room, 0) // strides[axis] + 1)
    taps = offset_group * int(np.prod(kernel))
    moves, weighs = [batch, taps * spatial, *out], [batch, taps, *out]
    offset = d.pick(0.0, 0.4, 1.0, 1.0, 3.0) * d.rng.standard_normal(moves)
    if d.chance(0.3):
        offset = np.round(offset)
    mask = d.pick(
        None, None, np.ones(weighs), np.full(weighs, 0.5), d.rng.standard_normal(weighs),
        d.rng.uniform(0, 1, weighs),
    )  # fmt: skip
    bias = [Operand(""), d.constant([outer * group])] if d.chance(0.6) else []
    case = d.node(
        d.data([batch, inner * group, *sizes]),
        d.constant([outer * group, inner, *kernel]),
        *bias,
        offset=offset,
        mask=mask,
        group=group if group > 1 else d.pick(None, 1),
        offset_group=offset_group if offset_group > 1 else d.pick(None, 1),
        kernel_shape=d.pick(None, kernel),
        strides=strides if max(strides) > 1 else d.pick(None, strides),
        dilations=dilations if max(dilations) > 1 else d.pick(None, dilations),
        pads=pads if any(pads) else d.pick(None, pads),
    )
    given = [o.name for o in case.operands if o.name in ("offset", "mask")]
    return replace(case, run_time=frozenset(name for name in given if d.chance(0.7)))


@generator("CausalConvWithState")
def causal_conv(d: Draw) -> Case:
    batch, channels, taps = d.integer(1, 2), d.integer(1, 4), d.integer(1, 4)
    bias = [d.constant([channels])] if d.chance(0.6) else []
    state = d.rng.standard_normal([batch, channels, taps - 1])
    given = d.chance(0.3)
    case = d.node(
        d.data([batch, channels, d.integer(1, 5)]),
        d.constant([channels, 1, taps]),
        *bias,
        outputs=2,
        past_state=state if given else None,
        activation=d.pick(None, None, "none", "none", "silu", "swish"),
    )
    return replace(case, run_time=frozenset(("past_state",))) if given else case


def _sizes(d: Draw) -> list[int]:
    """Rows, inner size and columns; often equal, so that one may be taken for another."""
    return [d.integer(2, 4)] * 3 if d.chance(0.4) else d.integers(1, 4, 3)


@generator("Gemm")
def gemm(d: Draw) -> Case:
    rows, inner, columns = _sizes(d)
    flip_a, flip_b = d.pick(None, 0, 1), d.pick(None, 0, 1)
    shapes: list[list[int]] = [[], [1], [columns], [1, columns], [rows, 1], [rows, columns]]
    bias = [d.constant(d.pick(*shapes))] if d.since < 11 or d.chance(0.75) else []
    return d.node(
        d.data([inner, rows] if flip_a else [rows, inner]),
        d.constant([columns, inner] if flip_b else [inner, columns]),
        *bias,
        transA=flip_a,
        transB=flip_b,
        alpha=d.pick(None, 1.0, 0.5, -2.0, 0.0),
        beta=d.pick(None, 1.0, 0.25, -1.5, 0.0),
    )


@generator("MatMul")
def matmul(d: Draw) -> Case:
    rows, inner, columns = _sizes(d)
    batch = d.shape(0, 2, sizes=(1, 2))
    other = d.operand_shape(batch) if d.chance(0.25) else []
    left, right = [*batch, rows, inner], [*other, inner, columns]
    if d.chance(0.08):
        left = [inner]
    if d.chance(0.08):
        right = [inner]
    if d.chance(0.5):
        return d.node(d.data(left), d.constant(right))
    left, right = [*other, rows, inner], [*batch, inner, columns]
    return d.node(d.constant(left), d.data(right))


@generator("Einsum")
def einsum(d: Draw) -> Case:
    """Two operands over a few letters: summed, made, kept by both, read by one alone."""
    letters = list(d.pick("abcd", "ijkl", "nCHW", "zyxa"))
    d.rng.shuffle(letters)
    letters = letters[: d.integer(1, 4)]
    kinds = ("summed", "made", "data", "data", "shared", "lost")
    roles = {letter: d.pick(*kinds) for letter in letters}
    # A letter of both has one size, which nobody stretches: of 1, onnxruntime would.
    sizes = {each: d.integer(1 if roles[each] in ("made", "data") else 2, 4) for each in letters}
    data = [letter for letter in letters if roles[letter] != "made"]
    constant = [letter for letter in letters if roles[letter] != "data"]
    constant = [letter for letter in constant if roles[letter] != "lost" or d.chance(0.5)]
    out = [letter for letter in letters if roles[letter] not in ("summed", "lost")]
    for each in (data, constant, out):
        d.rng.shuffle(each)
    if d.chance(0.05) and data:
        data.append(data[0])  # a diagonal
    shapes = [[sizes[letter] for letter in each] for each in (data, constant)]
    terms = ["".join(each) for each in (data, constant, out)]
    if d.chance(0.3):
        hidden = d.integers(2, 3, d.integer(0, 2))
        place = d.integer(0, len(data))
        terms[0] = terms[0][:place] + "..." + terms[0][place:]
        shapes[0][place:place] = hidden
        terms[2] = terms[2] + "..." if d.chance(0.5) else "..." + terms[2]
        if d.chance(0.1):
            terms[1], shapes[1] = "..." + terms[1], [*hidden, *shapes[1]]
    operands = [d.data(shapes[0]), d.constant(shapes[1])]
    flip = d.chance(0.5)
    if flip:
        operands.reverse()
        terms[:2] = terms[1::-1]
    if d.chance(0.05):
        operands, terms = [d.data(shapes[0])], [terms[1 if flip else 0], terms[2]]
    *read, written = terms
    arrow = d.pick("->", " -> ")
    equation = d.pick(",", ", ").join(read) + ("" if d.chance(0.15) else arrow + written)
    return d.node(*operands, equation=equation)


@generator("InstanceNormalization")
def instance_normalization(d: Draw) -> Case:
    shape = d.integers(1, 3, d.integer(3, 5))  # onnxruntime does not survive one without elements
    channels = shape[1:2]
    return d.node(
        d.data(shape),
        d.constant(channels),
        d.constant(channels),
        epsilon=d.pick(None, 1e-3, 0.1),
    )


@generator("GroupNormalization")
def group_normalization(d: Draw) -> Case:
    groups, each = d.integer(1, 3), d.integer(1, 3)
    shape = [d.integer(1, 3), groups * each, *d.integers(1, 3, d.integer(1, 3))]
    channels = shape[1:2] if d.since >= 21 else [groups]
    return d.node(
        d.data(shape),
        d.constant(channels),
        d.constant(channels),
        num_groups=groups,
        epsilon=d.pick(None, 1e-3, 0.1),
        stash_type=d.pick(None, 1),
    )


@generator("LayerNormalization")
def layer_normalization(d: Draw) -> Case:
    shape = d.integers(1, 4, d.integer(1, 4))
    axis = d.pick(None, *range(-len(shape), len(shape)))
    normalised = shape[-1 if axis is None else axis :]
    bias = [d.constant(normalised)] if d.chance(0.6) else []
    return d.node(
        d.data(shape),
        d.constant(normalised),
        *bias,
        outputs=d.pick(1, 1, 2, 3),
        axis=axis,
        epsilon=d.pick(None, 1e-3, 0.1),
        stash_type=d.pick(None, 1),
    )


@generator("RMSNormalization")
def rms_normalization(d: Draw) -> Case:
    shape = d.integers(1, 4, d.integer(1, 4))
    axis = d.pick(None, *range(-len(shape), len(shape)))
    normalised = shape[-1 if axis is None else axis :]
    return d.node(
        d.data(shape),
        d.constant(d.pick(normalised, normalised, d.operand_shape(shape))),
        axis=axis,
        epsilon=d.pick(None, 1e-3, 0.1),
        stash_type=d.pick(None, 1),
    )


@generator("BatchNormalization")
def batch_normalization(d: Draw) -> Case:
    shape = d.shape(d.pick(1, 2, 2, 2), 5)
    spatial = d.pick(None, None, None, 0, 1)
    channels = shape[1:] if d.has("spatial") and spatial == 0 else [*shape[1:2], 1][:1]

    def parameter(name: str, values: np.ndarray) -> Operand:
        return Operand(name, np.asarray(values, d.dtype))

    variance = d.rng.uniform(0.1, 2, channels) * 10.0 ** d.pick(0, 0, 0, -6, 4)
    return d.node(
        d.data(shape),
        parameter("gamma", d.rng.standard_normal(channels)),
        parameter("beta", d.rng.standard_normal(channels)),
        parameter("mean", d.rng.standard_normal(channels)),
        parameter("variance", variance),
        epsilon=d.pick(None, 1e-3, 0.1, 0.0),
        momentum=d.pick(None, 0.5),
        spatial=spatial,
        training_mode=d.pick(None, None, 0),
    )


@generator("STFT")
def stft(d: Draw) -> Case:
    """Its window is its weight; the others are parameters."""
    length, parts = d.integer(1, 8), d.pick(1, 1, 2)
    taps = d.integer(1, length)
    return d.node(
        d.data([d.integer(1, 2), length, parts]),
        Operand("frame_step", np.array(d.integer(1, 3), np.int64), changes=False),
        d.constant([taps]) if d.chance(0.9) else Operand(""),
        frame_length=d.pick(None, taps),
        onesided=d.pick(None, 0, 1) if parts == 1 else 0,
    )
