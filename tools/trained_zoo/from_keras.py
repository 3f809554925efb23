"""Networks that Keras has stored as HDF5, rebuilt in ONNX with their channels on axis 1."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_OPSET = 17
_Values = npt.NDArray[np.float32]
_Config = Mapping[str, Any]


class _Network:
    """Nodes and weights so far.

    Args:
        weights: of the layers, by ``(layer, weight)``.
    """

    def __init__(self, weights: Callable[[str, str], _Values]) -> None:
        self._weights = weights
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.sizes: dict[str, tuple[int, ...]] = {}
        self._height = 0

    def weight(self, layer: str, name: str) -> _Values:
        return self._weights(layer, name)

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))


def _conv(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    weight = net.weight(name, "kernel").transpose(3, 2, 0, 1)
    pads = f"{config['padding']}_upper".upper()
    net.add(
        "Conv", [*inputs, net.constant(f"{name}.weight", weight)], name,
        strides=config["strides"], auto_pad=pads,
    )  # fmt: skip


def _bn(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    parts = ("gamma", "beta", "moving_mean", "moving_variance")
    names = [net.constant(f"{name}.{part}", net.weight(name, part)) for part in parts]
    net.add("BatchNormalization", [*inputs, *names], name, epsilon=config["epsilon"])


def _pool(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    net.add(
        "AveragePool", inputs, name,
        kernel_shape=config["pool_size"], strides=config["strides"], auto_pad="SAME_UPPER",
    )  # fmt: skip


def _flatten(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    """Keras' order has the channels last, and its Dense layers count on that."""
    net.add("Transpose", inputs, f"{name}.last", perm=[0, 2, 3, 1])
    net.add("Flatten", [f"{name}.last"], name)


def _dense(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    weight = net.constant(f"{name}.weight", net.weight(name, "kernel"))
    net.add("MatMul", [*inputs, weight], f"{name}.scores")
    net.add(config["activation"].title(), [f"{name}.scores"], name)


def _activation(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    net.add(config["activation"].title(), inputs, name)


def _sum(net: _Network, name: str, config: _Config, inputs: list[str]) -> None:
    net.add("Add", inputs, name)


_LAYERS: Mapping[str, Callable[[_Network, str, _Config, list[str]], None]] = {
    "Activation": _activation,
    "Add": _sum,
    "AveragePooling2D": _pool,
    "BatchNormalization": _bn,
    "Conv2D": _conv,
    "Dense": _dense,
    "Flatten": _flatten,
}


def rebuilt(path: Path) -> onnx.ModelProto:
    """Return a network that Keras 2 has stored, with the number of examples left open.

    Args:
        path: of the HDF5 file, with one input ``(height, width, channels)``, layers without bias,
            and Dense layers as outputs.
    """
    import h5py

    with h5py.File(path) as file:
        stored = file["model_weights"]
        net = _Network(lambda layer, name: stored[f"{layer}/{layer}/{name}:0"][()])
        text = file.attrs["model_config"]
        layers = json.loads(text if isinstance(text, str) else text.decode())["config"]["layers"]
        sizes = layers[0]["config"]["batch_input_shape"]
        x = layers[0]["name"]
        for layer in layers[1:]:
            inputs = [each[0] for each in layer["inbound_nodes"][0]]
            _LAYERS[layer["class_name"]](net, layer["name"], layer["config"], inputs)
    shape = ["N", sizes[3], sizes[1], sizes[2]]
    dense = [layer["config"] for layer in layers if layer["class_name"] == "Dense"]
    graph = helper.make_graph(
        net.nodes,
        path.stem,
        [_described(x, shape)],
        [_described(each["name"], ["N", each["units"]]) for each in dense],
        net.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _described(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
