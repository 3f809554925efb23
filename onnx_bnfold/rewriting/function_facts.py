"""What inlining a call has to know of its function, read once: there may be thousands of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import FunctionProto

from onnx_bnfold.model.functions import Functions, Key, nodes_within, versions
from onnx_bnfold.model.graph import STANDARD_DOMAINS
from onnx_bnfold.rewriting.function_nodes import defined


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a function.

    Attributes:
        function: the function.
        inputs, outputs: their names.
        defined: the names that its nodes define, and those below them, in order.
        has_parameters: whether attributes of its nodes are parameters of it.
        versions: of the operator sets that it imports.
        operators: domain and operator of its nodes and those below them, without calls, in order.
    """

    function: FunctionProto
    inputs: Sequence[str]
    outputs: Sequence[str]
    defined: Sequence[str]
    has_parameters: bool
    versions: Mapping[str, int]
    operators: Sequence[tuple[str, str]]


class AllFacts:
    """What is known of the functions of a model, each read when it is first asked for.

    Args:
        functions: the functions.
        default: the version of the standard operator set where a function imports none.
    """

    def __init__(self, functions: Functions, default: int) -> None:
        self.functions = functions
        self.default = default
        self._known: dict[Key, Facts] = {}

    def of(self, key: Key) -> Facts:
        """Return what is known of a function."""
        if key not in self._known:
            self._known[key] = self._read(self.functions.by_key[key])
        return self._known[key]

    def _read(self, function: FunctionProto) -> Facts:
        nodes = [*nodes_within(function.node)]
        operators = dict.fromkeys(
            ("" if node.domain in STANDARD_DOMAINS else node.domain, node.op_type)
            for node in nodes
            if self.functions.callee(node) is None
        )
        return Facts(
            function,
            function.input[:],
            function.output[:],
            [*dict.fromkeys(defined(function.node))],
            any(item.ref_attr_name for node in nodes for item in node.attribute),
            versions(function.opset_import, self.default),
            [*operators],
        )
