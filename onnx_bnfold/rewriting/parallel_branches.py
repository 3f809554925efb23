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
from onnx_bnfold.rewriting.geometry import Extent, Geometry

SUMS = ("Add", "Sum")


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


@dataclass(frozen=True, eq=False)
class _Sum:
    """A branch while it grows, with what all its Convs have in common.

    Attributes:
        source: name of the tensor that all terms read.
        parts: what is added up; of a branch that is no sum, its term.
        index: the Add or Sum, None of a branch that is no sum.
        layer: one of its Convs, None if there is none.
        extent: what they are embedded in, None if there is none.
        has_identity: whether a term has no Conv.
    """

    source: str
    parts: tuple[_Sum | Term, ...]
    index: int | None
    layer: LinearLayer | None
    extent: Extent | None
    has_identity: bool

    @property
    def branch(self) -> Branch:
        """All its terms, in order."""
        terms: list[Term] = []
        sums: list[int] = []
        todo: list[_Sum | Term] = [self]
        while todo:
            part = todo.pop()
            if isinstance(part, Term):
                terms.append(part)
                continue
            if part.index is not None:
                sums.append(part.index)
            todo.extend(reversed(part.parts))
        return Branch(self.source, tuple(terms), tuple(sorted(sums)))


def merges(state: GraphState) -> list[Merge]:
    """Find the largest sums of parallel branches of a graph, in node order."""
    found: dict[str, _Sum] = {}
    largest: dict[str, tuple[_Sum, Geometry]] = {}
    for index, node in enumerate(state.graph.nodes):
        if state.graph.ops[index] not in SUMS or len(node.input) < 2:
            continue
        whole = _joined(index, [found.get(name) or _branch(state, name) for name in node.input])
        if whole is None or whole.extent is None:
            continue
        for name in node.input:
            largest.pop(name, None)
        largest[node.output[0]] = whole, whole.extent.geometry
        if state.graph.only_reader(node.output[0]):
            found[node.output[0]] = whole
    return [Merge(whole.branch, geometry) for whole, geometry in largest.values()]


def _branch(state: GraphState, name: str) -> _Sum | None:
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
    return _Sum(source, (Term(None, point, tuple(bns), a, b),), None, None, None, True)


def _conv_branch(
    state: GraphState, index: int, bns: tuple[int, ...], a: Float64, b: Float64
) -> _Sum | None:
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
    source, term = view.reads[layer.data_slot], Term(index, geometry, bns, a, b)
    return _Sum(source, (term,), None, layer, Extent.of(geometry), False)


def _joined(index: int, parts: Sequence[_Sum | None]) -> _Sum | None:
    """Return the sum of some branches, None if it is none itself."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len({part.source for part in known}) != 1:
        return None
    layer, extent = None, None
    for part in known:
        if layer is None or extent is None:
            layer, extent = part.layer, part.extent
        elif part.layer is not None and part.extent is not None:
            extent = extent.joined(part.extent) if _are_alike(layer, part.layer) else None
            if extent is None:
                return None
    has_identity = any(part.has_identity for part in known)
    if layer is None or extent is None:
        return None
    if has_identity and not _holds_identity(layer, extent.geometry):
        return None
    return _Sum(known[0].source, tuple(known), index, layer, extent, has_identity)


def _are_alike(one: LinearLayer, other: LinearLayer) -> bool:
    """Whether two layers have weights of one type, and map the same channels to the same."""
    first, second = (
        (x.weight.data_type, x.channels_out, x.channels_in, x.out_rank) for x in (one, other)
    )
    return first == second


def _holds_identity(layer: LinearLayer, whole: Geometry) -> bool:
    """Whether the merged Conv's output lies on its input, position by position."""
    centred = all(
        p % d == 0 and p + q == (k - 1) * d
        for p, q, k, d in zip(whole.before, whole.after, whole.kernel, whole.dilations, strict=True)
    )
    plain = all(s == 1 for s in whole.strides)
    return centred and plain and layer.channels_in == layer.channels_out
