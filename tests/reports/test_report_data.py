"""The report of a fold as data: figures, records, layers, and the schema they keep to."""

import dataclasses
import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from reporting import HOSTILE, SCHEMA, half, hostile, report_of
from support import bn, conv, join, layer, model_of, node, tensor

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.check import CheckOptions, CheckResult
from onnx_bnfold.check import results as check_results
from onnx_bnfold.report import Rescaled
from onnx_bnfold.reports import changes, data, figures, layers, nodes

jsonschema = pytest.importorskip("jsonschema")

X = {"x": ("N", 3, 5, 6)}


def validate(report, part: str = "") -> None:
    schema = {**SCHEMA, "$ref": part} if part else SCHEMA
    if part:
        schema = {"$schema": SCHEMA["$schema"], "$ref": part, "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(report)


def plain(report) -> dict:
    """What a reader of the file gets."""
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


# --- the schema -----------------------------------------------------------------------------


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


DATACLASSES = {
    "": data.FoldReport,
    "file": data.File,
    "figures": figures.Figures,
    "node": nodes.Node,
    "taker": nodes.Taker,
    "layer": layers.Layer,
    "changes": changes.Changes,
    "changed_node": changes.ChangedNode,
    "initializer": changes.Initializer,
    "rescaled": Rescaled,
    "check": CheckResult,
    "check_report": data.CheckReport,
    "numerics": check_results.Numerics,
    "difference": check_results.Difference,
    "first_difference": check_results.FirstDifference,
    "input": check_results.InputUsed,
    "accuracy": check_results.Accuracy,
    "latency": check_results.Latency,
    "latency_mode": check_results.LatencyMode,
    "timing": check_results.Timing,
    "quantized": check_results.Quantized,
    "int8_output": check_results.Int8Output,
    "int8_range": check_results.Int8Range,
}
RECORDS = ("node_record", "attempt", "form_cost")  # made of a Record and what it holds


@pytest.mark.parametrize(("name", "kind"), DATACLASSES.items(), ids=DATACLASSES)
def test_the_schema_knows_every_field(name, kind):
    part = SCHEMA["$defs"][name] if name else SCHEMA
    fields = {field.name for field in dataclasses.fields(kind)}
    assert set(part["properties"]) == set(part["required"]) == fields
    assert part["additionalProperties"] is False


def test_the_schema_knows_what_became_of_a_node(tmp_path, rng):
    gone, kept = plain(report_of(half(rng), tmp_path))["batch_normalizations"]
    options = Options(standalone="mul-add")
    *_, written = plain(report_of(half(rng), tmp_path, options))["batch_normalizations"]
    for name, found in (
        *zip(RECORDS, (gone, kept["tried"][0], written["form_cost"]), strict=True),
        ("node_record", kept),
    ):
        part = SCHEMA["$defs"][name]
        assert list(part["properties"]) == part["required"] == list(found)
        assert part["additionalProperties"] is False


def test_the_schema_defines_nothing_else():
    assert set(SCHEMA["$defs"]) == {*DATACLASSES, *RECORDS} - {""}


CASES = {
    "plain": (Options(), None),
    "checked": (Options(), CheckOptions(sets=1, draws=2)),
    "with latency": (Options(), CheckOptions(sets=1, draws=2, latency=True, runs=3, warm_up=1)),
    "failed": (Options(), CheckOptions(sets=1, draws=2, rtol=0, atol=0)),
    "standalone": (Options(standalone="mul-add"), None),
    "keep": (Options(keep=("",)), None),
}


@pytest.mark.parametrize(("options", "checked"), CASES.values(), ids=CASES)
def test_reports_keep_to_the_schema(options, checked, tmp_path, rng):
    report = plain(report_of(half(rng), tmp_path, options, checked))
    validate(report)
    if checked is not None:
        validate(report["check"], "#/$defs/check")


def test_a_report_of_hostile_names_keeps_to_the_schema(tmp_path, rng):
    report = plain(report_of(hostile(rng), tmp_path))
    validate(report)
    names = {norm["name"] for norm in report["batch_normalizations"]}
    assert {f"{name}bn{i}" for i, name in enumerate(HOSTILE)} <= names


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema_version"], 2),
        (["before", "nodes"], "many"),
        (["batch_normalizations", 0, "status"], "gone"),
        (["source", 0, "sha256"], "no"),
        (["extra"], 1),
    ],
    ids=lambda value: str(value),
)
def test_the_schema_refuses(path, value, tmp_path, rng):
    report = plain(report_of(half(rng), tmp_path))
    place = report
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(report)


# --- what is in it --------------------------------------------------------------------------


def test_the_same_fold_gives_the_same_report(tmp_path, rng):
    model = half(rng)
    first = plain(report_of(model, tmp_path))
    assert plain(report_of(model, tmp_path)) == first


def test_no_path_of_the_machine(tmp_path, rng):
    assert str(tmp_path) not in json.dumps(plain(report_of(half(rng), tmp_path)))


def test_files(tmp_path, rng):
    found = plain(report_of(half(rng), tmp_path))
    for role, name in (("source", "m.onnx"), ("result", "f.onnx")):
        content = (tmp_path / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert found[role] == [{"name": name, "bytes": len(content), "sha256": sha256}]


def test_data_files(tmp_path, rng):
    more = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    found = plain(report_of(half(rng), tmp_path, **more))
    assert [file["name"] for file in found["source"]] == ["m.onnx", "w.bin"]
    model, weights = found["result"]
    assert model["name"] == "f.onnx"
    content = (tmp_path / weights["name"]).read_bytes()
    assert weights["sha256"] == hashlib.sha256(content).hexdigest()


def test_figures(tmp_path, rng):
    found = report_of(half(rng), tmp_path)
    assert dataclasses.asdict(found.before) == {
        "nodes": 6,
        "batch_normalizations": 2,
        "parameters": 4 * 27 + 4 + 2 * 16,
        "parameter_bytes": 4 * (4 * 27 + 4 + 2 * 16),
        "multiply_adds": 4 * 3 * 4 * 27 + 2 * 4 * 3 * 4,
        "multiplicative_depth": 4,  # Conv, BN, BN, GlobalAveragePool
        "non_polynomial": 1,
        "unknown": None,
    }
    assert (found.after.nodes, found.after.batch_normalizations) == (5, 1)
    assert found.after.parameters == found.before.parameters - 16
    assert found.after.multiply_adds == found.before.multiply_adds - 48
    assert found.after.multiplicative_depth == 3


def test_records(tmp_path, rng):
    gone, kept = plain(report_of(half(rng), tmp_path))["batch_normalizations"]
    assert gone["status"] == "folded"
    assert gone["producer"] == {"op": "Conv", "name": "n_c", "graph": ""}
    assert [c["op"] for c in gone["consumers"]] == ["Sigmoid"]
    (taker,) = gone["taken_by"]
    assert (taker["name"], taker["scale"], taker["shift"], taker["is_behind"]) == (
        "n_c", True, True, False,
    )  # fmt: skip
    assert (kept["status"], kept["reason"], kept["written_as"]) == (
        "kept", "opaque_operator", "keep",
    )  # fmt: skip
    assert kept["culprit"] == "Sigmoid 'n_s'"
    assert len(kept["tried"]) > 1


def test_what_a_kept_one_is_written_as(tmp_path, rng):
    report = report_of(half(rng), tmp_path, Options(standalone="mul-add"))
    assert report.batch_normalizations[1].written_as == "mul-add"
    assert report.after.batch_normalizations == 0


def test_a_layer_behind_may_take_it(tmp_path, rng):
    """Somebody else reads what the BN reads, so the layer behind it takes all."""
    parts = join(
        conv("x", "a", (3, 3, 1, 1), rng),
        node("Relu", ["a"], ["r"]),
        conv("r", "c", (3, 3, 1, 1), rng),
        node("MaxPool", ["c"], ["other"], kernel_shape=[1, 1]),
        bn("c", "b", 3, rng, positive=True),
        conv("b", "y", (3, 3, 1, 1), rng),
    )
    model = model_of(parts.nodes, X, ["y", "other"], parts.initializers)
    (norm,) = plain(report_of(model, tmp_path))["batch_normalizations"]
    assert [(t["name"], t["is_behind"]) for t in norm["taken_by"]] == [("n_y", True)]


def test_weights_of_a_layer(tmp_path, rng):
    parts = join(layer("Gemm", "x", "g", (5, 4), rng, bias_shape=(4,)), bn("g", "y", 4, rng))
    model = model_of(parts.nodes, {"x": ("N", 5)}, ["y"], parts.initializers)
    report = report_of(model, tmp_path)
    before = onnx_bnfold.storage.read_tensor(model.graph.initializer[0], None)
    folded, _ = onnx_bnfold.fold(model)
    after = onnx_bnfold.storage.read_tensor(folded.graph.initializer[0], None)
    (found,) = report.layers
    assert report.batch_normalizations[0].taken_by[0].layer == 0
    assert (found.op, found.name, found.tensor) == ("Gemm", "n_g", "g_W")
    assert (found.data_type, found.shape) == ("float32", (5, 4))
    for weight, largest, quietest, used in (
        (before, found.largest_before, found.quietest_before, found.range_used_before),
        (after, found.largest_after, found.quietest_after, found.range_used_after),
    ):
        peaks = np.abs(weight).max(axis=0)
        assert largest == pytest.approx(peaks.max())
        assert quietest == pytest.approx(peaks.min())
        assert used == pytest.approx(peaks.max() / np.finfo(np.float32).max)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_range_of_other_types(dtype, tmp_path, rng):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    parts = join(conv("x", "c", (4, 3, 1, 1), rng, dtype=dtype), bn("c", "y", 4, rng, dtype=dtype))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype)
    (found,) = report_of(model, tmp_path).layers
    limit = float(ml_dtypes.finfo(dtype).max)
    assert found.data_type == dtype.name
    assert found.range_used_after == pytest.approx(found.largest_after / limit)


def test_a_layer_that_takes_a_shift_only_keeps_its_weights(tmp_path, rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng, epsilon=0.0))
    for each in parts.initializers:
        if each.name in ("y_scale", "y_var"):
            each.raw_data = np.ones(4, np.float32).tobytes()
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    report = report_of(model, tmp_path)
    (taker,) = report.batch_normalizations[0].taken_by
    assert (taker.scale, taker.shift) == (False, True)
    (found,) = report.layers
    assert found.largest_before == found.largest_after


def test_channels_of_zeros_are_not_the_quietest(tmp_path, rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    weight = np.frombuffer(parts.initializers[0].raw_data, np.float32).reshape(4, 3).copy()
    weight[2] = 0
    parts.initializers[0].raw_data = weight.tobytes()
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    (found,) = report_of(model, tmp_path).layers
    assert found.quietest_before == pytest.approx(np.abs(weight[[0, 1, 3]]).max(axis=1).min())


def test_affine_nodes_have_a_list_of_their_own(tmp_path, rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        node("Mul", ["c", "k"], ["m"]),
        conv("m", "y", (2, 4, 1, 1), rng),
    )
    factor = np.float32([2, 3, 4, 5]).reshape(4, 1, 1)
    constants = [*parts.initializers, tensor("k", factor)]
    report = report_of(model_of(parts.nodes, X, ["y"], constants), tmp_path)
    assert [record.op for record in report.affine_nodes] == ["Mul"]
    assert not report.batch_normalizations


def test_decomposed_bns_that_stay_have_a_list_of_their_own(tmp_path, rng):
    parts = join(
        node("Sigmoid", ["x"], ["s"]), node("Mul", ["k", "s"], ["m"]), node("Tanh", ["m"], ["y"])
    )
    factor = tensor("k", np.float32([2, 3, 4]).reshape(3, 1, 1))
    report = report_of(model_of(parts.nodes, X, ["y"], [factor]), tmp_path)
    (kept,) = report.kept_affine_nodes
    assert (kept.op, kept.written_as, kept.input, kept.output) == ("Mul", "keep", "s", "m")
    told = kept.to_dict()
    assert (told["status"], told["reason"]) == ("kept", "opaque_operator")
    assert told["tried"]
    assert kept.producer.op == "Sigmoid"
    assert not report.affine_nodes
    validate(plain(report))


def test_branches_that_were_merged(tmp_path, rng):
    """A RepVGG block: the records come from the model that still has the branches."""
    parts = join(
        conv("x", "c3", (3, 3, 3, 3), rng, pads=[1, 1, 1, 1]),
        bn("c3", "b3", 3, rng),
        conv("x", "c1", (3, 3, 1, 1), rng),
        bn("c1", "b1", 3, rng),
        node("Add", ["b3", "b1"], ["s"]),
        node("Relu", ["s"], ["y"]),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    found = plain(report_of(model, tmp_path, Options(merge_branches=True)))
    validate(found)
    norms = {norm["name"]: norm for norm in found["batch_normalizations"]}
    assert set(norms) == {"n_b3", "n_b1"}
    for norm in norms.values():
        assert (norm["status"], norm["way"]) == ("folded", "merged")
        assert norm["producer"]["op"] == "Conv"
        assert [taker["op"] for taker in norm["taken_by"]] == ["Conv"]
    assert (found["before"]["batch_normalizations"], found["after"]["nodes"]) == (2, 2)


def test_the_bytes_of_both_models_and_of_copies(tmp_path, rng):
    parts = join(
        layer("Conv", "x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng), bn("d", "z", 4, rng)
    )
    again = node("Conv", ["x", *parts.nodes[0].input[1:]], ["d"])
    nodes = [*parts.nodes[:2], *again.nodes, parts.nodes[2]]
    model = model_of(nodes, X, ["y", "z"], parts.initializers)
    report = report_of(model, tmp_path)
    assert report.bytes_before == (tmp_path / "m.onnx").stat().st_size
    assert report.bytes_after == (tmp_path / "f.onnx").stat().st_size
    assert report.copied_bytes == sum(
        4 * np.prod(t.dims) for t in parts.initializers if t.name in parts.nodes[0].input
    )
    validate(plain(report))
