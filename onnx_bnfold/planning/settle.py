"""What another fold of the result would do, and how that is kept from it.

It is planned as the result would be, and what it finds is noted at the nodes that this fold leaves
(``notes``), until it finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from onnx import ModelProto

from onnx_bnfold.model.functions import Functions, Root
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.planning.notes import BRANCH, EQUALIZE, STANDALONE
from onnx_bnfold.planning.plan import GraphPlan, Place, Restated, with_roots
from onnx_bnfold.reasons import Reason


class Origins:
    """Where the nodes of each round's model stood in the first one, and what they were called."""

    def __init__(self) -> None:
        # For each round: (position of the graph, name of a tensor) → index and name of the node
        # that writes it. What is missing is as it is there.
        self._rounds: list[dict[tuple[int, str], tuple[int, str]]] = [{}]

    def follow(self, plans: Sequence[GraphPlan]) -> None:
        """Go on with the result of a plan."""
        found = {}
        for position, plan in enumerate(plans):
            graph, state = plan.state.graph, plan.state
            for index, written in enumerate(graph.writes):
                for name in () if index in state.removed else written:
                    where = self._where(-1, position, graph, index)
                    found.update({(position, n): where for n in state.groups.members(name)})
        self._rounds.append(found)

    def _where(self, number: int, position: int, graph: Graph, index: int) -> tuple[int, str]:
        written = next(iter(graph.writes[index]), "")
        return self._rounds[number].get((position, written), (index, graph.name(index)))

    def label(self, graphs: Sequence[Graph]) -> None:
        """Call the nodes of the present model that have no name by their first ones."""
        for position, graph in enumerate(graphs if self._rounds[-1] else ()):
            for index, name in enumerate(graph.names):
                if not name:
                    graph.names[index] = self._where(-1, position, graph, index)[1]

    def place(self, number: int, position: int, graph: Graph, index: int) -> Place:
        """Return the place in the first model of a node of a round's."""
        return position, self._where(number, position, graph, index)[0]


# (position of the graph, index of a node that a later plan would change, what it is left for)
Found = tuple[int, int, str]


def finds_places(plans: Sequence[GraphPlan], found: Sequence[Found]) -> bool:
    """Whether a later plan removes nodes only for which this one has found no place.

    Args:
        plans: the plan.
        found: see ``removed``.
    """
    return bool(found) and not any(
        index in plans[position].doubtful for position, index, _ in found
    )


def leave(
    plans: Sequence[GraphPlan],
    later: Sequence[GraphPlan],
    found: Sequence[Found],
    restated: Mapping[Place, Restated],
    *,
    measured: bool,
) -> bool:
    """Let a plan leave for good what a later one would change.

    Args:
        plans: the plan; gets the notes.
        later: the plan of its result.
        found: the nodes that this removes; see ``removed``.
        restated: what that would write in another form.
        measured: whether ``equalize`` goes by ranges that the next fold measures anew.

    Returns:
        Whether there is anything new to note.
    """
    # What goes along with them may stay by itself.
    left = [each for each in found if each[1] in plans[each[0]].doubtful] or [*found]
    left += _equalized(plans, later, measured=measured)
    for (position, _), was in restated.items():
        index = survivor(plans[position], was.output)
        if index is not None:
            left.append((position, index, STANDALONE))
    return _noted(plans, left)


def leave_branches(plans: Sequence[GraphPlan], resolved: Iterable[tuple[int, str]]) -> bool:
    """Let a plan leave for good the Ifs that another fold would replace by a branch.

    Args:
        plans: the plan; gets the notes.
        resolved: what the plan of its result has replaced; see ``Copied``.

    Returns:
        Whether there is anything new to note.
    """
    here = ((position, survivor(plans[position], name)) for position, name in resolved)
    return _noted(plans, [(p, index, BRANCH) for p, index in here if index is not None])


def leave_norms(model: ModelProto, plans: Sequence[GraphPlan], gone: Set[tuple[Root, str]]) -> bool:
    """Let a plan leave for good BatchNormalizations that go where calls are inlined in its result.

    Args:
        model: the model; its functions are those of the result.
        plans: its plan; gets the notes.
        gone: the body and the output of each.

    Returns:
        Whether there is anything new to note.
    """
    left = []
    for position, (root, plan) in enumerate(with_roots(Functions(model), plans)):
        for name in sorted(name for body, name in gone if body == root):
            here = survivor(plan, name)
            if here is not None:
                refusal = plan.records[here].refusal
                why = Reason.PRECISION if refusal is None else refusal.reason
                left.append((position, here, why.value))
                if plan.forms:
                    left.append((position, here, STANDALONE))
    return _noted(plans, left)


def _noted(plans: Sequence[GraphPlan], left: Iterable[Found]) -> bool:
    """Note what is left; return whether any of it is new."""
    is_new = False
    for position, index, why in left:
        known = plans[position].left.setdefault(index, [])
        if why not in known:
            known.append(why)
            is_new = True
    return is_new


def removed(plans: Sequence[GraphPlan], later: Sequence[GraphPlan]) -> Iterator[Found]:
    """Yield the nodes of a plan that a plan of its result removes."""
    for position, (plan, again) in enumerate(zip(plans, later, strict=True)):
        for index in sorted(again.state.removed):
            here = survivor(plan, again.state.graph.writes[index][0])
            if here is not None:
                refusal = plan.doubtful.get(here)
                why = Reason.PRECISION if refusal is None else refusal.reason  # it was rounding
                yield position, here, why.value


def _equalized(
    plans: Sequence[GraphPlan], later: Sequence[GraphPlan], *, measured: bool
) -> Iterator[Found]:
    for position, (plan, again) in enumerate(zip(plans, later, strict=True)):
        roots: Iterable[str] = {root for found in again.equalized.values() for root in found}
        # Of ranges that are measured anew nobody knows what they will say: a sum that is all but
        # zero is only rounding errors, and a new node's output has had no range yet.
        for root in again.free if measured else sorted(roots):
            here = survivor(plan, root)
            if here is not None:
                yield position, here, EQUALIZE
        for index in sorted(again.equal_scales):
            here = survivor(plan, again.state.graph.writes[index][0])
            if here is not None and here not in plan.equal_scales:
                yield position, here, EQUALIZE


def survivor(plan: GraphPlan, name: str) -> int | None:
    """Return the node that writes, in the result of a plan, the tensor of a name."""
    graph, state = plan.state.graph, plan.state
    makers = (graph.producer.get(member) for member in state.groups.members(name))
    return next((i for i in makers if i is not None and i not in state.removed), None)
