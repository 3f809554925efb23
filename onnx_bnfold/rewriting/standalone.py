"""BatchNormalizations that stay, written as a Mul and an Add, or as a depthwise Conv.

They are replaced in a copy of the model, which is planned again: each half may find a place where
the whole has found none. The copy holds what is written where nothing more is found, constants that
are rounded, so that a fold of the result makes up its mind from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from itertools import accumulate

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnx_bnfold.model.float_formats import as_type
from onnx_bnfold.model.graph import Body, counterparts, operator
from onnx_bnfold.model.messages import new_attribute, new_node, new_tensor
from onnx_bnfold.model.misread import UNITED
from onnx_bnfold.model.node_view import accepts
from onnx_bnfold.model.repeated_fields import arrange
from onnx_bnfold.model.united_branches import united_behind
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.options import Standalone
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.notes import STANDALONE, is_noted
from onnx_bnfold.planning.plan import GraphPlan, Restated
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.record import Record
from onnx_bnfold.planning.sizes import told
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.rewriting.branch_merging import declare
from onnx_bnfold.rewriting.fresh_names import Names
from onnx_bnfold.rewriting.integrity import Text, require_intact
from onnx_bnfold.rewriting.replaced_nodes import Copied
from onnx_bnfold.rewriting.rounded_products import ONE, product

# The first takes the place, the attributes aside, and the name of the BatchNormalization.
_OPERATORS: Mapping[Standalone, Sequence[str]] = {"mul-add": ("Mul", "Add"), "conv": ("Conv",)}
_SUFFIXES = ("factor", "summand")


def to_restate(plan: GraphPlan, form: Standalone, limits: Limits) -> set[int]:
    """Return the nodes that are to be written in another form.

    Args:
        plan: of one graph; from now on it says why nodes cannot be written so.
        form: what BatchNormalizations that stay are to be written as.
        limits: say what costs precision.
    """
    found = set()
    for index, record in plan.records.items():
        if record.folded or index in plan.state.kept:
            continue
        why = _why_not(plan.state, index, record, form, limits)
        if why is not None:
            if record.refusal is None or why != record.refusal.sentence:
                plan.records[index] = record._replace(not_written=why)
            continue
        try:
            _require_exact(plan.state, index, form, limits)
        except Refused as refused:
            plan.records[index] = record._replace(refusal=refused.refusal)
        else:
            found.add(index)
    return found


def has_form(plan: GraphPlan, index: int, form: Standalone) -> bool:
    """Return whether a node that stays may be written in another form."""
    state, limits = plan.state, plan.limits
    if index in state.kept or _why_not(state, index, plan.records[index], form, limits) is not None:
        return False
    try:
        _require_exact(state, index, form, limits)
    except Refused:
        return False
    return True


def _require_exact(state: GraphState, index: int, form: Standalone, limits: Limits) -> None:
    """Refuse a form that would lose digits, or whose constants do not fit their type."""
    limits.check_product(state, index)
    view = state.view(index)
    for values in _constants(state, index, form):
        product(values, ONE, batchnorm.data_type(view), view)


def _why_not(
    state: GraphState, index: int, record: Record, form: Standalone, limits: Limits
) -> str | None:
    """Return why a node that stays is not to be written in another form, None if it may be."""
    if is_noted(state.graph.nodes[index], STANDALONE, limits):
        return "an earlier fold left it"
    try:
        if record.refusal is not None and record.refusal.reason is Reason.PRECISION:
            # It, or a node beside it, may read little more than rounding errors.
            limits.check_rounding(state, index)
    except Refused as refused:
        return refused.refusal.sentence
    return _why_impossible(state, index, form)


def _why_impossible(state: GraphState, index: int, form: Standalone) -> str | None:
    try:
        channels, rank = state.bn(index).channels, state.rank(index)
        is_contradicted = rank < 2 or state.affine_of(index).vector(1, channels) is None
        is_empty = 0 in state.view(index).dims_in(0)[2:]
    except Refused as refused:
        return refused.refusal.sentence
    if is_contradicted:
        return "the layers around it contradict each other on the rank of its input"
    if form == "conv" and rank < 3:
        return f"its input has {rank} axes, and a Conv needs 3; mul-add has no such limit"
    if form == "conv" and is_empty:
        return "its input has an axis without elements, on which no runtime computes a Conv"
    kind = batchnorm.data_type(state.view(index))
    if form == "conv" and kind == TensorProto.DOUBLE:
        return "it is of float64, for which runtimes have no Conv; mul-add has no such limit"
    # onnxruntime infers shapes too, and loads no node that does not fit what it has misread.
    misread = state.shapes.why_unknown(state.sides(index))
    if misread is not None:
        return misread[1]
    opset = state.graph.opset
    if opset < 7 or not all(accepts(operator, opset, kind) for operator in _OPERATORS[form]):
        return f"opset {opset} has no such operator for its type; a newer one may"
    return _why_too_telling(state, index)


def _why_too_telling(state: GraphState, index: int) -> str | None:
    """Return why no more may be known of a node's output than a BatchNormalization says."""
    if state.view(index).dims_in(0)[1] == state.bn(index).channels:
        return None
    for node in united_behind(state.graph, state.graph.writes[index][0]):
        if state.shapes.why_unknown(node.output) is not None:
            return (
                "the number of its channels is not inferred, another form would state it, and "
                f"{operator(node)} {(node.name or node.output[0])!r} whose branches may differ in "
                f"size might not load then; convert the model to opset {UNITED} or later"
            )
    return None


def _constants(state: GraphState, index: int, form: Standalone) -> tuple[Float64, Float64]:
    """Return factor and summand in the shapes that the new nodes read."""
    bn, spread = state.bn(index), (1,) * (state.rank(index) - 2)
    if form == "conv":
        return bn.a.reshape(-1, 1, *spread), bn.b
    return bn.a.reshape(-1, *spread), bn.b.reshape(-1, *spread)


def restated(
    copy: Callable[[], ModelProto],
    plans: Sequence[GraphPlan],
    form: Standalone,
    limits: Limits,
) -> Copied | None:
    """Return a copy of a model in which nodes that stay have another form, None if none has.

    Args:
        copy: makes a copy.
        plans: see ``to_restate``; one for each graph.
        form, limits: see there.

    Raises:
        BrokenResult: the new model is not sound.
    """
    found = [to_restate(plan, form, limits) for plan in plans]
    return apply(copy(), plans, found, form) if any(found) else None


def apply(
    model: ModelProto, plans: Sequence[GraphPlan], found: Sequence[Set[int]], form: Standalone
) -> Copied:
    """Replace BatchNormalizations in a copy of the model, in place.

    Args:
        model: the copy.
        plans: of its graphs as they were.
        found: for each graph the nodes to be replaced.
        form: what by.

    Raises:
        BrokenResult: the new model is not sound.
    """
    graphs = [plan.state.graph for plan in plans]
    bodies, names, copied = counterparts(model, graphs), Names(graphs), Copied(model)
    for position, plan in reversed([*enumerate(plans)]):  # a body before the one that holds it
        graph, nodes = plan.state.graph, found[position]
        editor = _Editor(model, bodies[position], plan.state, form, names)
        for index in sorted(nodes):
            copied.unread |= editor.replace(index)
        now = editor.finish()
        copied.moved |= {(position, index): place for index, place in enumerate(now)}
        for index in sorted(nodes):
            x, y = graph.reads[index][0], graph.writes[index][0]
            copied.told.setdefault(position, {}).update(told(plan.state, index))
            record = plan.records[index]._replace(written_as=form)
            was = Restated(form, graph.name(index), x, y, record)
            copied.restated[position, now[index]] = was
    require_intact(graphs, [*map(Text, bodies)], model.ir_version, halfway=True)
    return copied


class _Editor:
    """Replaces nodes of one body."""

    def __init__(
        self, model: ModelProto, body: Body, state: GraphState, form: Standalone, names: Names
    ) -> None:
        self._model = model
        self._body = body
        self._state = state
        self._form = form
        self._names = names
        self._front: list[NodeProto] = []
        self._behind: dict[int, NodeProto] = {}

    def replace(self, index: int) -> set[str]:
        """Write a node as something else; return the names of the constants that it has read."""
        node, state = self._body.node[index], self._state
        x, *parameters = node.input
        values, kind = _constants(state, index, self._form), batchnorm.data_type(state.view(index))
        label = state.graph.name(index)
        new = [
            self._define(self._names.fresh(f"{label}_{suffix}"), array, kind)
            for suffix, array in zip(_SUFFIXES, values, strict=True)
        ]
        del node.attribute[:], node.input[:], node.output[1:]
        node.op_type = _OPERATORS[self._form][0]
        if self._form == "conv":
            node.input.extend([x, *new])
            node.attribute.append(new_attribute("group", state.bn(index).channels))
        else:
            between = self._names.fresh(f"{node.output[0]}_product")
            name = self._names.fresh(f"{node.name}_bias") if node.name else ""
            self._behind[index] = new_node("Add", [between, new[1]], node.output, name=name)
            node.input.extend([x, new[0]])
            node.output[0] = between
        return set(parameters)

    def _define(self, name: str, values: Float64, data_type: int) -> str:
        value = new_tensor(as_type(values, data_type), name)
        body, version = self._body, self._model.ir_version
        if isinstance(body, GraphProto) and (version >= 4 or body is self._model.graph):
            declare(version, body, name, values.shape, data_type)
            body.initializer[-1].CopyFrom(value)
        else:
            self._front.append(new_node("Constant", [], [name], value=value))
        return name

    def finish(self) -> list[int]:
        """Put the new nodes in their places; return where each of the old ones is by now."""
        count = len(self._body.node)
        steps = (1 + (index in self._behind) for index in range(count))
        *now, _ = accumulate(steps, initial=len(self._front))
        places = [*range(0, 2 * count, 2), *(2 * index + 1 for index in self._behind)]
        self._body.node.extend((*self._behind.values(), *self._front))
        arrange(self._body.node, [*places, *(-1 for _ in self._front)])
        return now
