import numpy as np
import onnx
from support import bn, conv, join, model_of, node

from tools.bench_forms import FORMS, HEAD, table


def test_every_form_is_folded_checked_and_timed(tmp_path):
    rng = np.random.default_rng(0)
    parts = join(
        conv("x", "a", (4, 3, 3, 3), rng), node("Relu", ["a"], ["b"]), bn("b", "c", 4, rng),
        node("Sigmoid", ["c"], ["y"]),
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(model_of(parts.nodes, {"x": ("N", 3, 6, 6)}, ["y"], parts.initializers), path)
    original, *folded = [row.strip("| ").split(" | ") for row in table(path, 3)]
    assert len(folded) == len(FORMS)
    assert original[1:5] == ["1", "4", "1.000", "2"]
    assert [cells[1] for cells in folded] == ["1", "0", "0", "0", "0"]
    assert all(len(cells) == len(HEAD) for cells in folded)
