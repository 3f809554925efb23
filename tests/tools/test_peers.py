"""The comparison with peers: its graphs, its verdicts, and that crashes and hangs count."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_bnfold
from tools import peers
from tools.peers import batch
from tools.peers.batch import Outcome, Unusable, run_jobs
from tools.peers.bench import OURS, Bench
from tools.peers.build import BATCH_NORM
from tools.peers.judge import count, judge

CONSTRUCTS = [construct for _, group in peers.constructs() for construct in group]


def test_names_of_constructs_are_unique():
    assert len({c.name for c in CONSTRUCTS}) == len(CONSTRUCTS)


@pytest.mark.parametrize("construct", CONSTRUCTS, ids=lambda c: c.name)
def test_every_foldable_node_of_a_construct_goes(construct):
    folded, _ = onnx_bnfold.fold(construct.model)
    removed = count(construct.model, construct.counted) - count(folded, construct.counted)
    assert removed == construct.foldable


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), "no interpreter", 60.0)


@pytest.fixture
def task(bench):
    """Conv, BN, with the expected outputs, its result in the place of a tool's."""
    task = bench.task("Conv, BN", CONSTRUCTS[0].model, BATCH_NORM, 1)
    assert bench.execute([task], "model.onnx", "expected.npz")[0].error is None
    return task


def test_our_result_is_judged_as_folded(bench, task):
    (verdict,) = bench.verdicts(OURS, [task])
    assert (verdict.kind, verdict.text, verdict.left) == ("folded", "folded", 0)
    assert bench.versions[OURS] == onnx_bnfold.__version__


def _judged(bench, task, model):
    onnx.save(model, task.file("folded.onnx"))
    (execution,) = bench.execute([task], "folded.onnx", "actual.npz")
    return judge(task.folder, BATCH_NORM, 1, Outcome(None, 0.0), execution)


def _unchanged(model):
    pass


def _node_added(model):
    model.graph.node.add(op_type="Identity", input=["y"], output=["z"])
    model.graph.node[1].op_type = "Relu"
    del model.graph.node[1].input[1:], model.graph.node[1].attribute[:]


def _weight_changed(model):
    weight = model.graph.initializer[-1]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, weight.name))


def _weight_not_finite(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([np.inf]), "unused"))


def _input_renamed(model):
    model.graph.input[0].name = model.graph.node[0].input[0] = "other"


def _tensor_missing(model):
    del model.graph.initializer[0]


def _type_wrong(model):
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype("f8"), tensor.name)
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_unchanged, "kept"),
        (_weight_changed, "**wrong**: error"),
        (_node_added, "**wrong**: error"),
        (_weight_not_finite, "**wrong**: NaN or infinity in a weight"),
        (_input_renamed, "**wrong**: input x is lost"),
        (_tensor_missing, "**wrong**: invalid model"),
        (_type_wrong, "**wrong**: does not run"),
    ],
)
def test_a_wrong_result_is_told_from_a_right_one(bench, task, change, text):
    model = onnx.load(task.file("model.onnx"))
    change(model)
    assert _judged(bench, task, model).text.startswith(text)


def test_a_tool_that_fails_counts_as_a_crash(bench, task):
    failed = Outcome("ValueError: no", 0.0)
    verdict = judge(task.folder, BATCH_NORM, 1, failed, failed)
    assert (verdict.kind, verdict.text) == ("crash", "**crash**: ValueError")


DIES_ON_SECOND = """
import json, os, signal, sys, time
for job in json.load(sys.stdin):
    if job["do"] == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job["do"] == "hang":
        time.sleep(60)
    with open(sys.argv[2], "a") as results:
        print(json.dumps({"error": None, "seconds": 0.0, "version": job["do"]}), file=results)
"""


@pytest.mark.parametrize(("what", "error"), [("die", "SIGSEGV"), ("hang", "more than 2 s")])
def test_the_jobs_behind_one_that_kills_the_process_are_done(tmp_path, monkeypatch, what, error):
    worker = tmp_path / "worker.py"
    worker.write_text(DIES_ON_SECOND)
    monkeypatch.setattr(batch, "WORKER", worker)
    jobs = [{"do": "a"}, {"do": what}, {"do": "b"}]
    outcomes = run_jobs(sys.executable, "", jobs, 2.0)
    assert [o.error for o in outcomes] == [None, error, None]
    assert [o.version for o in outcomes] == ["a", "", "b"]


def test_a_tool_that_is_not_installed_is_said_to_be_unusable(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import no_such_module")
    monkeypatch.setattr(batch, "WORKER", worker)
    with pytest.raises(Unusable, match="no_such_module"):
        run_jobs(sys.executable, "tool", [{"do": "a"}], 20.0)
