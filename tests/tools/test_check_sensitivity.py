import numpy as np
import onnx

from onnx_bnfold.check import CheckOptions
from tools.check_calibration import Network
from tools.check_sensitivity import measure


def test_faults_are_put_in_and_counted(tmp_path, capsys):
    net = Network(np.random.default_rng(0), np.float32)
    for _ in range(3):
        net.add("Conv", net.weight(8, 8, 3, 3), pads=[1] * 4)
        net.add_norm(8)
    path = tmp_path / "net.onnx"
    onnx.save(net.finish(("N", 8, 6, 6)), path)
    measure(str(path), 2, CheckOptions())
    told = capsys.readouterr().out
    assert "channels swapped 2 of 2, largest 1 % 2 of 2, any 1 % " in told
    assert "epsilon, all BNs 1 of 1, epsilon, one BN 2 of 2" in told
