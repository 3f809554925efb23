"""Which calls of local functions are inlined: those by which a BatchNormalization goes.

A function's inputs and outputs are opaque to it, and a call to its caller. So the model is planned
as if all calls were inlined in the main graph, and so are those functions that hold all parameters
of a BatchNormalization. What goes there and not in the model as it is says which calls have to be:
those that hold a node or a constant that takes part. A BatchNormalization goes, too, that may be
written in a form that is asked for. A function in which that is so by itself stays a function, and
what it calls is inlined in it. An If whose condition a call gives is replaced by the branch that it
takes where more goes by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from onnx import ModelProto

from onnx_bnfold.model.bare import without_metadata
from onnx_bnfold.model.functions import Functions, Key, Root, Size, of_model
from onnx_bnfold.model.graph import copy_of, graphs_of
from onnx_bnfold.planning.plan import with_roots
from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import Refusal
from onnx_bnfold.rewriting.fresh_names import Names
from onnx_bnfold.rewriting.inlined_plans import (
    Attempted,
    Planned,
    Plans,
    Summary,
    Trial,
    complete_functions,
    stays,
    taking_part,
)
from onnx_bnfold.rewriting.inlining import Accept, Call, Inlined, drop_uncalled, inline

# With its calls inlined a model may have so many nodes and elements of constants, or several times
# as many as it has.
_ALWAYS, _TIMES = Size(10_000, 1 << 22), Size(4, 2)


class Choice(NamedTuple):
    """What is done with the calls of a model.

    Attributes:
        model: the model with calls inlined, None if none is.
        attempted: the same, planned.
        calls: number of calls that were inlined.
        verdicts: (path of a graph, output of a BatchNormalization that stays there) → what was
            decided on it with all calls inlined: what is in its way beyond the border.
        gone: the BatchNormalizations that go by that, each by its body and output.
        is_settled: whether no more goes if further calls are inlined in the result.
    """

    model: ModelProto | None
    attempted: Attempted | None
    calls: int
    verdicts: Mapping[tuple[str, str], Record]
    gone: frozenset[tuple[Root, str]] = frozenset()
    is_settled: bool = False


def choose(
    model: ModelProto, plans: Plans, trial: Trial, *, all_instead_of: Attempted | None = None
) -> Choice:
    """Choose the calls that are inlined.

    Args:
        model: the model.
        plans: of the model as it is.
        trial: plans another model.
        all_instead_of: the model with those calls inlined that are so far; all are, if fewer
            BatchNormalizations stay then.
    """
    functions = Functions(model)
    if not functions.calls[None] or len(functions.by_key) < len(model.functions):
        return Choice(None, None, 0, {})
    return _Chooser(model, functions, plans, trial).choose(all_instead_of)


def inline_all(model: ModelProto) -> ModelProto:
    """Return a model with all calls inlined, those of functions that are too large left out.

    onnx's own inliner loses attributes that have a default.
    """
    functions = Functions(model)
    names = Names(graphs_of(model))
    inlined = inline(model, functions, names, _bounded(model, functions, {}))
    drop_uncalled(inlined, functions)
    return inlined.model


def _bounded(model: ModelProto, functions: Functions, too_large: dict[Key, str]) -> Accept:
    """Accept all calls, as long as the model does not become too large.

    Args:
        model: the model.
        functions: its functions.
        too_large: gets those with calls in the main graph that are not accepted, and why.
    """
    used, size = {None, *functions.reachable()}, of_model(model)
    left = Size(
        max(_ALWAYS.nodes, _TIMES.nodes * size.nodes),
        max(_ALWAYS.elements, _TIMES.elements * size.elements),
    )

    def accept(call: Call, key: Key) -> bool:
        nonlocal left
        if call.root not in used:
            return False
        if len(call.path) > 1:  # it is counted along with the call that it is in
            return True
        size = functions.sizes[key]
        if size.fits(left):
            left = left.minus(size)
            return True
        if call.root is None:
            too_large.setdefault(
                key,
                f"it has {size.nodes} nodes and {size.elements} elements of constants once the "
                "calls in it are inlined, too many for its calls; inline it with onnx.inliner",
            )
        return False

    return accept


class _Chooser:
    def __init__(self, model: ModelProto, functions: Functions, plans: Plans, trial: Trial) -> None:
        self.model = model
        self.functions = functions
        self.plans = plans
        self.trial = trial
        self.used: set[Root] = {None, *functions.reachable()}
        self.too_large: dict[Key, str] = {}
        self._hinder_kept()

    def choose(self, all_instead_of: Attempted | None) -> Choice:
        before = Planned(Inlined(self.model), self.plans)
        staying = {
            (origin.function, origin.name)
            for origin, plan, index, _ in before.bns()
            if origin.call.root in self.used and stays(plan, index)
        }
        if not staying:
            return Choice(None, None, 0, {})
        whole = self._whole(staying)
        summary = Summary.of(whole[0])
        choices = [*self._choices(whole, staying)] if all_instead_of is None else []
        del whole  # the plans of all there is, several times: the largest there will be
        if all_instead_of is not None:
            now = Planned(Inlined(all_instead_of.model), all_instead_of.plans)
            flat = self._with(summary.calls)
            best = flat if flat.left() < now.left() else before
        else:
            best = self._best(before, choices, summary.left)
        number, verdicts = best.inlined_calls(), dict(self._verdicts(best, summary))
        is_settled = summary.is_settled and best.left() == summary.left
        if not number:
            return Choice(None, None, 0, verdicts, is_settled=is_settled)
        theirs = staying & {(origin.function, origin.name) for origin in best.going()}
        return Choice(
            best.with_ifs, best.attempted, number, verdicts, frozenset(theirs), is_settled
        )

    def _whole(self, staying: Set[tuple[Root, str]]) -> list[Planned]:
        """Plan the model with all calls inlined, without what planning does not read.

        Returns:
            The main graph with the functions that it still calls, and those functions, if there
            are any, in which a BatchNormalization may go whoever calls them.
        """
        model = without_metadata(copy_of(self.model))
        functions = Functions(model)
        functions.hindered.update(self.functions.hindered)
        accept = _bounded(model, functions, self.too_large)
        inlined = inline(model, functions, self._names(), accept, (None,))
        main = self._attempted(inlined, norms_alone=True)
        alone = complete_functions(main, staying)
        parts = [main.with_branches(self.trial)]
        if alone:
            del model.graph.node[:], model.graph.output[:]
            roots = [key for key in functions.by_key if key in alone]
            inlined = inline(model, functions, self._names(), accept, roots)
            parts.append(self._attempted(inlined, norms_alone=True).with_branches(self.trial))
        return parts

    def _choices(
        self, whole: Sequence[Planned], staying: Set[tuple[Root, str]]
    ) -> Iterator[Set[Call]]:
        """Yield sets of calls by the inlining of which more may go, the smaller one first.

        Args:
            whole: the model with all calls inlined; see ``_whole``.
            staying: the BatchNormalizations that stay as it is, each by its body and output.
        """
        going = [part.going() for part in whole]
        everywhere = {origin for each in going for origin in each if origin.call.root in self.used}
        needed: set[Call] | None = None
        for part, origins in zip(whole, going, strict=True):
            wanted = [
                start
                for origin, start in origins.items()
                if origin.call.root in self.used
                and (origin.function, origin.name) in staying
                and not any(inner in everywhere for inner in part.seen_from_inside(origin))
            ]
            if wanted:
                needed = (needed or set()) | taking_part(part, filter(None, wanted)) | part.for_ifs
        if needed is not None:  # what only the size of a tensor depends on is not among them
            yield needed
            yield needed | {call for call in whole[0].inlined.calls if call.root is None}

    def _best(self, before: Planned, choices: Sequence[Set[Call]], fewest: int) -> Planned:
        """Return the model as it is, or that with the fewest calls inlined that is better.

        Args:
            before: the model as it is.
            choices: the calls to inline, one set after another until one is good enough.
            fewest: how many BatchNormalizations stay then.
        """
        best = before
        for calls in choices:
            now = self._with(calls)
            if now.left() < best.left():
                best = now
            if best.left() <= fewest:
                break
        return best

    def _with(self, calls: Set[Call]) -> Planned:
        """Plan the model with some calls inlined."""
        inlined = inline(self.model, self.functions, self._names(), _those(calls))
        drop_uncalled(inlined, self.functions)
        return self._attempted(inlined, norms_alone=False).with_branches(self.trial)

    def _names(self) -> Names:
        return Names(plan.state.graph for plan in self.plans)

    def _attempted(self, inlined: Inlined, *, norms_alone: bool) -> Planned:
        attempted = self.trial(inlined.model, norms_alone)
        return Planned(inlined, attempted.plans, attempted)

    def _hinder_kept(self) -> None:
        """Leave functions whose BatchNormalizations a user names: a copy has another name."""
        for root, plan in with_roots(self.functions, self.plans):
            if root is not None and plan.state.kept:
                why = "it holds a BatchNormalization that --keep names"
                self.functions.hindered.setdefault(root, why)

    def _verdicts(
        self, best: Planned, summary: Summary
    ) -> Iterator[tuple[tuple[str, str], Record]]:
        """Yield why BatchNormalizations stay whatever is inlined; see ``Choice.verdicts``."""
        for origin, plan, index, record in best.bns():
            if record.folded or origin.call.root not in self.used:
                continue
            seen = summary.fates.get((origin.function, origin.name), [])
            if origin.call.root is None:
                seen = [each for each in seen if each[0] == origin]
            else:
                seen = [each for each in seen if each[0].call not in best.inlined.calls]
            where = plan.state.graph.path, plan.state.graph.writes[index][0]
            if seen and not any(each.folded for _, each in seen):
                yield where, seen[0][1]
            elif not seen and record.refusal is not None:
                refusal = self._not_inlined(record.refusal, origin.function, summary)
                yield where, record._replace(refusal=refusal)

    def _not_inlined(self, refusal: Refusal, function: Root, summary: Summary) -> Refusal:
        why = {**summary.refused, **self.too_large}
        queue = [function]
        for root in queue:  # grows during the loop
            if root is not None and root in why:
                name = f"{root[0]}::{root[1]}"
                sentence = f"{refusal.sentence}; function {name} is not inlined: {why[root]}"
                return Refusal(refusal.reason, refusal.culprit, sentence)
            callers = (key for key, called in self.functions.calls.items() if root in called)
            queue += [key for key in callers if key not in queue]
        return refusal


def _those(needed: Set[Call]) -> Accept:
    """Accept some calls, and in what is inlined those that would be in the function itself."""
    functions: dict[Call, Key] = {}

    def accept(call: Call, key: Key) -> bool:
        functions[call] = key
        *around, _ = call.outermost_first
        inside = (Call(functions[c], call.path[end:]) for end, c in enumerate(around, 1))
        return call in needed or any(each in needed for each in inside)

    return accept
