"""Folded weights are the exact values rounded once, and no less accurate than the original."""

import itertools
import warnings
from decimal import Decimal, localcontext
from fractions import Fraction
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from reference import evaluate
from support import (
    BFLOAT16,
    Parts,
    bn,
    conv,
    error,
    feeds_for,
    fold_checked,
    initializer,
    join,
    layer,
    model_of,
    node,
    run,
    tensor,
)

import onnx_bnfold
from onnx_bnfold.model.blocks import InMemory
from onnx_bnfold.planning.output_sizes import OutputSize
from onnx_bnfold.reasons import Refused
from onnx_bnfold.rewriting import rounded_products

X = {"x": (2, 3, 5, 6)}
ROUNDED_ONCE = Fraction(1, 2) + Fraction(1, 10**6)  # in units in the last place
SINGLE, HALF, DOUBLE = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)


def named(dtype) -> str:
    return np.dtype(dtype).name


# --- exact arithmetic ----------------------------------------------------------------------------


def exact(value) -> Fraction:
    return Fraction(float(value))


def root(value: Fraction) -> Fraction:
    """The square root to 50 digits."""
    with localcontext() as context:
        context.prec = 60  # Python 3.10 takes no arguments
        return Fraction((Decimal(value.numerator) / Decimal(value.denominator)).sqrt())


def affine(model, y, epsilon=0.01) -> list[tuple[Fraction, Fraction]]:
    """(a, b) of y = a x + b per channel, of the BN whose output is y."""
    scale, shift, mean, var = (
        [exact(v) for v in initializer(model, f"{y}_{role}")]
        for role in ("scale", "B", "mean", "var")
    )
    slopes = [s / root(v + exact(np.float32(epsilon))) for s, v in zip(scale, var, strict=True)]
    return [(a, b - m * a) for a, b, m in zip(slopes, shift, mean, strict=True)]


def then(first, second):
    """The one map that does what both do, one after the other."""
    return [(a2 * a1, a2 * b1 + b2) for (a1, b1), (a2, b2) in zip(first, second, strict=True)]


def ulp(value: Fraction, dtype) -> Fraction:
    """The distance between the numbers of a type around a value."""
    info = ml_dtypes.finfo(dtype)
    exponent = -int(info.nmant)
    magnitude = abs(value)
    power = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** power:
        power -= 1
    return Fraction(2) ** (max(power, int(info.minexp)) + exponent)


def ulps(expected: Fraction, stored, dtype) -> Fraction:
    return abs(exact(stored) - expected) / ulp(expected, dtype)


@pytest.mark.parametrize("number", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BFLOAT16], ids=named)
def test_conv_is_rounded_once(dtype, number, rng):
    names = [*["c", "b"][:number], "y"]
    norms = [bn(a, b, 4, rng, dtype=dtype) for a, b in itertools.pairwise(names)]
    parts = join(conv("x", "c", (4, 3, 2, 2), rng, dtype=dtype), *norms)
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype)
    folded, _ = fold_checked(model, engine=evaluate)
    change = affine(model, "y") if number == 1 else then(affine(model, "b"), affine(model, "y"))
    weight, bias = initializer(model, "c_W"), initializer(model, "c_bias")
    for c, (a, b) in enumerate(change):
        for old, new in zip(weight[c].flat, initializer(folded, "c_W")[c].flat, strict=True):
            assert ulps(a * exact(old), new, dtype) <= ROUNDED_ONCE
        new = initializer(folded, "c_bias")[c]
        assert ulps(a * exact(bias[c]) + b, new, dtype) <= ROUNDED_ONCE


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BFLOAT16], ids=named)
def test_parameters_of_float32_are_not_rounded_on_the_way(dtype, rng):
    """The statistics are float32, the layer is of another type: one rounding, at the end."""
    parts = join(conv("x", "c", (4, 3, 2, 2), rng, dtype=dtype, bias=False), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype, opset=15)
    folded, _ = fold_checked(model, engine=evaluate)
    (bias,) = [t.name for t in folded.graph.initializer if t.name != "c_W"]
    for c, (a, b) in enumerate(affine(model, "y")):
        old, new = initializer(model, "c_W")[c], initializer(folded, "c_W")[c]
        assert all(
            ulps(a * exact(o), n, dtype) <= ROUNDED_ONCE
            for o, n in zip(old.flat, new.flat, strict=True)
        )
        assert ulps(b, initializer(folded, bias)[c], dtype) <= ROUNDED_ONCE


def test_conv_transpose_is_rounded_once(rng):
    weight_shape = (4, 3, 2, 2)  # (C_in, C_out / group, ...)
    linear = layer("ConvTranspose", "x", "c", weight_shape, rng, bias_shape=(6,), group=2)
    parts = join(linear, bn("c", "y", 6, rng))
    model = model_of(parts.nodes, {"x": (2, 4, 3, 3)}, ["y"], parts.initializers)
    folded, _ = fold_checked(model)
    change = affine(model, "y")
    old, new = initializer(model, "c_W"), initializer(folded, "c_W")
    for i in range(4):
        for o in range(3):
            a, _ = change[i // 2 * 3 + o]
            for before, after in zip(old[i, o].flat, new[i, o].flat, strict=True):
                assert ulps(a * exact(before), after, SINGLE) <= ROUNDED_ONCE


def test_gemm_is_rounded_once(rng):
    linear = layer("Gemm", "x", "c", (3, 4), rng, bias_shape=(4,))
    parts = join(linear, bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": (2, 3)}, ["y"], parts.initializers)
    folded, _ = fold_checked(model)
    for c, (a, b) in enumerate(affine(model, "y")):
        for old, new in zip(
            initializer(model, "c_W")[:, c], initializer(folded, "c_W")[:, c], strict=True
        ):
            assert ulps(a * exact(old), new, SINGLE) <= ROUNDED_ONCE
        old, new = initializer(model, "c_bias")[c], initializer(folded, "c_bias")[c]
        assert ulps(a * exact(old) + b, new, SINGLE) <= ROUNDED_ONCE


def test_float64_is_within_a_few_ulps(rng):
    """The arithmetic is float64 itself: each of its few operations rounds."""
    parts = join(
        conv("x", "c", (4, 3, 2, 2), rng, dtype=DOUBLE, bias=False),
        bn("c", "y", 4, rng, dtype=DOUBLE),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=DOUBLE)
    folded, _ = fold_checked(model, engine=evaluate)
    for c, (a, _) in enumerate(affine(model, "y")):
        old, new = initializer(model, "c_W")[c], initializer(folded, "c_W")[c]
        assert all(
            ulps(a * exact(o), n, DOUBLE) <= 4 for o, n in zip(old.flat, new.flat, strict=True)
        )


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=named)
def test_no_rounding_by_way_of_float32(dtype, rng):
    """A detour over float32 rounds to the wrong side about once in 65,000 bfloat16 weights."""
    channels = 600
    parts = join(
        conv("x", "c", (channels, channels, 1, 1), rng, dtype=dtype, bias=False),
        bn("c", "y", channels, rng),
    )
    shapes = {"x": (1, channels, 1, 1)}
    model = model_of(parts.nodes, shapes, ["y"], parts.initializers, dtype=dtype, opset=15)
    folded, _ = onnx_bnfold.fold(model)
    slopes = np.array([float(a) for a, _ in affine(model, "y")])
    # float64 is exact enough: its own error is 1e-13 units of the last place of a short type
    expected = initializer(model, "c_W").astype(DOUBLE) * slopes.reshape(-1, 1, 1, 1)
    stored = initializer(folded, "c_W")
    spacing = 2.0 ** (np.frexp(expected)[1] - 1 - int(ml_dtypes.finfo(dtype).nmant))
    normal = np.abs(expected) >= float(ml_dtypes.finfo(dtype).tiny)
    misses = np.abs(stored.astype(DOUBLE) - expected) / spacing
    assert misses[normal].max() <= 0.5 + 1e-6
    detour = expected.astype(SINGLE).astype(dtype).astype(DOUBLE)
    assert (np.abs(detour - expected) / spacing)[normal].max() > 0.5 + 1e-6, "the test sees nothing"


# --- error against a float64 reference -----------------------------------------------------------

# How the statistics of the BN are drawn: most of them make the original itself lose precision.
STATISTICS = {
    "usual": {},
    "large-mean": {"mean": 1e4},
    "small-variance": {"var": 1e-8},
    "large-variance": {"var": 1e8},
    "large-scale": {"scale": 1e4},
    "large-mean-small-variance": {"mean": 1e2, "var": 1e-4},
}


@pytest.mark.parametrize("case", STATISTICS)
@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm"])
def test_no_less_accurate_than_the_original(op, case, rng):
    """Both are compared with a float64 evaluation of the original."""
    if op == "Conv":
        linear, shapes = conv("x", "c", (8, 16, 3, 3), rng), {"x": (2, 16, 9, 9)}
    else:
        weight = tensor("c_W", rng.standard_normal((64, 8)).astype(np.float32))
        linear, shapes = Parts(node(op, ["x", "c_W"], ["c"]).nodes, [weight]), {"x": (50, 64)}
    parts = join(linear, bn("c", "y", 8, rng, epsilon=1e-10))
    for t in parts.initializers:
        factor = STATISTICS[case].get(t.name.removeprefix("y_"), 1)
        value = np.frombuffer(t.raw_data, np.float32).reshape(t.dims) * np.float32(factor)
        t.CopyFrom(tensor(t.name, value))
    model = model_of(parts.nodes, shapes, ["y"], parts.initializers)
    folded, _ = fold_checked(model, compare=False)
    feeds = feeds_for(model)
    exact_output = evaluate(model, feeds)[0]
    ours, theirs = (error(exact_output, run(m, feeds)[0]) for m in (folded, model))
    assert ours <= 2 * theirs + np.finfo(np.float32).eps


def test_twenty_norms_in_a_row_are_rounded_once(rng):
    """One after another they would round twenty times."""
    names = ["c", *(f"b{i}" for i in range(19)), "y"]
    norms = [bn(a, b, 4, rng, dtype=HALF) for a, b in itertools.pairwise(names)]
    parts = join(conv("x", "c", (4, 3, 2, 2), rng, dtype=HALF), *norms)
    for t in parts.initializers[2:]:  # shifts that do not grow
        if t.name.endswith(("_B", "_mean")):
            t.CopyFrom(tensor(t.name, np.zeros(4, HALF)))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=HALF)
    change = affine(model, names[1])
    for y in names[2:]:
        change = then(change, affine(model, y))
    folded, _ = fold_checked(model, engine=evaluate)
    for c, (a, _) in enumerate(change):
        old, new = initializer(model, "c_W")[c], initializer(folded, "c_W")[c]
        assert all(
            ulps(a * exact(o), n, HALF) <= ROUNDED_ONCE
            for o, n in zip(old.flat, new.flat, strict=True)
        )


@pytest.mark.parametrize("scales", [(100,), (10, 10), (10, 8, 0.5, 10)], ids=str)
def test_a_row_of_large_scales_in_float16(scales, rng):
    """The layer's new output is the last BN's, a tensor that was there: no new range appears."""
    names = ["c", *(f"b{i}" for i in range(len(scales) - 1)), "y"]
    norms = [bn(a, b, 4, rng, dtype=HALF) for a, b in itertools.pairwise(names)]
    for norm, scale in zip(norms, scales, strict=True):
        for t, value in zip(norm.initializers, (scale, 0, 0, 1), strict=True):
            t.CopyFrom(tensor(t.name, np.full(4, value, HALF)))
    parts = join(conv("x", "c", (4, 3, 1, 1), rng, dtype=HALF, bias=False), *norms)
    fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers, dtype=HALF))


def test_the_added_bias_of_a_matmul_has_the_type_of_the_graph(rng):
    weight = tensor("W", rng.standard_normal((3, 4)).astype(HALF))
    linear = Parts(node("MatMul", ["x", "W"], ["c"]).nodes, [weight])
    parts = join(linear, bn("c", "y", 4, rng, dtype=SINGLE, statistics_dtype=DOUBLE))
    model = model_of(parts.nodes, {"x": (2, 3)}, ["y"], parts.initializers, dtype=HALF, opset=15)
    folded, _ = fold_checked(model, engine=evaluate)
    assert {initializer(folded, t.name).dtype for t in folded.graph.initializer} == {HALF}


# --- in blocks -----------------------------------------------------------------------------------


@st.composite
def products(draw):
    """Values, what to multiply them by, the axes one output sums over, and their type."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=5)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from([SINGLE, HALF, DOUBLE, BFLOAT16]))
    # Powers of two: some overflow or vanish in float16, in squares of float32, or in float32.
    spread = draw(st.sampled_from([0, 6, 40, 100, 140]))
    factor_shape = tuple(n if draw(st.booleans()) else 1 for n in shape)
    factor = np.asarray(
        rng.standard_normal(factor_shape) * 2.0 ** rng.integers(-spread, spread + 1)
    )
    values = np.asarray(rng.standard_normal(shape)).astype(dtype)
    zeros = np.asarray(rng.random(shape)) < draw(st.sampled_from([0, 0.5, 1]))
    values = np.where(zeros, np.zeros_like(values), values)
    axes = tuple(axis for axis in range(len(shape)) if draw(st.booleans()))
    return values, factor, axes, helper.np_dtype_to_tensor_dtype(dtype)


def outcome(compute):
    try:
        return compute().tobytes()
    except Refused as refused:
        return refused.refusal


@given(products(), st.integers(1, 50))
@settings(max_examples=400, derandomize=True, deadline=None)
def test_a_product_in_blocks_is_the_whole_product(case, block):
    values, factor, axes, data_type = case
    view = SimpleNamespace(label="Conv 'c'")

    def whole():
        return rounded_products.product(values, factor, data_type, view, sums_over=axes)

    def streamed():
        blocks = rounded_products.product_blocks(
            InMemory(values), values.shape, factor, data_type, view, sums_over=axes
        )
        return np.concatenate([b.copy() for b in blocks])

    wanted = outcome(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnx_bnfold.rewriting.blocked_products.BLOCK", block)
        assert outcome(whole) == wanted
        assert outcome(streamed) == wanted


@given(st.lists(products(), max_size=6))
@settings(max_examples=400, derandomize=True, deadline=None)
def test_many_products_at_once_are_what_each_is_alone(cases):
    view = SimpleNamespace(label="Conv 'c'")
    wanted = [
        rounded_products.Product(values, factor, data_type, view, axes)
        for values, factor, axes, data_type in cases
    ]
    for each, found in zip(wanted, rounded_products.products(wanted), strict=True):
        alone = outcome(each.compute)
        if found is None:  # refused, or without elements
            assert not isinstance(alone, bytes) or not each.values.size
        else:
            assert found.tobytes() == alone


def test_a_product_of_as_many_axes_as_an_array_has_is_made_alone():
    most = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    values, view = np.ones((1,) * (most - 1) + (3,), SINGLE), SimpleNamespace(label="Conv 'c'")
    wanted = rounded_products.Product(
        values, np.full((1,) * most, 2.0), TensorProto.FLOAT, view, (0,)
    )
    assert rounded_products.products([wanted]) == [None]
    np.testing.assert_array_equal(wanted.compute(), 2 * values)


def test_a_product_that_is_refused_leaves_the_others_alone():
    view = SimpleNamespace(label="Conv 'c'")
    values = [1.0, 1e300, np.nan, 2.0]
    wanted = [
        rounded_products.Product(np.full(3, v), rounded_products.ONE, kind, view, (0,))
        for v in values
        for kind in (TensorProto.FLOAT, TensorProto.INT32)
    ]
    found = rounded_products.products(wanted)
    assert [None if each is None else each.tolist() for each in found] == [
        [1.0] * 3, None, None, None, None, None, [2.0] * 3, None
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e22, 1e37])
def test_weights_whose_squares_leave_their_type_are_folded(size, monkeypatch, rng):
    monkeypatch.setattr("onnx_bnfold.rewriting.blocked_products.BLOCK", 10)
    values = rng.uniform(0.5, 1, (8, 9)).astype(SINGLE)
    view, factor = SimpleNamespace(label="Conv 'c'"), np.full((8, 1), size)
    found = rounded_products.product(values, factor, TensorProto.FLOAT, view, (1,))
    np.testing.assert_array_equal(found, (values.astype(DOUBLE) * factor).astype(SINGLE))


def test_dead_channels_are_judged_in_blocks_too(monkeypatch, rng):
    """Their factors are zero, which looks like a loss of precision at first."""
    monkeypatch.setattr("onnx_bnfold.rewriting.blocked_products.BLOCK", 10)
    values = rng.standard_normal((8, 9)).astype(SINGLE)
    values[2] = 0
    factor = rng.standard_normal((8, 1))
    factor[5] = 0
    asked = []

    class Watched(InMemory):
        def read_into(self, start, out):
            asked.append(len(out))
            super().read_into(start, out)

    view, single = SimpleNamespace(label="Conv 'c'"), TensorProto.FLOAT
    blocks = rounded_products.product_blocks(
        Watched(values), (8, 9), factor, single, view, sums_over=(1,)
    )
    folded = np.concatenate([b.copy() for b in blocks]).reshape(8, 9)
    np.testing.assert_array_equal(folded, (values.astype(DOUBLE) * factor).astype(SINGLE))
    assert max(asked) <= 10


@pytest.mark.parametrize("source", [HALF, BFLOAT16, DOUBLE], ids=named)
@pytest.mark.parametrize("target", [SINGLE, HALF, BFLOAT16], ids=named)
def test_a_large_product_is_rounded_to_the_type_that_is_asked_for(source, target, monkeypatch, rng):
    values, view = rng.standard_normal((3, 3)).astype(source), SimpleNamespace(label="Conv 'c'")
    data_type = helper.np_dtype_to_tensor_dtype(target)
    monkeypatch.setattr("onnx_bnfold.rewriting.blocked_products.BLOCK", 4)
    large = rounded_products.product(values, np.asarray(1 / 3), data_type, view)
    assert large.dtype == target
    assert large.tobytes() == (values.astype(DOUBLE) * (1 / 3)).astype(target).tobytes()


def test_a_large_overflow_is_refused_without_a_warning(monkeypatch):
    monkeypatch.setattr("onnx_bnfold.rewriting.blocked_products.BLOCK", 4)
    view = SimpleNamespace(label="Add 'a'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Refused):
            rounded_products.product(
                np.full(9, 1e300), rounded_products.ONE, TensorProto.FLOAT, view
            )


@pytest.mark.parametrize(("bias", "refused"), [(None, True), (1.0, False), (1e-4, True)])
@pytest.mark.filterwarnings("error")
def test_small_factors_need_something_beside_their_sum(bias, refused):
    """Twenty factors of about 1e-6, each off by up to 3e-8, beside a bias or nothing known.

    Those of another channel are all zero, beside which nothing has a size.
    """
    view, factors = SimpleNamespace(label="Conv 'c'"), np.linspace(1, 2, 20) * 1e-6
    factors, size = np.stack([factors, 0 * factors]), np.full((2, 1), 2e-5)
    beside = [] if bias is None else [OutputSize(size, size + bias)]
    arguments = factors, rounded_products.ONE, TensorProto.FLOAT16, view, (1,), lambda: beside
    if refused:
        with pytest.raises(Refused, match="its channel would show it"):
            rounded_products.product(*arguments)
    else:
        rounded_products.product(*arguments)
    [found] = rounded_products.products([rounded_products.Product(*arguments)])
    assert (found is None) == refused
