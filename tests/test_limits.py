"""What a re-parametrised tensor that stays may become."""

import numpy as np
import pytest
from support import bn, conv, fold_checked, join, model_of, node, reasons

from onnx_bnfold import Options, Reason

X = {"x": ["N", 4, 6, 6]}


def stream(rng, scale):
    """A residual stream that a BN, a ReLU and a Conv read, and that goes on."""
    norm = bn("a", "n", 4, rng, positive=True)
    values = norm.initializers[0]
    factor = np.array([scale, 1, 1, 1])
    gamma = (np.frombuffer(values.raw_data, np.float32) * factor).astype(np.float32)
    values.raw_data = gamma.tobytes()
    return join(
        conv("x", "a", (4, 4, 1, 1), rng), norm, node("Relu", ["n"], ["r"]),
        conv("r", "c", (4, 4, 1, 1), rng),
        conv("a", "d", (4, 4, 1, 1), rng), node("Add", ["c", "d"], ["y"]),
    )  # fmt: skip


def model(rng, scale=1.0):
    parts = stream(rng, scale)
    return model_of(parts.nodes, X, ["y"], parts.initializers)


def test_a_stream_is_shifted_in_float(rng):
    fold_checked(model(rng))


@pytest.mark.parametrize("profile", ["fp16", "int8"])
def test_profiles_keep_what_they_must(profile, rng):
    """int8 leaves every range alone; fp16 takes an ordinary shift and refuses a large one."""
    m = model(rng, scale=1 if profile == "int8" else 1e-3)
    _, report = fold_checked(m, kept=1, options=Options(profile=profile))
    assert reasons(report)[0] & {Reason.RANGE, Reason.PRECISION}


def test_int8_folds_what_makes_no_new_range(rng):
    parts = join(conv("x", "a", (4, 4, 3, 3), rng), bn("a", "y", 4, rng))
    fold_checked(
        model_of(parts.nodes, X, ["y"], parts.initializers), options=Options(profile="int8")
    )


def test_a_gamma_close_to_zero_is_not_divided_into_a_stream(rng):
    _, report = fold_checked(model(rng, scale=1e-5), kept=1)
    assert Reason.PRECISION in reasons(report)[0]


@pytest.mark.parametrize(("bound", "kept"), [(1.01, 1), (1e6, 0)])
def test_max_rescale(bound, kept, rng):
    """An identity BN beside a Conv can only go by rescaling what both add up to."""
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), node("Relu", ["a"], ["r"]),
        conv("r", "b", (4, 4, 3, 3), rng, pads=[1] * 4), bn("r", "n", 4, rng, positive=True),
        node("Add", ["b", "n"], ["s"]), node("Relu", ["s"], ["t"]),
        conv("t", "y", (4, 4, 3, 3), rng, pads=[1] * 4),
    )  # fmt: skip
    m = model_of(parts.nodes, X, ["y"], parts.initializers)
    _, report = fold_checked(m, kept=kept, options=Options(max_rescale=bound))
    if kept:
        assert Reason.RANGE in reasons(report)[0]


@pytest.mark.parametrize(("variance", "kept"), [(1.0, 0), (1e-12, 1)])
def test_a_mean_that_dwarfs_what_is_left_is_subtracted_by_the_norm(variance, kept, rng):
    """A constant channel: the norm's difference is exact, a Conv's sum of products is not."""
    norm = bn("r", "n", 4, rng)
    norm.initializers[2].raw_data = np.full(4, 2, np.float32).tobytes()
    norm.initializers[3].raw_data = np.full(4, variance, np.float32).tobytes()
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), node("Relu", ["a"], ["r"]), norm,
        conv("n", "y", (4, 4, 1, 1), rng),
    )  # fmt: skip
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=kept)
    if kept:
        assert Reason.PRECISION in reasons(report)[0]
