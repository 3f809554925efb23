"""fold, plan, fold_file and plan_file: what they return, raise and leave alone."""

import contextlib
import copy
import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import ModelProto, numpy_helper
from support import (
    assert_same_function,
    bn,
    conv,
    count,
    feeds_for,
    half_folding,
    join,
    model_of,
    node,
    run,
    saved_external,
    tensor,
    value_of,
)

import onnx_bnfold
from onnx_bnfold import ModelError, Options, Reason, UsageError, fold, fold_file, plan, plan_file
from onnx_bnfold.api import write_folded
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.reasons import Refused

X = {"x": ("N", 3, 5, 6)}


def saved(model, path, **external):
    onnx.save_model(copy.deepcopy(model), path, **external)  # it changes what it saves
    return path


def contents(folder) -> dict[str, str]:
    """Name and digest of every file of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


# --- the report ----------------------------------------------------------------------------------


def test_the_report_of_a_fold(rng):
    _, report = fold(half_folding(rng))
    gone, stays = report.norms
    assert report.records == report.norms
    assert report.folded == (gone,)
    assert report.kept == (stays,)
    assert (report.nodes_before, report.nodes_after) == (4, 3)
    assert gone.folded
    assert gone.refusal is None
    assert "n_b" in gone.name
    assert [t for t in gone.scale_to if "n_c" in t]
    assert gone.shift_to == gone.scale_to
    assert not stays.folded
    assert stays.way is None
    assert stays.refusal.reason == Reason.OPAQUE
    assert "n_s" in stays.refusal.culprit
    assert len(report.lines()) == 2
    assert "1 of 2" in report.summary()


def test_a_plan_says_what_a_fold_does(rng):
    model = half_folding(rng)
    planned, (_, folded) = plan(model), fold(model)
    assert planned.records == folded.records
    assert planned.nodes_before is None
    assert planned.nodes_after is None


def test_the_reason_is_a_string_of_its_code(rng):
    """What a JSON report or a log holds."""
    _, report = fold(half_folding(rng))
    assert report.kept[0].refusal.reason == "opaque_operator"
    assert len({r.value for r in Reason}) == len(Reason)


def scaling(x, y, scale, rng):
    """A BN that multiplies by its scale and does nothing else."""
    norm = bn(x, y, len(scale), rng, epsilon=0.25)
    for t, value in zip(norm.initializers, (scale, 0, 0, 0.75), strict=True):
        t.CopyFrom(tensor(t.name, np.full(len(scale), value, np.float32)))
    return norm


@pytest.mark.parametrize("side", ["behind", "in front"])
def test_the_report_says_how_far_tensors_are_rescaled(side, rng):
    """A channel of zeros is not counted: it has no factor, or any."""
    norm = scaling("r" if side == "behind" else "s", "b", [0.5, 8, 0, 2], rng)
    if side == "behind":
        parts = join(conv("x", "c", (4, 4, 1, 1), rng), node("Relu", ["c"], ["r"]), norm,
                     node("Sigmoid", ["b"], ["y"]))  # fmt: skip
    else:
        parts = join(node("Sigmoid", ["x"], ["s"]), norm, node("Relu", ["b"], ["r"]),
                     conv("r", "y", (4, 4, 1, 1), rng))  # fmt: skip
    _, report = fold(model_of(parts.nodes, {"x": (2, 4, 5, 6)}, ["y"], parts.initializers))
    (found,) = report.rescaled
    name, least, most = ("'c'", 0.5, 8) if side == "behind" else ("'r'", 0.125, 2)
    assert (found.name, found.smallest, found.largest, found.shift) == (name, least, most, 0)
    assert f"1 tensor rescaled (widest: {name}, its channels by {least} to {most})" in (
        report.summary()
    )


def test_the_report_begins_with_the_widest_factors(rng):
    """Of a tensor without a channel that counts, they are 1."""
    scales = {"w": [1, 4], "v": [8, 16], "u": [0, 0]}
    parts = [
        join(conv("x", c, (2, 3, 1, 1), rng), node("Relu", [c], [f"{c}r"]),
             scaling(f"{c}r", f"{c}n", scale, rng), node("Sigmoid", [f"{c}n"], [f"{c}y"]))
        for c, scale in scales.items()
    ]  # fmt: skip
    made = join(*parts)
    _, report = fold(model_of(made.nodes, X, ["wy", "vy", "uy"], made.initializers))
    found = [(r.name, r.smallest, r.largest) for r in report.rescaled]
    assert found == [("'w'", 1, 4), ("'v'", 8, 16), ("'u'", 1, 1)]


def test_a_plan_changes_nothing(rng):
    model = half_folding(rng)
    before = model.SerializeToString()
    plan(model)
    assert model.SerializeToString() == before


def test_records_come_in_the_order_of_the_graph(rng):
    parts = join(
        *(
            join(conv("x", f"c{i}", (4, 3, 1, 1), rng), bn(f"c{i}", f"y{i}", 4, rng))
            for i in range(12)
        )
    )
    model = model_of(parts.nodes, X, [f"y{i}" for i in range(12)], parts.initializers)
    names = [r.name for r in plan(model).norms]
    assert [n.split("n_")[-1].strip("'") for n in names] == [f"y{i}" for i in range(12)]


def test_names_from_a_model_do_not_steer_the_terminal(rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng, name="a\x1b[31m\nb\r"))
    _, report = fold(model_of(parts.nodes, X, ["y"], parts.initializers))
    (line,) = report.lines()
    assert line.isprintable()


def test_the_public_names_are_there_and_documented():
    for name in onnx_bnfold.__all__:
        public = getattr(onnx_bnfold, name)
        assert isinstance(public, str) or inspect.getdoc(public), name


def test_the_types_of_the_package_are_published():
    assert Path(onnx_bnfold.__file__).with_name("py.typed").exists()


def loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    """The command line begins to hash the model before it loads onnx."""
    assert not {"numpy", "onnx"} & loaded_by("import onnx_bnfold.cli.main")


def test_a_fold_imports_no_runtime():
    """onnxruntime and torch cost more than a fold does."""
    loaded = loaded_by("from onnx_bnfold import fold_file")
    assert "onnx" in loaded
    assert not {"onnxruntime", "torch", "matplotlib"} & loaded


def test_a_fold_imports_no_more_of_numpy_than_onnx_does(tmp_path, rng):
    """``np.unique`` imports masked arrays: a twentieth of the time of a small fold."""
    words = ["-q", "-o", str(tmp_path / "f.onnx"), str(saved(half_folding(rng), tmp_path / "m"))]
    loaded = loaded_by(f"from onnx_bnfold.cli.main import main; main({words!r})")
    assert "onnx_bnfold.rewriting.graph_editor" in loaded
    assert {name for name in loaded if name.startswith("numpy")} <= loaded_by("import onnx")


def test_public_functions_hide_no_module():
    code = "import onnx_bnfold.planning.planner, onnx_bnfold as o; assert callable(o.plan)"
    assert "onnx_bnfold.planning.planner" in loaded_by(code)


def test_modules_are_attributes_of_the_package():
    assert "onnx_bnfold.report" in loaded_by("import onnx_bnfold as o; o.report.Report")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'folded'"):
        onnx_bnfold.folded  # noqa: B018


# --- models in memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "no-opset", "unknown-input", "cycle", "two-writers"])
def test_a_broken_model_never_gives_a_traceback(damage, rng):
    """It is refused with one of our errors, or folded: no KeyError, no RecursionError."""
    model = half_folding(rng)
    if damage == "empty":
        model.Clear()
    elif damage == "no-opset":
        del model.opset_import[:]
    elif damage == "unknown-input":
        model.graph.node[0].input[0] = "nothing"
    elif damage == "cycle":
        model.graph.node[0].input[0] = "y"
    else:
        model.graph.node[2].output[0] = "c"
    with contextlib.suppress(ModelError):
        fold(model)


def test_a_model_without_weights_in_memory_needs_its_folder(tmp_path, rng):
    path = saved_external(half_folding(rng), tmp_path / "m.onnx")
    unloaded = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match=r"base_dir|folder"):
        fold(unloaded)


def test_external_data_of_a_model_in_memory(tmp_path, rng):
    model = half_folding(rng)
    path = saved_external(model, tmp_path / "m.onnx")
    before = contents(tmp_path)
    unloaded = onnx.load(path, load_external_data=False)
    bytes_before = unloaded.SerializeToString()
    folded, report = fold(unloaded, base_dir=tmp_path)
    assert unloaded.SerializeToString() == bytes_before
    assert len(report.folded) == 1
    onnx.load_external_data_for_model(folded, str(tmp_path))
    assert_same_function(model, folded)
    assert contents(tmp_path) == before


def test_options_are_frozen():
    with pytest.raises(AttributeError):
        Options().freeze_initializers = True  # type: ignore[misc]


def test_a_model_with_nothing_in_it():
    """No nodes: inputs are outputs."""
    model = model_of([], {"x": (1,)}, {"x": (1,)})
    folded, report = fold(model)
    assert folded == model
    assert not report.records
    assert report.summary().startswith("there is no BatchNormalization in this model")


# --- files ---------------------------------------------------------------------------------------


def test_a_file_is_folded_as_a_model_is(tmp_path, rng):
    model = half_folding(rng)
    source, target = saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx"
    report = fold_file(source, target, Options(metadata=False))
    folded, in_memory = fold(model)
    assert report == in_memory
    assert target.read_bytes() == folded.SerializeToString()
    assert plan_file(source).records == report.records


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0])
def test_a_dead_channel_of_small_weights_is_judged_alike_in_a_file(size, tmp_path, rng):
    """Their squares vanish."""
    weight = rng.standard_normal((64, 1, 3, 3))
    weight[0] *= size
    parts = join(
        bn("x", "b", 64, rng, dtype=np.float64),
        node("Conv", ["b", "w"], ["y"], group=64),
    )
    tensors = [*parts.initializers, tensor("w", weight)]
    model = model_of(parts.nodes, {"x": ("N", 64, 5, 5)}, ["y"], tensors, dtype=np.float64)
    scale = next(t for t in model.graph.initializer if t.name == "b_scale")
    values = numpy_helper.to_array(scale).copy()
    values[0] = 0
    scale.raw_data = values.tobytes()
    source, target = saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx"
    assert not fold_file(source, target, Options(metadata=False)).kept
    assert target.read_bytes() == fold(model)[0].SerializeToString()


@pytest.mark.parametrize("kernel", [1, 25], ids=["small", "streamed"])
def test_a_changed_weight_has_its_new_values_and_no_others(kernel, tmp_path, rng):
    """Its message may hold the old ones twice, and entries of a file that it is not in."""
    parts = join(conv("x", "c", (64, 3, kernel), rng), bn("c", "y", 64, rng))
    model = model_of(parts.nodes, {"x": ("N", 3, 40)}, ["y"], parts.initializers)
    weight = next(t for t in model.graph.initializer if t.name == "c_W")
    wanted, _ = fold(model)
    weight.float_data.extend(numpy_helper.to_array(weight).reshape(-1).tolist())
    weight.external_data.add(key="offset", value="8")
    source, target = saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx"
    folded, _ = fold(model)
    fold_file(source, target, Options(metadata=False))
    assert target.read_bytes() == folded.SerializeToString()
    (found,) = (t for t in folded.graph.initializer if t.name == "c_W")
    assert not found.float_data
    del found.external_data[:]
    assert folded == wanted


def test_what_only_writing_refuses_is_kept(tmp_path, monkeypatch, rng):
    """No attempt is made twice: a fold ends even if verifying and writing disagree."""

    def refuse(*_, **__):
        raise Refused(Reason.PRECISION, "Conv 'c'", "it is refused")
        yield

    monkeypatch.setattr("onnx_bnfold.rewriting.new_constants.product_blocks", refuse)
    parts = join(conv("x", "c", (64, 3, 5, 5), rng), bn("c", "y", 64, rng))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    report = fold_file(saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx")
    assert [record.refusal.reason for record in report.kept] == [Reason.PRECISION]
    assert count(onnx.load(tmp_path / "f.onnx"), "BatchNormalization") == 1


@pytest.mark.parametrize("form", ["mul-add", "conv"])
def test_what_cannot_be_written_otherwise_is_written_as_it_is(form, tmp_path, rng, monkeypatch):
    """Its input is of no float type, which no runtime takes; the fold has to end all the same."""
    parts = bn("x", "y", 3, rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT64
    attempts, planning = iter(range(8)), Pipeline.plan
    monkeypatch.setattr(Pipeline, "plan", lambda self: [next(attempts), planning(self)])
    options = Options(standalone=form)
    folded, _ = fold(model, options)
    assert folded == model
    report = fold_file(saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx", options)
    # No Conv takes integers; a Mul does, and what it would be multiplied by does not fit them.
    reason = {"mul-add": Reason.UNSUPPORTED_TYPE, "conv": Reason.GRAPH_INPUT}[form]
    assert [record.refusal.reason for record in report.kept] == [reason]


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("form", ["keep", "mul-add"])
def test_a_norm_whose_readers_all_overflow_stays(readers, form, tmp_path):
    """They fail in one attempt, and for one reason."""
    values = {"s": [3e4] * 2, "b": [1] * 2, "m": [0] * 2, "v": [1] * 2}
    tensors = [numpy_helper.from_array(np.array(v, np.float16), n) for n, v in values.items()]
    parts = [node("Relu", ["x"], ["r"]), node("BatchNormalization", ["r", *values], ["y"])]
    for i in range(readers):
        tensors.append(numpy_helper.from_array(np.full((2, 2, 1, 1), 100, np.float16), f"w{i}"))
        parts.append(node("Conv", ["y", f"w{i}"], [f"o{i}"]))
    outputs = [f"o{i}" for i in range(readers)]
    nodes = join(*parts).nodes
    model = model_of(nodes, {"x": ("N", 2, 4, 4)}, outputs, tensors, dtype=np.float16)
    options = Options(standalone=form)
    folded, report = fold(model, options)
    assert [record.refusal.reason for record in report.kept] == [Reason.OVERFLOW]
    # Its own factors fit: it is its readers' weights that do not.
    written = {"keep": "BatchNormalization", "mul-add": "Mul"}[form]
    assert [n.op_type for n in folded.graph.node[:2]] == ["Relu", written]
    assert report == fold_file(saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx", options)
    assert plan(model, options).kept == report.kept


def test_what_fails_whatever_is_left_out_has_an_end(rng):
    """A bug of ours, but not one that hangs."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    pipeline = Pipeline(model, lambda tensor: numpy_helper.to_array(tensor), Options())
    pipeline.plan()
    failure = {(0, 0): Refused(Reason.PRECISION, "Conv 'c'", "it is refused").refusal}
    pipeline.exclude(failure)
    with pytest.raises(RuntimeError, match="Conv 'c' fails whatever"):
        pipeline.exclude(failure)


def test_a_file_says_that_it_was_folded_and_from_what(tmp_path, rng):
    """That is all it differs by from a fold in memory."""
    model = half_folding(rng)
    source, target = saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx"
    fold_file(source, target)
    written = onnx.load(target)
    (entry,) = written.metadata_props
    assert entry.key == "onnx_bnfold"
    assert json.loads(entry.value) == {
        "version": onnx_bnfold.__version__,
        "folded": 1,
        "kept": 1,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    del written.metadata_props[:]
    assert written == fold(model)[0]


@pytest.mark.parametrize("kind", [str, os.fspath, lambda p: p], ids=["str", "fspath", "Path"])
def test_paths_of_every_kind(kind, tmp_path, rng):
    source, target = saved(half_folding(rng), tmp_path / "m.onnx"), tmp_path / "f.onnx"
    fold_file(kind(source), kind(target))
    onnx.checker.check_model(target, full_check=True)


def test_a_fold_leaves_the_source_and_no_other_file(tmp_path, rng):
    source = saved(half_folding(rng), tmp_path / "m.onnx")
    before = contents(tmp_path)
    fold_file(source, tmp_path / "f.onnx")
    after = contents(tmp_path)
    assert after.keys() - before.keys() == {"f.onnx"}
    assert before.items() <= after.items()


def test_two_folds_give_the_same_file(tmp_path, rng):
    source = saved(half_folding(rng), tmp_path / "m.onnx")
    for name in ("a.onnx", "b.onnx"):
        fold_file(source, tmp_path / name)
    fold_file(tmp_path / "a.onnx", tmp_path / "c.onnx")
    digests = contents(tmp_path)
    assert digests["a.onnx"] == digests["b.onnx"] == digests["c.onnx"]


@pytest.mark.parametrize("external", [False, True])
def test_a_report_that_is_asked_for_late_counts_no_other_file_of_the_folder(
    external, tmp_path, rng
):
    save = saved_external if external else saved
    source = save(half_folding(rng), tmp_path / "m.onnx")
    (tmp_path / "early").mkdir()
    early = fold_file(source, tmp_path / "early" / "f.onnx")
    outcome = write_folded(source, tmp_path / "f.onnx")
    assert len(outcome.files) == 1 + external
    assert outcome.files[0] == tmp_path / "f.onnx"
    assert outcome.report == early
    assert early.bytes_after == sum(p.stat().st_size for p in (tmp_path / "early").iterdir())


def test_external_data_stays_external_beside_the_output(tmp_path, rng):
    model = half_folding(rng)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = saved_external(model, tmp_path / "in" / "m.onnx")
    before = contents(tmp_path / "in")
    target = tmp_path / "out" / "f.onnx"
    fold_file(source, target)
    assert contents(tmp_path / "in") == before
    (data,) = contents(tmp_path / "out").keys() - {"f.onnx"}
    assert data != "weights.bin"
    unloaded = onnx.load(target, load_external_data=False)
    entries = [e for t in unloaded.graph.initializer for e in t.external_data]
    assert {e.value for e in entries if e.key == "location"} == {data}
    for path in (tmp_path / "in").iterdir():
        path.unlink()  # nothing of the source is needed any more
    onnx.checker.check_model(target, full_check=True)
    assert_same_function(model, onnx.load(target))


def test_several_external_files_and_embedded_weights(tmp_path, rng):
    model = half_folding(rng)
    path = tmp_path / "m.onnx"
    for i, t in enumerate(model.graph.initializer):
        if i % 3:
            onnx.external_data_helper.set_external_data(t, f"part{i % 3}.bin", offset=None)
    saved(ModelProto.FromString(model.SerializeToString()), path)
    fold_file(path, tmp_path / "f.onnx")
    loaded = onnx.load(path)
    assert_same_function(loaded, onnx.load(tmp_path / "f.onnx"))


def test_the_new_data_file_does_not_hit_that_of_the_source(tmp_path, rng):
    """The source's data has the very name the output's would get."""
    model = half_folding(rng)
    fold_file(saved_external(model, tmp_path / "m.onnx"), tmp_path / "f.onnx")
    (chosen,) = contents(tmp_path).keys() - {"m.onnx", "weights.bin", "f.onnx"}
    for path in tmp_path.iterdir():
        path.unlink()
    source = saved_external(model, tmp_path / "m.onnx", location=chosen)
    before = contents(tmp_path)
    try:
        fold_file(source, tmp_path / "f.onnx")
    except UsageError:
        assert contents(tmp_path) == before
    else:
        assert_same_function(model, onnx.load(tmp_path / "f.onnx"))
    assert before.items() <= contents(tmp_path).items()
    assert_same_function(model, onnx.load(source))


def links(tmp_path, kind):
    """The source under another name."""
    source, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    if kind == "symlink":
        other.symlink_to(source)
    elif kind == "hardlink":
        os.link(source, other)
    return {
        "same": source,
        "dots": tmp_path / ".." / tmp_path.name / "m.onnx",
        "symlink": other,
        "hardlink": other,
    }[kind]


@pytest.mark.parametrize("kind", ["same", "dots", "symlink", "hardlink"])
def test_the_source_as_target_is_refused(kind, tmp_path, rng):
    source = saved(half_folding(rng), tmp_path / "m.onnx")
    target = links(tmp_path, kind)
    before = contents(tmp_path)
    with pytest.raises(UsageError):
        fold_file(source, target)
    assert contents(tmp_path) == before


def test_the_data_of_the_source_as_target_is_refused(tmp_path, rng):
    source = saved_external(half_folding(rng), tmp_path / "m.onnx")
    before = contents(tmp_path)
    with pytest.raises(UsageError):
        fold_file(source, tmp_path / "weights.bin")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("link", ["source", "target"])
def test_a_symlink_as_source_or_target(link, tmp_path, rng):
    """A link to the source is read through; one at the target does not let it be overwritten."""
    model = half_folding(rng)
    real = saved(model, tmp_path / "real.onnx")
    other = tmp_path / "other.txt"
    other.write_text("precious")
    alias = tmp_path / "alias.onnx"
    alias.symlink_to(real if link == "source" else other)
    source, target = (alias, tmp_path / "f.onnx") if link == "source" else (real, alias)
    fold_file(source, target)
    assert_same_function(model, onnx.load(target))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08", b"\xff" * 100], ids=str)
def test_a_file_that_is_no_model(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        fold_file(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert "m.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path).keys() == {"m.onnx"}


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_file_that_was_cut_off(share, tmp_path, rng):
    path = saved(half_folding(rng), tmp_path / "m.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        fold_file(path, tmp_path / "f.onnx")
    assert contents(tmp_path).keys() == {"m.onnx"}


@pytest.mark.parametrize("damage", ["missing", "short", "outside"])
def test_external_data_that_cannot_be_read(damage, tmp_path, rng):
    (tmp_path / "in").mkdir()
    source = saved_external(half_folding(rng), tmp_path / "in" / "m.onnx")
    data = tmp_path / "in" / "weights.bin"
    if damage == "missing":
        data.unlink()
    elif damage == "short":
        data.write_bytes(data.read_bytes()[:100])
    else:
        data.rename(tmp_path / "weights.bin")
        model = onnx.load(source, load_external_data=False)
        for t in model.graph.initializer:
            for e in t.external_data:
                e.value = "../weights.bin" if e.key == "location" else e.value
        source.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        fold_file(source, tmp_path / "f.onnx")
    assert "weights.bin" in str(caught.value)
    assert "f.onnx" not in contents(tmp_path / "in")
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("field", ["raw_data", "float_data"])
@pytest.mark.parametrize("change", [-1000, -1, 1, 1000])
def test_a_weight_of_more_or_fewer_values_than_its_shape(change, field, tmp_path, rng):
    """What lies behind it in the file are not its values."""
    parts = join(
        conv("x", "c", (64, 64, 3, 3), rng, bias=False),
        bn("c", "d", 64, rng),
        conv("d", "y", (64, 64, 3, 3), rng, bias=False),
    )
    model = model_of(parts.nodes, {"x": (1, 64, 9, 9)}, ["y"], parts.initializers)
    weight = next(t for t in model.graph.initializer if t.name == "c_W")
    values = np.resize(np.frombuffer(weight.raw_data, np.float32), 64 * 64 * 9 + change)
    weight.ClearField("raw_data")
    if field == "raw_data":
        weight.raw_data = values.tobytes()
    else:
        weight.float_data.extend(values)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"'c_W' has .* bytes of values where its shape"):
        fold_file(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert contents(tmp_path).keys() == {"m.onnx"}


def test_an_old_output_stays_when_the_fold_fails(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    (tmp_path / "f.onnx").write_bytes(b"the last good one")
    before = contents(tmp_path)
    with pytest.raises(ModelError):
        fold_file(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert contents(tmp_path) == before


def test_a_frozen_input_leaves_the_file_too(tmp_path, rng):
    model = half_folding(rng)
    model.graph.input.append(value_of("b_scale", (4,)))
    source, target = saved(model, tmp_path / "m.onnx"), tmp_path / "f.onnx"
    assert len(fold_file(source, target).kept) == 2
    assert len(fold_file(source, target, Options(freeze_initializers=True)).kept) == 1
    folded = onnx.load(target)
    assert [i.name for i in folded.graph.input] == ["x"]
    assert count(folded) == 1
    feeds = feeds_for(folded)
    np.testing.assert_allclose(run(model, feeds)[0], run(folded, feeds)[0], atol=1e-5)


def test_a_model_with_nothing_to_fold_is_not_edited(tmp_path, monkeypatch):
    net = Net(IMAGE)
    onnx.save(net.model(net.relu(net.conv("x", 4))), tmp_path / "model.onnx")
    monkeypatch.setattr("onnx_bnfold.pipeline.rewrite", None)
    report = onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx")
    assert (report.nodes_before, report.nodes_after) == (2, 2)
    assert (tmp_path / "folded.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
