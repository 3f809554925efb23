"""A share of the models in every run of the suite, and the judge's own tests."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnx_bnfold
from onnx_bnfold.operators.table import every_entry

from .builder import Builder
from .compare import difference
from .draw import Draw
from .engine import every_node, holds_type
from .findings import read, write
from .interpreter import Interpreter
from .judge import _shows_all, judge, statistics_lie
from .known import FAILS_TODAY
from .models import Case, _feeds, draw_case
from .runtime import run_node, session
from .sabotage import SPOILERS, measure
from .shrink import shrink

SHARE, CHUNK = 480, 60

pytestmark = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32),
    reason="onnxruntime 1.23 ends the process on some of these models; 1.32 does not",
)


@pytest.mark.parametrize("start", range(0, SHARE, CHUNK))
def test_nothing_is_found(start: int) -> None:
    found = {}
    for seed in range(start, start + CHUNK):
        if seed not in FAILS_TODAY:
            verdict = judge(draw_case(seed))
            if verdict.kind is not None:
                found[seed] = f"{verdict.kind}: {verdict.detail[:300]}"
    assert not found


def test_the_models_are_worth_folding() -> None:
    """Most lose a norm, and what keeps the others is not always the same."""
    folded, reasons, operators, number = 0, Counter(), Counter(), 400
    for seed in range(1000, 1000 + number):
        case = draw_case(seed)
        operators.update({n.op_type for n in every_node(case.model)})
        try:
            report = onnx_bnfold.plan(case.model, case.options)
        except onnx_bnfold.BnFoldError:
            continue
        folded += bool(report.folded)
        reasons.update(r.refusal.reason for r in report.kept)
    assert folded > 0.55 * number
    assert len(reasons) >= 10
    assert max(reasons.values()) < 0.4 * reasons.total()
    # Of few opsets, or few shapes.
    rare = {
        *("CausalConvWithState", "Col2Im", "DFT", "DeformConv", "MaxRoiPool", "STFT", "Scatter"),
        "Upsample",
    }
    assert every_entry().keys() - rare <= operators.keys()


def test_a_seed_is_a_model() -> None:
    for seed in (1, 2, 3):
        one, other = draw_case(seed), draw_case(seed)
        assert one.model.SerializeToString() == other.model.SerializeToString()
        assert one.options == other.options
        for a, b in zip(one.feeds, other.feeds, strict=True):
            assert all(np.array_equal(a[n], b[n]) for n in a)


def _case(text: str, *shape: int, storage: str = "memory") -> Case:
    model = onnx.parser.parse_model(text)
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return Case(model, onnx_bnfold.Options(), (feed,), storage)


CONV_NORM = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2,2,3,3] x) => (float[2,2,3,3] y)
    <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[2] s = {1.5, 0.5}, float[2] b = {0.0, 1.0},
     float[2] m = {0.1, 0.2}, float[2] v = {1.0, 2.0}>
    { t = Conv (x, w) y = BatchNormalization (t, s, b, m, v) }
"""


def _sabotaged(monkeypatch, change) -> None:
    fold = onnx_bnfold.fold

    def folded(model, options):
        made, report = fold(model, options)
        return change(model, made, report) or made, report

    monkeypatch.setattr(onnx_bnfold, "fold", folded)


def _scaled(name: str, factor: float, channel: int = 0):
    def change(_, made, __):
        tensor = next(t for t in made.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array[channel] *= factor
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def _added_norm(model, made, _):
    made.graph.node.insert(0, model.graph.node[1])
    made.graph.node[0].output[0] = "unread"
    made.graph.node[0].input[0] = "x"
    made.graph.initializer.extend(t for t in model.graph.initializer if t.name in "sbmv")


def _renamed_output(_, made, __):
    made.graph.output[0].name = made.graph.node[-1].output[0] = "z"


def _touched_input(model, _, __):
    model.doc_string = "touched"


def _annotated(_, made, __, name="w", step=0.1):
    made.graph.initializer.append(numpy_helper.from_array(np.float32(step), "step"))
    annotation = made.graph.quantization_annotation.add(tensor_name=name)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="step")


def _unsorted(_, made, __):
    made.graph.node.add(op_type="Relu", input=["nothing"], output=["unread"])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_scaled("w", 1.01), "wrong"),
        (_scaled("w", 1 + 2e-5, 1), "precision"),
        (_scaled("w", np.inf), "not finite in other places"),
        (_added_norm, "report"),
        (_renamed_output, "signature"),
        (_touched_input, "input model modified"),
        (_unsorted, "unloadable"),
    ],
)
def test_the_judge_finds(monkeypatch, change, kind: str) -> None:
    case = _case(CONV_NORM, 2, 2, 3, 3)
    assert judge(case).kind is None
    _sabotaged(monkeypatch, change)
    assert judge(case).kind == kind


def test_buffers_of_misread_sizes() -> None:
    """onnxruntime takes the Slice for as long as x, and plans the last Conv to write into it."""
    text = """
        <ir_version: 4, opset_import: ["" : 10]>
        g (float[N,1,4] x) => (float[1,4,N] z)
        <float[1,1,1] w = {2.0}, float[1] s = {0.5}, float[1] b = {0.0}, float[1] v = {1.0},
         int64[3] k = {0,0,0}, int64[3] l = {1,1,4}, int64[1,1,4] i = {0,0,0,0}>
        {
            c = Conv (x, w) t = BatchNormalization (c, s, b, b, v) u = Slice (t, k, l)
            d = Scatter (t, i, u) y = Conv (d, w) z = Transpose <perm = [1, 2, 0]> (y)
        }
    """
    case = _case(text, 4, 1, 4)
    assert judge(case).kind is None
    folded, _ = onnx_bnfold.fold(case.model)
    with pytest.raises(Exception, match="re-use buffer"):
        session(folded).run(None, dict(case.feeds[0]))


def test_the_norms_of_a_function_count_once_for_each_call(monkeypatch) -> None:
    """Of two calls, inlined, one norm goes: four are executed before and three behind it."""
    constant = "Constant <value = float[2] {%s}> ()"
    text = f"""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2,2,3,3] x) => (float[2,2,3,3] y) {{ t = local.Block (x) y = local.Block (t) }}
        <domain: "local", opset_import: ["" : 17]>
        Block (x) => (y) {{
            s = {constant % "1.5, 0.5"} b = {constant % "0.1, 0.2"} v = {constant % "1.0, 2.0"}
            n = BatchNormalization (x, s, b, b, v)
            t = Tanh (n)
            y = BatchNormalization (t, s, b, b, v)
        }}
    """
    case = _case(text, 2, 2, 3, 3)
    assert judge(case).kind is None
    assert judge(case).folded == 1
    _sabotaged(monkeypatch, lambda model, made, report: model)
    verdict = judge(case)
    assert (verdict.kind, verdict.detail) == ("more norms", "4 executed, then 4")


def test_the_judge_finds_an_exception(monkeypatch) -> None:
    def broken(model, options):
        raise AssertionError

    monkeypatch.setattr(onnx_bnfold, "fold", broken)
    assert judge(_case(CONV_NORM, 2, 2, 3, 3)).kind == "exception AssertionError"


def test_the_judge_finds_a_stale_annotation(monkeypatch) -> None:
    case = _case(CONV_NORM, 2, 2, 3, 3)
    _annotated(None, case.model, None)
    assert judge(case).kind is None
    _sabotaged(monkeypatch, _annotated)
    assert judge(case).kind == "stale annotation"


def test_an_annotation_of_rounding_errors_is_not_stale() -> None:
    """What is left of 1e7 is a few units, which a fold makes anew."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[3,2] x) => (float[3,1] y)
        <float[2,1] w = {0.71, 0.29}, float[1] s = {2.9}, float[1] b = {0.0},
         float[1] m = {7.97e6}, float[1] v = {7e5}>
        { t = MatMul (x, w) u = Add (t, b) y = BatchNormalization (u, s, b, m, v) }
    """
    case = _case(text, 3, 2)
    x = np.float32([1e7, 3e6]) + np.float32([[1, 3], [-2, 5], [7, -9]])
    case = replace(case, feeds=({"x": x},))
    _annotated(None, case.model, None, "y", 1e-4)
    verdict = judge(case)
    assert (verdict.kind, verdict.folded) == (None, 1)


def test_what_onnxruntime_refuses_by_inference_is_not_inferred_from_the_checker() -> None:
    """The shape that is said of the weight hides that of the Squeeze, which inference misreads."""
    text = """
        <ir_version: 10, opset_import: ["" : 10]>
        g (float[1,1,4,1,2] x) => (float[?,?] y, float[?,?,?,?,?] w)
        <float[1] s = {-0.9}, float[1] b = {0.5}, float[1] v = {0.8},
         float[1,1,1,1,1] w = {-0.8}, float[1,4] c = {1, 2, 3, 4}>
        {
            t = BatchNormalization (x, s, b, b, v) u = Conv (t, w)
            z = Squeeze <axes = [1, 0, 3]> (u) y = MatMul (c, z)
        }
    """
    verdict = judge(_case(text, 1, 1, 4, 1, 2))
    assert (verdict.kind, verdict.folded) == (None, 1)
    assert verdict.skipped


@pytest.mark.parametrize("storage", ["file", "external", "scattered"])
def test_the_judge_finds_what_files_alone_do(monkeypatch, storage: str) -> None:
    """Fold in memory is not what it should be, and fold from file to file is."""
    case = _case(CONV_NORM, 2, 2, 3, 3, storage=storage)
    assert judge(case).kind is None
    _sabotaged(monkeypatch, _scaled("w", 1 + 1e-6))
    assert judge(case).kind == "another in memory"


def test_of_spoilt_folds_most_are_found() -> None:
    """Those that are not are of half types, or of models whose own rounding is as large."""
    fates = measure(range(50_000, 50_012), lambda line: None)
    of_all = sum((fates[name] for name in SPOILERS if name in fates), Counter())
    assert of_all.total() > 25
    assert of_all["found"] > 0.75 * of_all.total()


def test_a_small_channel_does_not_hide_beside_a_large_one(monkeypatch) -> None:
    text = CONV_NORM.replace("{1.5, 0.5}", "{1e4, 1e-3}").replace("{0.0, 1.0}", "{0.0, 0.0}")
    _sabotaged(monkeypatch, _scaled("w", 1.01, 1))
    assert judge(_case(text, 2, 2, 3, 3)).kind == "wrong"


def _told(text: str, x: np.ndarray, found: np.ndarray, expected: np.ndarray | None = None):
    """What the comparison says of other outputs of a model than its own, or than these."""
    model, feed = onnx.parser.parse_model(text), {"x": x}
    if expected is None:
        expected = session(model).run(None, feed)[0]
    doubt = difference(model, model, feed, [expected], [found])
    return doubt and doubt.kind


@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_what_does_not_fit_in_a_concat_is_not_judged(kind, dtype) -> None:
    """onnxruntime leaves out what is empty; the Mul makes three channels of what is left."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g ({kind}[N,2,2] x) => ({kind}[2,3,2] y)
        <{kind}[2,1,2] c = {{1, 2, 3, 4}}, {kind}[3,1] s = {{1, 2, 3}},
         {kind}[3,1,1] w = {{1, 2, 3}}>
        {{ t = Concat <axis = 1> (x, c) u = Mul (t, s) y = ConvTranspose <group = 3> (u, w) }}
    """
    feeds = tuple({"x": np.ones((n, 2, 2), dtype)} for n in (2, 0))
    verdict = judge(Case(onnx.parser.parse_model(text), onnx_bnfold.Options(), feeds))
    assert (verdict.kind, verdict.skipped, verdict.affine) == (None, None, 1)


def test_an_image_of_one_element_is_all_rounding_when_it_is_normalised() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,%d] x) => (float[1,2,%d] y)
        <float[2] s = {17.0, -36.0}, float[2] b = {-2.0, 0.9}>
        { y = InstanceNormalization (x, s, b) }
    """
    one = np.float32([120.937, 80.4177]).reshape(1, 2, 1)
    bias = np.float32([-2, 0.9]).reshape(1, 2, 1)
    assert _told(text % (1, 1), one, bias + 0.02) is None
    assert _told(text % (1, 1), one, bias + 20) is not None
    many = one + np.linspace(-9, 9, 8, dtype=np.float32)
    exact = session(onnx.parser.parse_model(text % (8, 8))).run(None, {"x": many})[0]
    assert _told(text % (8, 8), many, exact * np.float32(1.01)) is not None


def test_a_nearly_constant_image_of_float64_is_normalised_in_float64() -> None:
    """In float32 its mean would leave nothing of it, and the fold would be blamed."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (double[2,2,8] x) => (double[2,2,8] y)
        <double[2] s = {0.5, 2.0}, double[2] b = {100.0, 200.0}, double[2] z = {0.0, 0.0}>
        { t = InstanceNormalization (x, s, b) y = BatchNormalization (t, s, z, b, s) }
    """
    x = 1000 + np.random.default_rng(0).standard_normal((2, 2, 8)) / 4
    case = Case(onnx.parser.parse_model(text), onnx_bnfold.Options(), ({"x": x},))
    verdict = judge(case)
    assert (verdict.kind, verdict.folded) == (None, 1)


def test_what_is_unloadable_when_it_is_frozen_is_no_fault_of_the_fold(monkeypatch) -> None:
    """As long as the Reshape can be overridden, nobody misreads the rank of the ConvTranspose."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,3,1] x, int64[3] k) => (float[1,4,4] y)
        <int64[3] k = {1, 3, 3}, int64[3] r = {1, 1, 2},
         float[3,4,1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
        { t = Reshape (x, k) u = ConvTranspose <output_shape = [2]> (t, w) y = Tile (u, r) }
    """
    frozen = onnx_bnfold.Options(freeze_initializers=True)
    verdict = judge(replace(_case(text, 1, 3, 3, 1), options=frozen))
    assert (verdict.kind, verdict.skipped) == (None, None)
    _sabotaged(monkeypatch, _unsorted)
    assert judge(replace(_case(CONV_NORM, 2, 2, 3, 3), options=frozen)).kind == "unloadable"


@pytest.mark.parametrize(
    ("op", "size"),
    [("Relu (t)", 1), ("HardSigmoid <alpha = 4.0> (t)", 4), ("Where (c, z, t)", 1)],
)
def test_what_a_relu_cuts_off_counts_where_it_is_taken_back_behind_it(op, size) -> None:
    """A clamp with a constant does what the Relu did, and the Conv makes up for the constant."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,8] x) => (float[1,2,8] y)
        <bool c = {{1}}, float z = {{0}}, float[2,2,1] w = {{1.0, 2.0, 3.0, 4.0}},
         float[2] h = {{-8.0, -9.0}},
         float[2] s = {{1.0, 1.0}}, float[2] m = {{0.0, 0.0}}>
        {{ t = BatchNormalization (x, s, h, m, s) u = {op} y = Conv (u, w) }}
    """
    x = np.random.default_rng(0).standard_normal((1, 2, 8)).astype(np.float32)
    nothing = np.zeros_like(x)
    for error, kind in ((5e-6, None), (1e-4, "precision"), (1e-2, "wrong")):
        assert _told(text, x, nothing + np.float32(size * error), nothing) == kind


@pytest.mark.parametrize(
    ("op", "found", "kind"),
    [
        ("Relu", 1, None),
        ("Relu", 50, "precision"),
        ("Reciprocal", -50, None),
        ("Reciprocal", np.inf, None),
        ("local.Turned", -50, None),
        ("local.Power", -50, None),
    ],
)
def test_what_a_fold_may_add_reaches_a_bend_or_a_pole_that_a_unit_does_not(op, found, kind):
    """What is left of 1 is -2 with an error of 0.06 and more, of which 64 times is allowed."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[1,1] x) => (float[1,1] y)
        <float c = {{-1}}, float w = {{1e6}}>
        {{ t = Add (x, c) u = Mul (t, w) y = {op} (u) }}
        <domain: "local", opset_import: ["" : 17]>
        Turned (v) => (r) {{ r = Reciprocal (v) }}
        <domain: "local", opset_import: ["" : 17]>
        Power (v) => (r) {{ e = Constant <value_float = -1.0> () r = Pow (v, e) }}
    """
    x = np.float32([[1 - 2e-6]])
    assert _told(text, x, np.float32([[found]])) == kind


def test_far_from_a_pole_a_reciprocal_is_judged() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1] x) => (float[1,1] y)
        <float c = {-1}>
        { t = Add (x, c) y = Reciprocal (t) }
    """
    x = np.float32([[1.5]])
    assert _told(text, x, np.float32([[2.00001]])) is None
    assert _told(text, x, np.float32([[2.001]])) == "precision"


@pytest.mark.parametrize(("size", "kind"), [(1e-6, None), (1e-3, "precision")])
def test_near_a_pole_a_small_value_is_as_coarse_as_its_channel(size: float, kind) -> None:
    """A shift costs a few units of the channel's largest value, and what is left may be 0."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,8] x) => (float[1,1,8] y)
        <float[1] s = {1.0}, float[1] b = {0.0}, float[1] v = {1.0}>
        { t = BatchNormalization (x, s, b, b, v) y = Reciprocal (t) }
    """
    x = np.full((1, 1, 8), 4, np.float32)
    x[..., 0] = size
    y = 1 / (x + np.float32(4e-7))
    y[..., 0] *= np.float32(1.01)
    assert _told(text, x, y) == kind
    assert _told(text, x, y * np.float32(1.01)) is not None


@pytest.mark.parametrize("op", ["Sqrt (u)", "Pow (u, e)"])
def test_what_is_not_negative_has_a_root_whatever_is_added_to_it(op: str) -> None:
    """A Max with a constant does what the second Relu did; what it cuts off is behind a root."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,8] x) => (float[1,1,8] y)
        <float e = {{0.5}}, float[1] s = {{1.0}}, float[1] b = {{76.0}}, float[1] m = {{152.0}}>
        {{
            u = Relu (x) r = {op} t = BatchNormalization (r, s, b, m, s)
            c = Relu (t) a = GlobalAveragePool (c) y = Add (c, a)
        }}
    """
    x = np.full((1, 1, 8), -2, np.float32)
    nothing = np.zeros_like(x)
    assert _told(text, x, nothing + np.float32(8e-6), nothing) is None
    assert _told(text, x, nothing + np.float32(8), nothing) is not None
    assert _told(text, x, nothing + np.float32(np.nan), nothing) is not None


def test_what_is_infinite_whatever_the_noise_stays_so() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2] x) => (float[1,2] y)
        <float[2] c = {1, 2}>
        { t = Mul (x, c) y = %s (t) }
    """
    x = np.float32([[np.inf, 3]])
    told = [_told(text % "Neg", x, np.float32([y])) for y in ([-np.inf, -6], [-5, -6])]
    assert told == [None, "overflow"]  # of one function: it is for its type, if for anything
    zero = np.float32([[0, 3]])
    assert _told(text % "Reciprocal", zero, np.float32([[1e30, 1 / 6]])) is None


def test_what_float16_cannot_hold_is_nothing_to_be_kept() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float16[1,2] x) => (float16[1,2] y)
        <float16 w = {16384}>
        { t = Mul (x, w) u = Neg (t) y = Div (u, w) }
    """
    for size, kind in ((60000, None), (30000, "overflow")):
        x = np.float16([[1, size]])
        assert _told(text, x, np.float16([[-1, -np.inf]]), expected=-x) == kind


def test_the_maximum_of_nan_alone_is_not_asked_for() -> None:
    """onnxruntime says the lowest number of the type, whatever is in front or behind."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,2] x) => (float[1,2,1] y)
        <float c = {2}>
        { t = GlobalMaxPool (x) y = Div (t, c) }
    """
    for op in ("GlobalMaxPool", "MaxPool <kernel_shape = [2]>"):
        of = text.replace("GlobalMaxPool", op)
        x = np.float32([[[np.nan, np.nan], [4, np.nan]]])
        lowest = np.finfo(np.float32).min
        assert _told(of, x, np.float32([[[lowest], [2]]])) is None
        assert _told(of, x, np.float32([[[lowest], [3]]])) == "wrong"


def test_a_window_larger_than_its_image_is_not_asked_for() -> None:
    """The specification makes nothing of it, onnxruntime a mean with what is not there."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,N,3] x) => (float[1,1,H,W] y)
        <float c = {1}>
        { t = Add (x, c) y = AveragePool <kernel_shape = [3, 3], count_include_pad = 1> (t) }
    """
    for size, kind in ((3, "wrong"), (2, None)):
        x = np.random.default_rng(0).standard_normal((1, 1, size, 3)).astype(np.float32)
        assert _told(text, x, x[:, :, :1, :1]) == kind


def test_the_mean_of_nothing_is_not_asked_for() -> None:
    """Of an empty batch onnxruntime says 0, whatever is in front; ONNX says nothing."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2,3,3] x) => (float[1,1,1,1] y)
        <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[1] s = {1.5}, float[1] b = {1.0},
         float[1] m = {0.1}, float[1] v = {1.0}>
        { t = Conv (x, w) r = ReduceMean (t) y = BatchNormalization (r, s, b, m, v) }
    """
    case = _case(text, 2, 2, 3, 3)
    nothing = {"x": np.zeros((0, 2, 3, 3), np.float32)}
    verdict = judge(replace(case, feeds=(*case.feeds, nothing)))
    assert (verdict.kind, verdict.folded) == (None, 1)


def test_small_values_are_as_coarse_as_large_ones_of_their_channel() -> None:
    """The rows at the border are a small bias, and the others large."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,6,6] x) => (float[1,2,8,8] y)
        <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {0.5, 0.25}>
        { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }
    """
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32) * 1e4
    (y,) = session(onnx.parser.parse_model(text)).run(None, {"x": x})
    border = (slice(None), slice(None), 0)
    for error, kind in ((1e-3, None), (1, "precision")):
        found = y.copy()
        found[border] += np.float32(error)
        assert _told(text, x, found) == kind
    found = y.copy()
    found[:, 0] += np.float32(1)
    assert _told(text, x, found) == "precision"


def test_statistics_in_float32_are_as_coarse_for_float64() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 21]>
        g (double[1,2,6] x) => (double[1,2,6] y)
        <double[2] s = {1.0, 2.0}, double[2] b = {0.0, 1.0}>
        { y = GroupNormalization <num_groups = 2> (x, s, b) }
    """
    x = np.random.default_rng(0).standard_normal((1, 2, 6))
    (y,) = Interpreter(21).model(onnx.parser.parse_model(text), {"x": x})
    assert _told(text, x, y.array * (1 + 2e-7), y.array) is None
    assert _told(text, x, y.array * 1.001, y.array) is not None


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_every_output_is_of_float64_or_said_to_be_approximate(direction: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 1, 2), "w": (1, 2, 2), "r": (1, 2, 2)}
    feeds = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    node = onnx.helper.make_node("RNN", [*"xwr"], ["y", "h"], hidden_size=2, direction=direction)
    interpreter = Interpreter(17, double=True)
    env = {n: interpreter.held(a, exact=True) for n, a in feeds.items()}
    for t in interpreter.node(node, env):
        is_single = np.array_equal(t.array, t.array.astype(np.float32))
        assert is_single == interpreter.approximate


@pytest.mark.parametrize(("gap", "kind"), [(1e-6, None), (1e-3, "wrong")])
@pytest.mark.parametrize(
    ("op", "output"),
    [
        ("y = ArgMax <axis = 1, keepdims = 0> (x)", "int64[1] y"),
        ("h = Hardmax <axis = 1> (x) y = Cast <to = 7> (h)", "int64[1,3] y"),
        ("k = Constant <value = int64[1] {1}> () v, y = TopK <axis = 1> (x, k)", "int64[1,1] y"),
    ],
)
def test_of_nearly_equal_values_either_may_be_the_largest(op, output, gap, kind) -> None:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3] x) => ({output}) {{ {op} }}
    """
    x = np.float32([[1, 2, 2 + gap]])
    (y,) = session(onnx.parser.parse_model(text)).run(None, {"x": x[:, [0, 2, 1]]})
    assert _told(text, x, y) == kind


def _magnified(_, made, __):
    """Multiply what the last node makes by 64, and divide by it."""
    made.graph.initializer.append(numpy_helper.from_array(np.float16(64), "k"))
    made.graph.node[-1].output[0] = "small"
    made.graph.node.add(op_type="Mul", input=["small", "k"], output=["large"])
    made.graph.node.add(op_type="Div", input=["large", "k"], output=["y"])


@pytest.mark.parametrize(("scale", "variance", "is_found"), [(25600, 5e5, True), (15360, 1, False)])
def test_who_is_told_that_there_is_room_may_use_it(monkeypatch, scale, variance, is_found) -> None:
    """A variance of 1 says that the input is small, which is a lie."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float16[2,2,3,3] x) => (float16[2,2,3,3] y)
        <float16[2,2,1,1] w = {{24576, 24576, 24576, 24576}}, float16[2] s = {{{scale}, {scale}}},
         float16[2] b = {{0, 0}}, float[2] m = {{0, 0}}, float[2] v = {{{variance}, {variance}}}>
        {{ t = Conv (x, w) y = BatchNormalization (t, s, b, m, v) }}
    """
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float16)
    case = Case(onnx.parser.parse_model(text), onnx_bnfold.Options(), ({"x": x},))
    assert judge(case).kind is None
    with monkeypatch.context() as patch:
        _sabotaged(patch, _magnified)
        assert (judge(case).kind == "overflow") == is_found
    _sabotaged(monkeypatch, _scaled("w", np.inf))
    assert judge(case).kind == "not finite in other places"


@pytest.mark.parametrize(("saturate", "is_measured"), [("", True), ("<saturate = 0>", False)])
def test_ranges_that_onnxruntime_cannot_measure_are_not_asked_for(saturate, is_measured) -> None:
    """It knows `saturate` of a CastLike as long as it does not make a Cast of it."""
    text = f"""
        <ir_version: 9, opset_import: ["" : 19, "local" : 1]>
        g (float[2,2,3,3] x) => (float[2,2,3,3] y) {{ t = local.F (x) y = Relu (t) }}
        <domain: "local", opset_import: ["" : 19]>
        F (x) => (y) {{ c = Constant <value = float[1] {{0}}> () y = CastLike {saturate} (x, c) }}
    """
    case = _case(text, 2, 2, 3, 3, storage="file")
    case = replace(case, options=onnx_bnfold.Options(equalize=True), measured=True)
    assert _shows_all(case.model) == is_measured
    assert judge(case).kind is None


SCAN = "Scan <num_scan_inputs = 1, body = b (float[3] p) => (float[3] q) { q = Relu (p) }> (x)"


@pytest.mark.parametrize(("op", "batch"), [("Relu (x)", 0), ("CumSum (x, k)", 2), (SCAN, 2)])
def test_what_ends_onnxruntime_is_fed_no_empty_batch(op: str, batch: int) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y) <int64 k = {{1}}> {{ y = {op} }}
    """)
    b = Builder(Draw(0), 17, 8, np.dtype(np.float32))
    b.input("x", np.ones((1, 3), np.float32))
    b.draw.chance, b.draw.between = lambda probability: True, lambda low, high: 2
    _, second = _feeds(b, model, {"x": ["N", 3]})
    assert second["x"].shape == (batch, 3)


@pytest.mark.parametrize(("spread", "lies"), [(1, False), (0.03, True)])
def test_a_norm_may_say_too_much_of_its_output_alone(spread: float, lies: bool) -> None:
    """Its mean is as large as its input, and all but nothing is left of that."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,8] x) => (float[1,1,8] y)
        <float[1] s = {1.0}, float[1] b = {0.0}, float[1] m = {1.0}, float[1] v = {1.0}>
        { y = BatchNormalization (x, s, b, m, v) }
    """
    x = 1 + spread * np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 1, 8)
    assert statistics_lie(onnx.parser.parse_model(text), {"x": x}) == lies


def test_a_function_of_the_name_of_a_norm_states_nothing() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2,2,3,3] x) => (float[2,2,3,3] y) { y = local.BatchNormalization (x) }
        <domain: "local", opset_import: ["" : 17]>
        BatchNormalization (x) => (y) { y = Relu (x) }
    """
    case = _case(text, 2, 2, 3, 3)
    assert not statistics_lie(case.model, case.feeds[0])


def test_a_finding_becomes_small() -> None:
    """What is asked for is a model with a Relu: nothing else stays."""
    case = next(
        c
        for c in (draw_case(seed) for seed in range(100))
        if len(c.model.graph.node) > 5
        and any(n.op_type == "Relu" for n in c.model.graph.node)
        and not holds_type(c.model, onnx.TensorProto.BFLOAT16)  # of which onnxruntime has none
    )
    small = shrink(case, lambda c: any(n.op_type == "Relu" for n in c.model.graph.node), seconds=20)
    assert [n.op_type for n in small.model.graph.node] == ["Relu"]
    assert small.options == onnx_bnfold.Options()
    session(small.model).run(None, dict(small.feeds[0]))


def test_a_finding_is_read_again(monkeypatch, tmp_path) -> None:
    case = _case(CONV_NORM, 2, 2, 3, 3)
    _sabotaged(monkeypatch, _scaled("w", 1.01))
    write(tmp_path, 7, case, judge(case), seconds=1)
    ((name, again),) = read(tmp_path)
    assert name == "wrong_7"
    assert again.options == case.options
    assert judge(again).kind == "wrong"


@pytest.mark.parametrize(
    ("op", "attributes", "weight"),
    [
        ("Conv", {"pads": [1, 0, 0, 1], "strides": [2, 1], "group": 2}, (4, 2, 2, 2)),
        ("Conv", {"auto_pad": "SAME_LOWER", "dilations": [1, 1]}, (3, 4, 2, 3)),
        ("ConvTranspose", {"pads": [1, 0, 0, 1], "strides": [2, 1], "group": 2}, (4, 2, 3, 2)),
        ("ConvTranspose", {"output_shape": [9, 6], "strides": [2, 1]}, (4, 3, 3, 2)),
        ("AveragePool", {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "ceil_mode": 1}, None),
        ("GlobalAveragePool", {}, None),
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], "strides": [2, 2]}, None),
        ("LeakyRelu", {"alpha": -0.3}, None),
        ("PRelu", {}, (4, 1, 1)),
        ("Selu", {}, None),
        ("HardSwish", {}, None),
        ("Erf", {}, None),
        ("Resize", {"mode": "linear"}, None),
    ],
)
def test_float64_agrees_with_onnxruntime(op: str, attributes: dict, weight) -> None:
    """Where onnxruntime has float32 alone, the interpreter has float64: the two agree."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 4, 5, 5)).astype(np.float32)}
    inputs = ["x"]
    if weight is not None:
        feeds["w"] = rng.standard_normal(weight).astype(np.float32)
        inputs.append("w")
    if op == "Resize":
        feeds["scales"] = np.array([1, 1, 2, 1.5], np.float32)
        inputs += ["", "scales"]
    node = onnx.helper.make_node(op, inputs, ["y"], **attributes)
    (single,) = run_node(node, feeds, 18)
    interpreter = Interpreter(18, double=True)
    env = {n: interpreter.held(a, exact=True) for n, a in feeds.items()}
    (double,) = interpreter.node(node, env)
    assert not interpreter.approximate or op == "Resize"
    np.testing.assert_allclose(double.array, single, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(double.array, single) or op in ("MaxPool",)


def test_the_interpreter_agrees_with_onnxruntime() -> None:
    """Bodies and functions included: the same nodes, one by one and as a whole."""
    compared = 0
    for seed in range(2000, 2080):
        case = draw_case(seed)
        if holds_type(case.model, 10) or holds_type(case.model, 16):
            continue
        try:
            expected = session(case.model).run(None, dict(case.feeds[0]))
        except Exception:
            continue
        compared += _is_nested(case)
        interpreter = Interpreter(case.model.opset_import[0].version, case.model.functions)
        found = [t.array for t in interpreter.model(case.model, case.feeds[0])]
        assert difference(case.model, case.model, case.feeds[0], expected, found) is None, seed
    assert compared >= 3


def _is_nested(case: Case) -> bool:
    kinds = {n.op_type for n in every_node(case.model)}
    return bool(kinds & {"If", "Loop", "Scan"} or case.model.functions)
