"""Which BatchNormalizations are left as they are on request (``Options.keep`` and ``only``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from onnx_bnfold.errors import UsageError
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.options import Options
from onnx_bnfold.reasons import Reason, Refusal

# Patterns by the name of the option that has them.
Patterns = Mapping[str, Sequence[str]]


class UnmatchedPatterns(UsageError):
    """Patterns match no BatchNormalization, perhaps by a slip of the pen.

    Args:
        patterns: which.
        where: what they were searched in.
    """

    def __init__(self, patterns: Patterns, where: str = "the model") -> None:
        given = (f"--{name} {', '.join(map(repr, found))}" for name, found in patterns.items())
        super().__init__(
            f"{' and '.join(given)}: no BatchNormalization of {where} has such a name or first "
            "output; correct the pattern or leave it out"
        )


def kept_by(graph: Graph, options: Options) -> dict[int, Refusal]:
    """Return the BatchNormalizations of a graph that are to be left, each with its refusal.

    Args:
        graph: the graph.
        options: whose patterns are searched in a node's name and in that of its first output.
    """
    found: dict[int, Refusal] = {}
    for index in _bns(graph) if options.keep or options.only else ():
        pattern = next((each for each in options.keep if _matches(graph, index, each)), None)
        if pattern is not None:
            sentence = f"it matches --keep {pattern!r}"
            found[index] = Refusal(Reason.EXCLUDED, graph.label(index), sentence)
        elif options.only and not any(_matches(graph, index, each) for each in options.only):
            found[index] = not_named(graph, index)
    return found


def not_named(graph: Graph, index: int) -> Refusal:
    """Return the refusal of a node that ``Options.only`` does not name."""
    return Refusal(Reason.EXCLUDED, graph.label(index), "no --only names it")


def unmatched(graphs: Sequence[Graph], options: Options) -> Patterns:
    """Return the patterns that match no BatchNormalization of any graph; see ``kept_by``."""
    given = {"keep": options.keep, "only": options.only}
    found = {
        name: [
            pattern
            for pattern in dict.fromkeys(patterns)
            if not any(_matches(graph, index, pattern) for graph in graphs for index in _bns(graph))
        ]
        for name, patterns in given.items()
    }
    return {name: patterns for name, patterns in found.items() if patterns}


def _bns(graph: Graph) -> Iterable[int]:
    return (index for index, op in enumerate(graph.ops) if op == batchnorm.OPERATOR)


def _matches(graph: Graph, index: int, pattern: str) -> bool:
    names = (graph.names[index], *graph.writes[index][:1])
    return any(re.search(pattern, name) for name in names if name)
