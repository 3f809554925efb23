"""How large the output of a layer becomes, beside the products that it sums up.

A new weight may be so small that its type rounds it coarsely. Whether that is seen depends on what
stands beside it: a bias, most often, in a channel that has all but died.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.operators.weight_axes import broadcast_shape
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.sizes import sizes


class OutputSize(NamedTuple):
    """Sizes per output channel, laid out to broadcast against the layer's grouped weight.

    Attributes:
        products: of what the new weight and the data add up to.
        whole: of the output, in which a bias stands beside that.
    """

    products: Float64
    whole: Float64


def output_sizes(state: GraphState, index: int) -> tuple[OutputSize, ...]:
    """Return how large BatchNormalizations say the output of a layer becomes.

    Args:
        state: the graph with all changes.
        index: the layer.

    Returns:
        A size for each of several kinds of data; nothing if nothing is known, or the layer's data
        are others than they were.
    """
    layer = state.layer_or_none(index)
    if layer is None:
        return ()
    into, out = state.side_changes(index)
    if into is not None or out is None:
        return ()
    vectors, bias = out.vector(layer.out_axis, layer.channels_out), _bias(layer)
    if vectors is None or bias is None:
        return ()
    (scale, shift), found = vectors, []
    for spread in sizes(state, state.graph.writes[index][0]):
        known = spread.vector(layer.out_axis, layer.channels_out)
        if known is None:
            return ()
        deviation, mean = known
        products = np.abs(scale) * (np.abs(mean - bias) + deviation)
        whole = np.abs(scale * mean + shift) + np.abs(scale) * deviation
        shape = broadcast_shape(layer.layout, layer.grouped, "go")
        found.append(OutputSize(products.reshape(shape), whole.reshape(shape)))
    return tuple(found)


def _bias(layer: LinearLayer) -> Float64 | None:
    """Return the bias per output channel, None if it is no such vector."""
    if layer.bias is None:
        return np.zeros(layer.channels_out)
    if layer.bias.size not in (1, layer.channels_out):
        return None
    value = layer.view.constants.value(layer.bias.name).astype(np.float64).reshape(-1)
    return np.broadcast_to(value * layer.beta, layer.channels_out)
