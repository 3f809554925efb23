"""Pairs of models for the check: a small network with BNs, and the same folded by hand."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 16
BNS = ("scale", "B", "mean", "var")
Weights = dict[str, np.ndarray]


def weights(dtype: str = "float32", *, seed: int = 0, width: int = 16) -> Weights:
    """Parameters of Conv-BN-Relu twice and a square Gemm, in float64 or rounded to a type."""
    rng = np.random.default_rng(seed)
    drawn: Weights = {}
    for i, inputs in enumerate((3, width)):
        drawn |= {
            f"w{i}": rng.standard_normal((width, inputs, 3, 3)) / np.sqrt(9 * inputs),
            f"scale{i}": rng.uniform(0.5, 1.5, width),
            f"B{i}": 0.1 * rng.standard_normal(width),
            f"mean{i}": 0.3 * rng.standard_normal(width),
            f"var{i}": rng.uniform(0.5, 1.5, width),
        }
    drawn["fc"] = rng.standard_normal((CLASSES, width)) / 4
    drawn["bias"] = rng.standard_normal(CLASSES)
    return {name: value.astype(dtype) for name, value in drawn.items()}


def fold(original: Mapping[str, np.ndarray], *, epsilon: float = 1e-3) -> Weights:
    """The parameters with each BN put into its Conv, computed in float64 and rounded once."""
    folded: Weights = {name: original[name] for name in ("fc", "bias")}
    for i in range(2):
        scale, shift, mean, var = (original[f"{n}{i}"].astype(np.float64) for n in BNS)
        a = scale / np.sqrt(var + epsilon)
        dtype = original[f"w{i}"].dtype
        folded[f"w{i}"] = (original[f"w{i}"] * a.reshape(-1, 1, 1, 1)).astype(dtype)
        folded[f"b{i}"] = (shift - mean * a).astype(dtype)
    return folded


def model(
    values: Mapping[str, np.ndarray],
    *,
    keep_conv_names: bool = False,
    head: tuple[str, ...] = (),
    epsilon: float = 1e-3,
    batch: int | str = "N",
) -> onnx.ModelProto:
    """The network, with BNs if the parameters have them.

    Args:
        values: from `weights` or `fold`.
        keep_conv_names: a folded Conv writes its own old name instead of the BN's.
        head: operators with one input and output behind the Gemm.
        epsilon: of the BNs.
        batch: first dimension of the input.
    """
    nodes, name = [], "x"
    for i in range(2):
        if f"scale{i}" in values:
            nodes.append(_conv(i, [name, f"w{i}"], f"conv{i}"))
            parameters = [f"{n}{i}" for n in BNS]
            name = f"bn{i}"
            nodes.append(
                helper.make_node(
                    "BatchNormalization", [f"conv{i}", *parameters], [name], name, epsilon=epsilon
                )
            )
        else:
            inputs, name = [name, f"w{i}", f"b{i}"], f"conv{i}" if keep_conv_names else f"bn{i}"
            nodes.append(_conv(i, inputs, name))
        nodes.append(helper.make_node("Relu", [name], [f"relu{i}"], f"n_relu{i}"))
        name = f"relu{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pool"], "n_pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "n_flat"),
    ]
    ends = [f"h{i}" for i in range(len(head))] + ["y"]
    nodes.append(helper.make_node("Gemm", ["flat", "fc", "bias"], [ends[0]], "n_fc", transB=1))
    nodes += [
        helper.make_node(op, [before], [after], f"n_{after}")
        for op, before, after in zip(head, ends, ends[1:], strict=False)
    ]
    return finish(nodes, values, (batch, 3, 12, 12))


def finish(
    nodes: list[onnx.NodeProto],
    values: Mapping[str, np.ndarray],
    shape: tuple[int | str, ...],
    *,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """A model of nodes that read input x, in the type of the weights, and write the outputs."""
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(v, n) for n, v in values.items() if n in used]
    kind = next((t.data_type for t in tensors if t.data_type != TensorProto.INT64), 1)
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", kind, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    typed = onnx.shape_inference.infer_shapes(made)
    for output in made.graph.output:
        known = {v.name: v for v in [*typed.graph.value_info, *typed.graph.output]}
        output.CopyFrom(known[output.name])
    return made


def pair(dtype: str = "float32", *, seed: int = 0, **options) -> tuple[onnx.ModelProto, ...]:
    """An original and its right fold."""
    values = weights(dtype, seed=seed)
    return model(values, **options), model(fold(values), **options)


def _conv(i: int, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node("Conv", inputs, [output], f"n_conv{i}", pads=[1] * 4)
