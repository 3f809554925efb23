"""The transformers of the benchmark: what exporters write, and nothing to fold."""

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_bnfold
from tools.transformer_graph import transformer


@pytest.mark.parametrize("nodes", [150, 300])
def test_a_transformer_is_sound_and_holds_nothing_to_fold(nodes):
    model = transformer(nodes, width=8)
    assert nodes <= len(model.graph.node) < nodes + 130
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ids = np.arange(10, dtype=np.int64).reshape(2, 5)
    (y,) = session.run(None, {"ids": ids, "mask": np.ones_like(ids)})
    assert y.shape == (2, 5, 8)
    assert np.isfinite(y).all()
    folded, report = onnx_bnfold.fold(model)
    assert not report.folded
    assert not report.kept
    assert folded.SerializeToString() == model.SerializeToString()


def test_it_is_the_same_each_time():
    assert transformer(150).SerializeToString() == transformer(150).SerializeToString()
