"""Notes in the ``doc_string`` of nodes that a fold has left, for the folds of its result.

A fold knows more than any that follows: what the nodes that it removes say of the values around
them, how far a tensor has been rescaled, in which shapes the nodes were found. What it leaves for
such a reason a later fold with the same limits would remove, and a note keeps it from that.
"""

from __future__ import annotations

import re

from onnx import NodeProto

from onnx_bnfold.model.graph import Graph
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.reasons import Reason, Refused

# What a note is for beside the ``Reason`` that a node stays for.
BRANCH, EQUALIZE, STANDALONE = "branch", "equalize", "standalone"
_START = "onnx_bnfold: left for"
_SENTENCE = (
    "the fold that has made this model left it for this reason, which the model does not show any "
    "more; fold the original model, or set other limits"
)


def note(node: NodeProto, why: str, limits: Limits) -> None:
    """Note at a node that it was left.

    Args:
        node: gets the note in its ``doc_string``.
        why: the value of a ``Reason``, or one of those above.
        limits: of the fold; others may judge otherwise.
    """
    append(node, f"{_START} {why} {_end(limits)}")


def append(node: NodeProto, text: str) -> None:
    """Add a text to the ``doc_string`` of a node."""
    node.doc_string = f"{_text(node)} {text}".lstrip()


def is_noted(node: NodeProto, why: str, limits: Limits) -> bool:
    """Whether a fold with the same limits has left a node for a reason."""
    return f"{_START} {why} {_end(limits)}" in _text(node)


def require_unnoted(graph: Graph, index: int, limits: Limits) -> None:
    """Refuse to remove a node that a fold with the same limits has left.

    Raises:
        Refused: there is a note of a ``Reason``.
    """
    text = _text(graph.nodes[index])
    if _START not in text:
        return
    for why in re.findall(f"{_START} (\\w+) {re.escape(_end(limits))}", text):
        if why in {reason.value for reason in Reason}:
            raise Refused(Reason(why), graph.label(index), _SENTENCE)


def _text(node: NodeProto) -> str:
    """Return the ``doc_string`` of a node, which protobuf hands as bytes where it is no text."""
    text: str | bytes = node.doc_string
    return text if isinstance(text, str) else text.decode(errors="replace")


def _end(limits: Limits) -> str:
    most = limits.max_rescale
    rescaling = "as its type allows" if most is None else repr(float(most))
    return f"(profile {limits.profile}, rescaling {rescaling})"
