"""Which BatchNormalizations the user wants to have left as they are (``Options.keep``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onnx_bnfold.errors import UsageError
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.reasons import Reason, Refusal


class UnmatchedPatterns(UsageError):
    """Patterns match no BatchNormalization, perhaps by a slip of the pen.

    Attributes:
        patterns: which.

    Args:
        patterns: the same.
        where: what they were searched in.
    """

    def __init__(self, patterns: Sequence[str], where: str = "the model") -> None:
        self.patterns = frozenset(patterns)
        super().__init__(
            f"--keep {', '.join(map(repr, patterns))}: no BatchNormalization of {where} has such a "
            "name or first output; correct the pattern or leave it out"
        )


def kept_by(graph: Graph, patterns: Sequence[str]) -> dict[int, Refusal]:
    """Return the BatchNormalizations of a graph that match a pattern, each with its refusal.

    Args:
        graph: the graph.
        patterns: regular expressions, searched in a node's name and in that of its first output.
    """
    found: dict[int, Refusal] = {}
    for index in _bns(graph) if patterns else ():
        pattern = next((each for each in patterns if _matches(graph, index, each)), None)
        if pattern is not None:
            sentence = f"it matches --keep {pattern!r}"
            found[index] = Refusal(Reason.EXCLUDED, graph.label(index), sentence)
    return found


def unmatched(graphs: Sequence[Graph], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns that match no BatchNormalization of any graph; see ``kept_by``."""
    return tuple(
        pattern
        for pattern in dict.fromkeys(patterns)
        if not any(_matches(graph, index, pattern) for graph in graphs for index in _bns(graph))
    )


def _bns(graph: Graph) -> Iterable[int]:
    return (index for index, op in enumerate(graph.ops) if op == batchnorm.OPERATOR)


def _matches(graph: Graph, index: int, pattern: str) -> bool:
    names = (graph.names[index], *graph.writes[index][:1])
    return any(re.search(pattern, name) for name in names if name)
