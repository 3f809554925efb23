"""Merging parallel linear branches that start at one tensor and meet in an Add, into one Conv.

A 3x3 Conv, a 1x1 Conv and an identity, each with or without its BatchNormalization (RepVGG,
MobileOne, the Rep blocks of YOLO detectors in training form), are one Conv: kernels are embedded in
the largest one and added (Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again",
section 3.3). Kernels are added in float64; rounding is left to the fold that follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnx_bnfold.model.blocks import Elements, Stored, Streamed, Whole
from onnx_bnfold.model.float_formats import as_type
from onnx_bnfold.model.graph import Graph, copy_of, counterparts
from onnx_bnfold.model.messages import Value, new_attribute, new_value_info
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.plan import Taken
from onnx_bnfold.reasons import Refused
from onnx_bnfold.rewriting import node_origins
from onnx_bnfold.rewriting.descriptions import drop_descriptions, rename_shards
from onnx_bnfold.rewriting.fresh_names import Names
from onnx_bnfold.rewriting.integrity import Text, require_intact
from onnx_bnfold.rewriting.parallel_branches import Merge, Term
from onnx_bnfold.rewriting.removal import drop_dead

_BLOCK = 1 << 18  # elements that are added up at once: 2 MiB


class MergedWeight:
    """The sum of the embedded kernels, ``(C_out, C_in/group, *kernel)`` float64.

    Args:
        state: the graph as it was.
        merge: the merge.
    """

    def __init__(self, state: GraphState, merge: Merge) -> None:
        self._state = state
        self._merge = merge
        self.shape = (*state.layer(merge.conv).weight.dims[:2], *merge.geometry.kernel)

    def __call__(self) -> Float64:
        """Return all of it."""
        return np.concatenate([*self.blocks(), np.zeros((0, *self.shape[1:]))])

    def stored(self) -> Stored:
        """Return a reader that adds the kernels up block by block."""
        return Streamed(self.blocks, math.prod(self.shape), np.dtype(np.float64))

    def blocks(self) -> Iterator[Float64]:
        """Yield it in blocks of whole output channels."""
        kernels = [(term, self._kernel(term)) for term in self._merge.branch.terms]
        rows = max(1, _BLOCK // max(1, math.prod(self.shape[1:])))
        for first in range(0, self.shape[0], rows):
            total = np.zeros((min(rows, self.shape[0] - first), *self.shape[1:]))
            for term, kernel in kernels:
                if kernel is None:
                    self._add_identity(term, total, first)
                else:
                    self._add(term, kernel, total, first)
            yield total

    def _kernel(self, term: Term) -> Stored | None:
        """Return a reader of the kernel of a term; None for the identity."""
        if term.conv is None:
            return None
        return self._state.constants.stored(self._state.layer(term.conv).weight.name)

    def _add_identity(self, term: Term, total: Float64, first: int) -> None:
        """Add an identity to the output channels from ``first`` on."""
        channels = np.arange(len(total))
        inner = (first + channels) % total.shape[1]
        positions: tuple[Any, ...] = (channels, inner, *self._starts(term))
        total[positions] += self._scale(term, total, first)

    def _add(self, term: Term, kernel: Stored, total: Float64, first: int) -> None:
        """Add the kernel of a Conv to the output channels from ``first`` on."""
        shape = (*total.shape[:2], *term.geometry.kernel)
        value = np.empty(math.prod(shape), kernel.dtype)
        kernel.read_into(first * math.prod(shape[1:]), value)
        scale = self._scale(term, total, first).reshape(-1, *[1] * (len(shape) - 1))
        ends = zip(self._starts(term), term.geometry.kernel, strict=True)
        window: tuple[slice, ...] = tuple(slice(start, start + size) for start, size in ends)
        inside: tuple[slice, ...] = (slice(None), slice(None), *window)
        total[inside] += value.reshape(shape).astype(np.float64) * scale

    def _scale(self, term: Term, total: Float64, first: int) -> Float64:
        scale = np.broadcast_to(term.a, self.shape[:1])
        return np.asarray(scale[first : first + len(total)])

    def _starts(self, term: Term) -> list[int]:
        """Return where a term begins in the merged kernel, per spatial axis."""
        whole = self._merge.geometry
        own = term.geometry.before or (0,) * len(whole.before)
        ends = zip(whole.before, own, whole.dilations, strict=True)
        return [(before - start) // dilation for before, start, dilation in ends]


def bias(state: GraphState, merge: Merge) -> Float64:
    """Return the sum of the biases, ``(C_out,)`` float64."""
    total = np.zeros(state.layer(merge.conv).channels_out)
    for term in merge.branch.terms:
        total += term.b
        if term.conv is not None:
            info = state.layer(term.conv).bias
            if info is not None:
                total += term.a * state.constants.value(info.name).astype(np.float64)
    return total


def fits(state: GraphState, merge: Merge) -> bool:
    """Whether the merged constants can be computed, and are finite in the layer's data type."""
    data_type = state.layer(merge.conv).weight.data_type
    try:
        parts = chain(MergedWeight(state, merge).blocks(), [bias(state, merge)])
        return all(bool(np.isfinite(as_type(part, data_type)).all()) for part in parts)
    except Refused:  # a DequantizeLinear, say, computes one of them and cannot be evaluated
        return False


def apply(
    model: ModelProto,
    graphs: Sequence[Graph],
    state: GraphState,
    found: Sequence[Merge],
    *,
    metadata: bool,
) -> dict[str, Elements]:
    """Write merges into a copy of the model, in place.

    Args:
        model: the copy; its main graph is the one of ``state``.
        graphs: of the model as it was; the first is the one of ``state``.
        state: the main graph as it was.
        found: the merges.
        metadata: whether a merged Conv says which BatchNormalizations it took.

    Returns:
        For each new initializer, which has name, dims and type only, its elements in float64.

    Raises:
        BrokenResult: the model with merged branches is not sound.
    """
    graph = model.graph
    bodies = counterparts(model, graphs)
    nodes = list(graph.node)
    names_taken = Names(graphs)
    maybe_unread = {name for m in found for i in m.branch.nodes for name in nodes[i].input}
    pending: dict[str, Elements] = {}
    gone: set[int] = set()
    for merge in found:
        node = copy_of(nodes[merge.conv])
        names = [
            names_taken.fresh(f"{state.graph.name(merge.conv)}_merged_{w}")
            for w in ("weight", "bias")
        ]
        layer = state.layer(merge.conv)
        dims = ((*layer.weight.dims[:2], *merge.geometry.kernel), (layer.channels_out,))
        summed = Whole(partial(bias, state, merge))
        made: tuple[Elements, ...] = (MergedWeight(state, merge), summed)
        for name, shape, elements in zip(names, dims, made, strict=True):
            declare(model.ir_version, graph, name, shape, layer.weight.data_type)
            pending[name] = elements
        _write(node, merge, names, nodes[merge.branch.sums[-1]].output[0])
        if metadata and model.ir_version >= node_origins.OLDEST_IR_VERSION:
            node_origins.add(node, _taken(nodes, state, merge))
        gone |= merge.branch.nodes
        nodes[merge.branch.sums[-1]] = node
        gone.discard(merge.branch.sums[-1])
    vanished = {name for i in gone for name in state.graph.writes[i]}
    vanished -= {name for m in found for name in state.graph.writes[m.branch.sums[-1]]}
    maybe_unread |= drop_descriptions(graph, vanished)
    del graph.node[:]
    graph.node.extend(n for i, n in enumerate(nodes) if i not in gone)
    initializer_names = [tensor.name for tensor in graph.initializer]
    texts = [*map(Text, bodies)]
    below = [text for text, each in zip(texts, graphs, strict=True) if each.parent is not None]
    constants = state.constants
    drop_dead(texts[0], constants, initializer_names, below, constants.among(maybe_unread))
    require_intact(graphs, texts, model.ir_version, halfway=True)
    return pending


def _taken(nodes: Sequence[NodeProto], state: GraphState, merge: Merge) -> Iterator[str]:
    """Yield what a merged Conv has of nodes that are gone."""
    for index in merge.bns:
        yield node_origins.parts_of(state.place(index), Taken(scale=True, shift=True))
    yield from node_origins.said_of(nodes[index] for index in sorted(merge.branch.nodes))


def declare(
    ir_version: int, graph: GraphProto, name: str, dims: tuple[int, ...], data_type: int
) -> None:
    """Add an initializer that has name, dims and type, and no values yet."""
    graph.initializer.append(TensorProto(name=name, dims=dims, data_type=data_type))
    if ir_version < 4:
        graph.input.append(new_value_info(name, data_type, dims))


def _write(node: NodeProto, merge: Merge, names: Sequence[str], output: str) -> None:
    whole = merge.geometry
    values: dict[str, Value] = {
        "group": whole.group,
        "kernel_shape": whole.kernel,
        "strides": whole.strides,
        "dilations": whole.dilations,
        "pads": (*whole.before, *whole.after),
    }
    del node.attribute[:], node.input[:]
    node.attribute.extend(new_attribute(k, v) for k, v in values.items())
    node.input.extend([merge.branch.source, *names])
    node.output[0] = output
    rename_shards(node, {})
