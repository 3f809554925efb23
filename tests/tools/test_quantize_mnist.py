import onnx
import pytest
import torch

from tools import quantize_mnist
from tools.mnist.network import TinyCnn, to_onnx


@pytest.mark.slow
def test_the_table(folder, tmp_path, capsys):
    torch.manual_seed(0)
    onnx.save(to_onnx(TinyCnn()), tmp_path / "m.onnx")
    assert quantize_mnist.main([str(tmp_path / "m.onnx"), "--data", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert not err
    lines = [line.strip("|").split("|") for line in out.splitlines()[2:]]
    names, _, agreements, nodes = zip(*([c.strip() for c in line] for line in lines), strict=True)
    assert names == tuple(
        f"{state}, {kind}"
        for state in ("BN left in", "folded")
        for kind in ("float32", "int8 per tensor", "int8 per channel")
    )
    assert agreements[0] == agreements[3] == "100.00%"
    before, after = (list(map(int, part)) for part in (nodes[:3], nodes[3:]))
    assert after == [8, 22, 22]
    assert all(a - b > 2 for a, b in zip(before[1:], after[1:], strict=True))


def test_no_such_model(folder, tmp_path, capsys):
    assert quantize_mnist.main([str(tmp_path / "no.onnx"), "--data", str(folder)]) == 2
    assert "no.onnx" in capsys.readouterr().err
