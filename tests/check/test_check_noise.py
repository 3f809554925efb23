"""The original's weights, rounded anew."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pairs import model, weights

from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.noise import RoundedWeights
from onnx_bnfold.check.sessions import Session
from onnx_bnfold.storage import ModelFile


def saved(folder: Path, dtype: str) -> Path:
    # A weight of more elements than the table of multipliers has.
    path = folder / "model.onnx"
    onnx.save(model(weights(dtype, width=96)), path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_draw_moves_a_weight_by_half_a_unit_at_most(tmp_path, dtype):
    path = saved(tmp_path, dtype)
    exact = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0)
        rounded.draw(1)
        first = {name: array.copy() for name, array in rounded.arrays.items()}
        rounded.draw(2)
        second = {name: array.copy() for name, array in rounded.arrays.items()}
        rounded.draw(1)
    assert set(first) == set(exact)
    for name, weight in exact.items():
        assert first[name].dtype == weight.dtype
        moved = np.abs(first[name].astype("float64") - weight)
        assert np.all(moved <= np.finfo(dtype).eps * np.abs(weight.astype("float64")))
        np.testing.assert_array_equal(rounded.arrays[name], first[name])
    assert 0.2 < np.mean(first["w1"] != exact["w1"]) < 0.8
    assert np.mean(first["w1"] != second["w1"]) > 0.2


def test_a_session_sees_every_draw(tmp_path):
    path = saved(tmp_path, "float32")
    checked = CheckedModel(path, "the model")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype("float32")}
    with ModelFile.open(path) as file:
        rounded = RoundedWeights(file, seed=0)
        session = Session(checked, prepack=False, weights=rounded.arrays)
        seen = []
        for number in range(3):
            rounded.draw(number)
            seen.append(session.run(feed)["y"])
            anew = Session(checked, prepack=False, weights=rounded.arrays).run(feed)["y"]
            np.testing.assert_array_equal(seen[-1], anew)
    assert not np.array_equal(seen[0], seen[1])
