"""What users give is what the parameters say, in Python and on the command line."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import bn, conv, join, model_of

import onnx_bnfold
from onnx_bnfold import Options, UsageError
from onnx_bnfold.batch import fold_store, plan_store
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.cli.main import main

CHOICES = {
    "profile": "one of float, fp16, int8",
    "standalone": "one of keep, mul-add, conv",
}
SWITCHES = ("freeze_initializers", "metadata", "merge_branches", "equalize")
WRONG = [
    *[("profile", v) for v in ("int-8", "INT8", "Int8", "", " int8", None, 8, True, ["int8"])],
    *[("standalone", v) for v in ("mul_add", "Conv", "mul-add ", None, False, b"conv")],
    *[(name, v) for name in SWITCHES for v in ("no", "yes", 0, 1, None, np.bool_(True))],
    *[("max_rescale", v) for v in ("4", "nan", True, [4.0], np.array([1.0, 2.0]), 1j)],
    *[("max_rescale", v) for v in (np.nan, np.inf, -np.inf, 10**400)],
    *[("ranges", v) for v in (3, True, b"ranges.npz", ["ranges.npz"])],
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: str(v)[:20])
def test_an_option_of_another_kind(name, value):
    settings = {"equalize": True} | {name: value}
    with pytest.raises(UsageError) as failed:
        Options(**settings)
    said = str(failed.value)
    assert said.startswith(f"{name} is ")
    expected = CHOICES.get(name, "True or False" if name in SWITCHES else "or None")
    assert said.endswith(expected)


@pytest.mark.parametrize("value", [0.999, 0, -4, -0.5])
def test_a_rescale_below_one(value):
    with pytest.raises(UsageError, match=r"max_rescale is .*; it must be at least 1"):
        Options(max_rescale=value)


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"max_rescale": 1}, 1),
        ({"max_rescale": np.float32(2.5)}, 2.5),
        ({"max_rescale": np.int64(3)}, 3),
        ({"equalize": True, "ranges": Path("a") / "b.npz"}, os.path.join("a", "b.npz")),
        ({"profile": "int8"}, "int8"),
        ({"standalone": "mul-add"}, "mul-add"),
        ({"keep": ["a", Path("b")]}, ("a", "b")),
    ],
    ids=str,
)
def test_what_is_right_is_held_in_plain_types(given, held):
    """As JSON has them: a report and a store's records name all options."""
    found = getattr(Options(**given), list(given)[-1])
    assert found == held
    assert type(found) in (int, float, str, tuple)


@pytest.mark.parametrize(
    "settings",
    [
        *[{name: v} for name in ("sets", "draws", "runs", "seed") for v in ("2", 2.0, True, None)],
        *[{name: -1} for name in ("sets", "draws", "runs", "seed", "warm_up", "threads", "batch")],
        *[{"factor": v} for v in (np.nan, np.inf, "4", None)],
        *[{"value_range": v} for v in ((0,), (0, 1, 2), ("a", 1), "01", 3, (0, np.nan), (1, 0))],
        *[{"modes": v} for v in ("disabled", ("off",), (), (None,), 3)],
        *[{"shapes": v} for v in ([1], {"x": 3}, {"x": (1, 2.5)}, {1: (2,)})],
        *[{name: "yes"} for name in ("latency", "quantize")],
        *[{name: v} for name in ("inputs", "data") for v in (3, b"x", ["x"])],
        *[{name: -0.5, "data": "x"} for name in ("max_accuracy_drop", "min_agreement")],
    ],
    ids=str,
)
def test_a_setting_of_a_check_that_is_none(settings):
    with pytest.raises(UsageError):
        CheckOptions(**settings)


def test_settings_of_a_check_that_are_some():
    settings = CheckOptions(
        shapes={"x": (1, 3), "N": (4,)},
        value_range=(0, 255.0),
        modes=["enabled"],
        inputs=Path("x.npz"),
        batch=np.int32(4),
        rtol=1,
    )
    assert settings.batch == 4
    assert settings.inputs == Path("x.npz")


# --- parameters of functions ----------------------------------------------------------------------


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    parts = join(conv("x", "c", (2, 3, 1, 1), rng), bn("c", "y", 2, rng))
    return model_of(parts.nodes, {"x": (1, 3, 4, 4)}, ["y"], parts.initializers)


@pytest.fixture
def saved(model, tmp_path):
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "model.onnx")
    return tmp_path / "in" / "model.onnx"


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_are_a_number_of_them(threads, saved, tmp_path):
    with pytest.raises(UsageError, match="threads is "):
        onnx_bnfold.fold_file(saved, tmp_path / "out.onnx", threads=threads)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("inspect", [3, {}, "print"])
def test_what_inspects_is_a_function(inspect, saved, tmp_path):
    with pytest.raises(UsageError, match=r"inspect is of type .*; give a function or None"):
        onnx_bnfold.fold_file(saved, tmp_path / "out.onnx", inspect=inspect)
    with pytest.raises(UsageError, match=r"inspect is of type .*; give a function or None"):
        onnx_bnfold.plan_file(saved, inspect=inspect)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("jobs", [0, -3, 1.5, "2", False])
def test_jobs_are_a_number_of_them(jobs, saved, tmp_path):
    with pytest.raises(UsageError, match="jobs is "):
        fold_store(saved.parent, tmp_path / "out", jobs=jobs)
    with pytest.raises(UsageError, match="jobs is "):
        plan_store(saved.parent, jobs=jobs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings", [{"dask": 3}, {"state": 3}, {"require_all": "yes"}, {"options": {"equalize": True}}]
)
def test_settings_of_a_store(settings, saved, tmp_path):
    with pytest.raises(UsageError, match=f"{next(iter(settings))} is "):
        fold_store(saved.parent, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [onnx_bnfold.fold, onnx_bnfold.plan])
def test_a_model_in_memory(verb, model, saved):
    with pytest.raises(UsageError, match="base_dir is for models in memory"):
        verb(saved, base_dir=saved.parent)
    with pytest.raises(UsageError, match=r"of type Thing; give the path of a file, its bytes"):
        verb(type("Thing", (), {"model": model})())
    with pytest.raises(UsageError, match=r"options is 'int8'; give Options"):
        verb(model, "int8")
    with pytest.raises(UsageError, match="base_dir is 3"):
        verb(model, base_dir=3)


def test_a_model_in_a_file(model, saved, tmp_path):
    with pytest.raises(UsageError, match="use fold or plan"):
        onnx_bnfold.fold_file(model, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="use fold or plan"):
        onnx_bnfold.plan_file(model)
    with pytest.raises(UsageError, match="target is None"):
        onnx_bnfold.fold_file(saved, None)
    with pytest.raises(UsageError, match="options is None"):
        onnx_bnfold.plan_file(saved, None)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-rescale", "nan"], "--max-rescale is nan; give a finite number\n"),
        (["--max-rescale", "inf"], "--max-rescale is inf; give a finite number\n"),
        (["--max-rescale", "0.5"], "at least 1"),
        (["--max-rescale", "four"], "invalid float value"),
        (["--profile", "int-8"], "'float', 'fp16', 'int8'"),
        (["--standalone", "mul_add"], "'keep', 'mul-add', 'conv'"),
        (["--check", "--factor", "nan"], "factor is nan; give a finite number"),
        (["--check", "--sets", "0"], "at least 1"),
        (["--check", "--modes", "off"], "one of disabled, enabled"),
    ],
    ids=str,
)
def test_an_option_of_the_command_line(words, said, saved, tmp_path, capsys):
    try:
        code = main([str(saved), "-o", str(tmp_path / "out.onnx"), *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err.replace("choose from float, fp16, int8", said).replace(
        "choose from keep, mul-add, conv", said
    )
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5"])
def test_jobs_of_the_command_line(jobs, saved, tmp_path, capsys):
    assert main([str(saved.parent), "-o", str(tmp_path / "out"), "--jobs", jobs]) == 2
    assert "--jobs" in capsys.readouterr().err
