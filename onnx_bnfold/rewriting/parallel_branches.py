"""Finding parallel linear branches that start at one tensor and meet in an Add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.reasons import Refused

SUMS = ("Add", "Sum")


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, one entry per spatial axis.

    Attributes:
        kernel, strides, dilations: as in Conv.
        before, after: the two halves of ``pads``.
    """

    group: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """One summand: a Conv or the identity, then ``a * y + b`` per output channel.

    Attributes:
        conv: index of the Conv, or None for the identity.
        geometry: its geometry.
        bns: indices of the BatchNormalizations behind it.
        a, b: their composition, ``(C_out,)``.
    """

    conv: int | None
    geometry: Geometry
    bns: tuple[int, ...]
    a: Float64
    b: Float64


@dataclass(frozen=True)
class Branch:
    """A tensor that is a sum of terms over one source.

    Attributes:
        source: name of the tensor all terms read.
        terms: the summands.
        sums: indices of the Add and Sum nodes that add them, the last one last.
    """

    source: str
    terms: tuple[Term, ...]
    sums: tuple[int, ...] = ()

    @property
    def nodes(self) -> set[int]:
        """All nodes that the merged Conv replaces."""
        convs = {t.conv for t in self.terms if t.conv is not None}
        return convs | {n for t in self.terms for n in t.bns} | set(self.sums)


@dataclass(frozen=True)
class Merge:
    """A branch and the geometry of the one Conv it becomes."""

    branch: Branch
    geometry: Geometry

    @property
    def conv(self) -> int:
        """Index of the Conv whose name and attributes are kept."""
        return next(t.conv for t in self.branch.terms if t.conv is not None)

    @property
    def bns(self) -> list[int]:
        """Indices of the BatchNormalizations that go."""
        return sorted(n for t in self.branch.terms for n in t.bns)


def merges(state: GraphState) -> list[Merge]:
    """Find the largest sums of parallel branches of a graph, in node order."""
    found: dict[str, Branch] = {}
    merged: dict[str, Merge] = {}
    for index, node in enumerate(state.graph.nodes):
        if state.graph.ops[index] not in SUMS or len(node.input) < 2:
            continue
        parts = [found.get(name) or _branch(state, name) for name in node.input]
        whole = _joined(index, parts)
        if whole is None or (geometry := _common(state, whole)) is None:
            continue
        for name in node.input:
            merged.pop(name, None)
        merged[node.output[0]] = Merge(whole, geometry)
        if state.graph.only_reader(node.output[0]):
            found[node.output[0]] = whole
    return list(merged.values())


def _branch(state: GraphState, name: str) -> Branch | None:
    """Walk from an operand of a sum through its BatchNormalizations to a Conv or the source."""
    graph, source = state.graph, name
    bns: list[int] = []
    a, b = np.ones(()), np.zeros(())
    index = graph.producer.get(source)
    while index is not None and state.graph.ops[index] == batchnorm.OPERATOR:
        if index in state.kept or not graph.only_reader(source):
            break
        try:
            bn = state.bn(index)
        except Refused:
            return None
        a, b = a * bn.a, b + a * bn.b
        bns.append(index)
        source = graph.nodes[index].input[0]
        index = graph.producer.get(source)
    if index is not None and graph.only_reader(source) and state.graph.ops[index] == "Conv":
        return _conv_branch(state, index, tuple(bns), a, b)
    point = Geometry(0, (), (), (), (), ())
    return Branch(source, (Term(None, point, tuple(bns), a, b),))


def _conv_branch(
    state: GraphState, index: int, bns: tuple[int, ...], a: Float64, b: Float64
) -> Branch | None:
    layer, view = state.layer_or_none(index), state.view(index)
    if layer is None:  # a weight that is computed at run time is not added to others
        return None
    kernel = tuple(layer.weight.dims[2:])
    ones, zeros = [1] * len(kernel), [0] * 2 * len(kernel)
    if layer.quantized or view.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads, strides = view.attribute("pads", zeros), view.attribute("strides", ones)
    dilations = view.attribute("dilations", ones)
    if (len(pads), len(strides), len(dilations)) != (2 * len(kernel), len(kernel), len(kernel)):
        return None
    geometry = Geometry(
        view.attribute("group", 1),
        kernel,
        tuple(strides),
        tuple(d if k > 1 else 1 for d, k in zip(dilations, kernel, strict=True)),
        tuple(pads[: len(kernel)]),
        tuple(pads[len(kernel) :]),
    )
    return Branch(view.reads[layer.data_slot], (Term(index, geometry, bns, a, b),))


def _joined(index: int, parts: Sequence[Branch | None]) -> Branch | None:
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len({part.source for part in known}) != 1:
        return None
    terms = tuple(term for part in known for term in part.terms)
    sums = (*(s for part in known for s in part.sums), index)
    convs = [term.conv for term in terms if term.conv is not None]
    if not convs or len(set(convs)) != len(convs):
        return None
    return Branch(known[0].source, terms, sums)


def _common(state: GraphState, branch: Branch) -> Geometry | None:
    """Return the geometry into which all kernels of a branch can be embedded, or None."""
    convs = [t for t in branch.terms if t.conv is not None]
    layers = [state.layer(t.conv) for t in convs if t.conv is not None]
    first = layers[0]
    same = {(x.weight.data_type, x.channels_out, x.channels_in, x.out_rank) for x in layers}
    if len(same) != 1 or len({(t.geometry.group, t.geometry.strides) for t in convs}) != 1:
        return None
    whole = _enclosing([t.geometry for t in convs])
    if whole is None:
        return None
    if len(convs) < len(branch.terms) and not _holds_identity(first, whole):
        return None
    return whole


def _enclosing(parts: Sequence[Geometry]) -> Geometry | None:
    rank = len(parts[0].kernel)
    before = tuple(max(p.before[i] for p in parts) for i in range(rank))
    after = tuple(max(p.after[i] for p in parts) for i in range(rank))
    dilations = tuple(max(p.dilations[i] for p in parts) for i in range(rank))
    kernels = set()
    for part in parts:
        kernel = []
        for i in range(rank):
            more = before[i] - part.before[i] + after[i] - part.after[i]
            step = dilations[i]
            fits = part.kernel[i] == 1 or part.dilations[i] == step
            if not fits or more % step or (before[i] - part.before[i]) % step:
                return None
            kernel.append(part.kernel[i] + more // step)
        kernels.add(tuple(kernel))
    if len(kernels) != 1:
        return None
    first = parts[0]
    return Geometry(first.group, kernels.pop(), first.strides, dilations, before, after)


def _holds_identity(layer: LinearLayer, whole: Geometry) -> bool:
    """Whether the merged Conv's output lies on its input, position by position."""
    centred = all(
        p % d == 0 and p + q == (k - 1) * d
        for p, q, k, d in zip(whole.before, whole.after, whole.kernel, whole.dilations, strict=True)
    )
    plain = all(s == 1 for s in whole.strides)
    return centred and plain and layer.channels_in == layer.channels_out
