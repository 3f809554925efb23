"""The original's weights, rounded anew."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from pairs import finish, model, weights

import onnx_bnfold
from onnx_bnfold.check import CheckOptions, check
from onnx_bnfold.check.evaluators import Evaluator
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.noise import RoundedWeights, all_nodes
from onnx_bnfold.check.sessions import Session, Stopwatch
from onnx_bnfold.storage import ModelFile

EVALUATOR = Evaluator("onnxruntime", Stopwatch())


def saved(folder: Path, dtype: str) -> Path:
    # A weight of more elements than the table of multipliers has.
    path = folder / "model.onnx"
    onnx.save(model(weights(dtype, width=96)), path)
    return path


def exact(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def drawn(path: Path, *numbers: int, **options) -> list[dict[str, np.ndarray]]:
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0, **options)
        found = []
        for number in numbers:
            rounded.draw(number)
            found.append({name: array.copy() for name, array in rounded.arrays.items()})
        return found


def is_divided(weight: np.ndarray, array: np.ndarray) -> bool:
    """Whether all of a weight was divided by one number from 1 to 2, up to rounding."""
    live = np.abs(weight) > 1e-3
    r = weight[live].astype("float64") / array[live]
    return bool(
        r.min() > 0.6 and r.max() < 2 and np.ptp(r) <= 2 * np.finfo(weight.dtype).eps * r.max()
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_draw_divides_weights_and_moves_statistics(tmp_path, dtype):
    path = saved(tmp_path, dtype)
    first, second, again = drawn(path, 1, 2, 1)
    for name, weight in exact(path).items():
        assert first[name].dtype == weight.dtype
        np.testing.assert_array_equal(first[name], again[name])
        if name.startswith("var") and dtype != "float16":
            # Stretched, as epsilon is, by a number that is the same in every draw; and moved.
            stretch = first[name].astype("float64") / weight
            assert 1 < stretch.min() <= stretch.max() < 2.25
            assert np.ptp(stretch) <= 3 * np.finfo(dtype).eps * stretch.max()
        elif name.startswith(("mean", "var")):
            moved = np.abs(first[name].astype("float64") - weight)
            assert np.all(moved <= np.finfo(dtype).eps * np.abs(weight.astype("float64")))
            assert 0.2 < np.mean(first[name] != weight) < 0.8
        else:
            assert is_divided(weight, first[name])
        assert np.mean(first[name] != second[name]) > 0.2


def test_what_all_draws_round_alike_is_rounded_otherwise_too(tmp_path):
    # 1e-5 added to variances near 1 loses the same part of a unit everywhere: the error of the
    # original's 300 layers is one-sided, and a fold does not have it.
    rng = np.random.default_rng(0)
    nodes, values, name = [], {}, "x"
    for i in range(300):
        drawn = {n: rng.uniform(0.9, 1.1, 4).astype("float32") for n in ("s", "b", "m", "v")}
        weight = (0.25 * rng.uniform(0.9, 1.1, (4, 4))).astype("float32")
        values |= {f"{n}{i}": value for n, value in {**drawn, "w": weight}.items()}
        nodes.append(node("MatMul", f"{name} w{i}", f"h{i}"))
        name = f"y{i}"
        nodes.append(node("BatchNormalization", f"h{i} s{i} b{i} m{i} v{i}", name))
    original = finish(nodes, values, ("N", 4), outputs=(name,))
    folded, _ = onnx_bnfold.fold(original)
    assert all(check(original, folded, CheckOptions(seed=seed)).holds for seed in range(3))
    path = tmp_path / "model.onnx"
    onnx.save(original, path)
    with ModelFile.open(path) as file:
        epsilons = {
            a.f
            for n in RoundedWeights(file, seed=0).model.graph.node
            for a in n.attribute
            if a.name == "epsilon"
        }
    assert len(epsilons) > 200


def node(op: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output])


def test_weights_that_are_not_divided_are_moved(tmp_path):
    path = saved(tmp_path, "float32")
    (found,) = drawn(path, 0, divide=False)
    for name, weight in exact(path).items():
        assert np.all(np.abs(found[name] - weight) <= np.finfo("f4").eps * np.abs(weight))
        assert 0.1 < np.mean(found[name] != weight) < 0.9


def test_a_session_sees_every_draw(tmp_path):
    path = saved(tmp_path, "float32")
    checked = CheckedModel(path, "the model")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype("float32")}
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0)
        session = rounded.session(EVALUATOR, checked)
        seen = []
        for number in range(3):
            rounded.draw(number)
            seen.append(session.run(feed)["y"])
            anew = rounded.session(EVALUATOR, checked).run(feed)["y"]
            np.testing.assert_array_equal(seen[-1], anew)
    assert not np.array_equal(seen[0], seen[1])


WIDE = "float[2,8,5,5] x"
FLAT = "float[2,5] x"
W, C = {"w": (8, 8, 1, 1)}, {"c": (8,)}
NORM = {"s": (8,), "b": (8,), "m": (8,), "v": (8,)}
# The input, the nodes, the shapes of the initializers, and which of them are divided.
CASES = {
    "Conv, groups": (WIDE, "y = Conv<group=4>(x, w, c)", {"w": (8, 2, 3, 3), **C}, "w c"),
    "Conv, no bias": (WIDE, 'y = Conv(x, w, "")', W, "w"),
    "Conv, bias computed": (WIDE, "d = ReduceSum<keepdims=0>(x, axes) y = Conv(x, w, d)", W, ""),
    "ConvTranspose, groups": (
        *(WIDE, "y = ConvTranspose<group=4>(x, w, c)", {"w": (8, 3, 2, 2), "c": (12,)}, "w c"),
    ),
    "Gemm": (
        *(FLAT, "y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, c)", {"w": (6, 5), "c": (6,)}),
        "w c",
    ),
    "Gemm, a number as bias": (FLAT, "y = Gemm(x, w, c)", {"w": (5, 6), "c": ()}, "w c"),
    "Gemm, a bias per row": (FLAT, "y = Gemm(x, w, c)", {"w": (5, 6), "c": (2, 1)}, "w c"),
    "Gemm, weight on the left": (FLAT, "y = Gemm(w, x, c)", {"w": (7, 2), "c": (5,)}, "w c"),
    "MatMul": (WIDE, "y = MatMul(x, w)", {"w": (5, 6)}, "w"),
    "MatMul by a vector": (WIDE, "y = MatMul(x, w)", {"w": (5,)}, "w"),
    "MatMul, weight on the left": (WIDE, "y = MatMul(w, x)", {"w": (6, 5)}, "w"),
    "BatchNormalization": (WIDE, "y = BatchNormalization(x, s, b, m, v)", NORM, "s b"),
    "BatchNormalization in training mode": (
        WIDE,
        "h, i, j = BatchNormalization<training_mode=1>(x, s, b, m, v) y = Identity(h) e = Neg(j)",
        NORM,
        "s b",
    ),
    "InstanceNormalization": (WIDE, "y = InstanceNormalization(x, s, b)", NORM, "s b"),
    "LayerNormalization": (WIDE, "y = LayerNormalization(x, g)", {"g": (5,)}, "g"),
    "a weight and bias of two layers": (
        *(WIDE, "h = Conv(x, w, c) y = Conv(h, w, c)", {**W, **C}, "w c"),
    ),
    "a bias of two layers": (
        *(WIDE, "h = Conv(x, w, c) y = Conv(h, u, c)", {**W, **C, "u": (8, 8, 1, 1)}, "w c u"),
    ),
    "a weight of a Conv and a Max": (WIDE, "h = Conv(x, w) k = ReduceMax(w) y = Mul(h, k)", W, ""),
    "a weight that is an output": (WIDE, "h = Conv(x, w) e = Identity(w) y = Neg(h)", W, ""),
    "one constant on both sides": (FLAT, "h = MatMul(w, w) y = MatMul(x, h)", {"w": (5, 5)}, ""),
    "behind a Transpose": (
        *(FLAT, "a = Transpose(w) b = Identity(a) y = MatMul(x, b)", {"w": (6, 5)}, "w"),
    ),
    "behind a Cast": (
        *(FLAT, "a = Cast<to=11>(w) b = Cast<to=11>(x) y = MatMul(b, a)", {"w": (5, 5)}, "w"),
    ),
    "behind a Cast to another type for each": (
        FLAT,
        "a = Cast<to=11>(w) b = Cast<to=11>(x) d = MatMul(b, a) y = MatMul(x, w)",
        {"w": (5, 5)},
        "w",
    ),
    "behind a DequantizeLinear": (
        *(FLAT, "a = DequantizeLinear(codes, w) y = MatMul(x, a)", {"w": ()}, "w"),
    ),
    "a scale of a QuantizeLinear too": (
        FLAT,
        "a = DequantizeLinear(codes, w) q = QuantizeLinear(x, w) d = DequantizeLinear(q, w) "
        "y = MatMul(d, a)",
        {"w": ()},
        "",
    ),
    "a Constant": (
        *(FLAT, "w = Constant<value = float[5] {1, 2, 3, 4, 5}>() y = MatMul(x, w)", {}, "w"),
    ),
    "in the branches of an If": (
        WIDE,
        """k = Constant<value = bool {1}>()
        y = If (k) <
          then_branch = t () => (float[] p) { p = Conv(x, w, c) },
          else_branch = e () => (float[] q) { h = Conv(x, w, c) q = Neg(h) }
        >""",
        {**W, **C},
        "w c",
    ),
}


def built(entry: str, nodes: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({entry}) => (float[] y) {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in ("y", "e") if re.search(rf"\b{name} =", nodes)
    )
    arrays = {n: rng.uniform(0.5, 1.5, shape).astype("float32") for n, shape in shapes.items()}
    arrays["codes"] = rng.integers(-9, 9, (5, 5), dtype="int8")
    arrays["axes"] = np.array([0, 2, 3])
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in nodes
    )
    return model


@pytest.mark.parametrize(("entry", "nodes", "shapes", "divided"), CASES.values(), ids=CASES)
def test_a_divided_model_is_the_same_function(tmp_path, entry, nodes, shapes, divided):
    path = tmp_path / "model.onnx"
    onnx.save(built(entry, nodes, shapes), path)
    checked = CheckedModel(path, "the model")
    original = Session(checked)
    feed = {
        spec.name: np.random.default_rng(1).standard_normal(spec.shape).astype("float32")
        for spec in original.inputs
    }
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0)
        session = rounded.session(EVALUATOR, checked)
        rounded.draw(0)
        found = {name for group in rounded.groups for name in group.weights}
        frozen = rounded.frozen()
    assert found == set(divided.split())
    assert sum(node.op_type == "Mul" for node in all_nodes(frozen.graph)) >= bool(divided)
    wanted = original.run(feed)
    for name, array in session.run(feed).items():
        assert np.abs(array - wanted[name]).max() <= 3e-6 * np.abs(wanted[name]).max()
    if divided:
        assert any(np.any(array != wanted[name]) for name, array in session.run(feed).items())


def test_a_local_function_is_divided_in_the_place_of_its_calls(tmp_path):
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[2,5] x) => (float[2,5] y)
        <float[5,5] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
        { h = f.layer(x, w) y = f.layer(h, w) }
        <domain: "f", opset_import: ["" : 17]> layer (x, w) => (y) { y = MatMul(x, w) }
    """)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with ModelFile.open(path) as file:
        assert [group.weights for group in RoundedWeights(file, seed=0).groups] == [("w",)]


def test_norms_of_other_types_than_their_data_are_moved(tmp_path):
    text = """
        <ir_version: 8, opset_import: ["" : 17]> g (float16[2,8] x) => (float16[2,8] y)
        { h = MatMul(x, w) y = BatchNormalization(h, s, b, m, v) }
    """
    model = onnx.parser.parse_model(text)
    values = {n: np.full(8, 1.3, "float32") for n in "sbmv"} | {"w": np.eye(8, dtype="float16")}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0)
        rounded.session(EVALUATOR, CheckedModel(path, "the model"))
        assert [group.weights for group in rounded.groups] == [("w",)]
        assert {"s", "b", "m", "v"} < set(rounded.arrays)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "beside"])
@pytest.mark.parametrize("linked", [False, True], ids=["file", "link"])
def test_large_weights_stay_in_the_file(tmp_path, external, linked):
    path = tmp_path / "model.onnx"
    onnx.save(
        model(weights(width=96)), path, save_as_external_data=external, location="data",
        size_threshold=0,
    )  # fmt: skip
    if linked and not external:  # beside a link, nobody looks for data files
        path = tmp_path / "elsewhere" / "link.onnx"
        path.parent.mkdir()
        path.symlink_to(tmp_path / "model.onnx")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype("float32")}
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0)
        assert rounded.model.ByteSize() < 100_000
        session = rounded.session(EVALUATOR, CheckedModel(path, "the model"))
        rounded.draw(0)
        assert np.isfinite(session.run(feed)["y"]).all()


def test_constants_behind_other_operators_stay_exact(tmp_path):
    # An Add is no carrier: what it makes of a constant may be a shape or a code.
    text = "a = Add(w, w) y = MatMul(x, a)"
    path = tmp_path / "model.onnx"
    onnx.save(built(FLAT, text, {"w": (5, 5)}), path)
    with ModelFile.open(path) as file:
        assert RoundedWeights(file, seed=0).arrays == {}
