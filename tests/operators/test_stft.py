"""An STFT with a constant window takes a scale into it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from graphs import Net
from support import fold_checked, ops, reasons

from onnx_bnfold import Reason
from onnx_bnfold.cli.main import main

SIGNAL = (2, 1, 12)


def spectra(net: Net, x: str, *, window: bool = True, onesided: int = 1) -> str:
    signal = net.op("Transpose", x, perm=[0, 2, 1])
    taps = net.random(4) if window else ""
    length = net.const(np.array(4, np.int64))
    return net.op("STFT", signal, net.const(np.array(2, np.int64)), taps, length, onesided=onesided)


@pytest.mark.parametrize("onesided", [0, 1])
def test_a_scale_in_front_goes_into_the_window(onesided):
    net = Net(SIGNAL)
    y = spectra(net, net.bn("x", shift=False, channels=1), onesided=onesided)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Transpose", "STFT"]


def test_a_factor_behind_goes_into_the_window():
    net = Net(SIGNAL)
    y = net.op("Mul", spectra(net, "x"), net.const(0.25))
    y = net.bn(net.op("Reshape", y, net.ints(2, 1, -1)), channels=1, shift=False)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Transpose", "STFT", "Reshape"]


def test_the_report_counts_its_products(tmp_path):
    """Of each of 2 x 5 frames 3 complex frequencies are sums over 4 samples."""
    net = Net(SIGNAL)
    onnx.save(
        net.model(spectra(net, net.bn("x", shift=False, channels=1))), tmp_path / "model.onnx"
    )
    files = [str(tmp_path / name) for name in ("model.onnx", "folded.onnx", "report.json")]
    assert main([files[0], "-o", files[1], "--check", "--require-all", "--report", files[2]]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert [layer["op"] for layer in found["layers"]] == ["STFT"]
    assert found["after"]["multiply_adds"] == 2 * 5 * 3 * 2 * 4


@pytest.mark.parametrize(
    ("shift", "window", "reason"),
    [(True, True, Reason.NO_SHIFT), (False, False, Reason.WEIGHT_NOT_CONSTANT)],
)
def test_what_stays(shift, window, reason):
    net = Net(SIGNAL)
    y = spectra(net, net.bn("x", shift=shift, channels=1), window=window)
    _, report = fold_checked(net.model(y), kept=1)
    assert reason in reasons(report)[0]
