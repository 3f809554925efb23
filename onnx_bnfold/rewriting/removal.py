"""Dropping constants that nothing reads any more, and what only they needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import chain

from onnx import GraphProto

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import quantization_parameters
from onnx_bnfold.model.repeated_fields import drop, drop_named
from onnx_bnfold.rewriting.descriptions import described_in, drop_annotations
from onnx_bnfold.rewriting.integrity import Text


def drop_dead(
    text: Text,
    constants: Constants,
    initializer_names: Sequence[str],
    below: Sequence[Text],
    maybe_unread: set[str],
) -> set[str]:
    """Drop the unread constants among ``maybe_unread``, and what only they needed.

    Args:
        text: the body that loses them.
        constants: of the body as it was.
        initializer_names: the names of its initializers, in their order.
        below: the bodies that its nodes carry, at any depth.
        maybe_unread: names of constants.

    Returns:
        The names in this body that stand for nothing any more.
    """
    body, nodes = text.body, text.nodes
    if not isinstance(body, GraphProto):  # of many functions, few lose anything
        maybe_unread = maybe_unread.intersection(name for node in nodes for name in node.output)
        if not maybe_unread:
            return set()
    uses: Counter[str] = Counter()
    for each in (text, *below):
        uses.update(chain.from_iterable(each.reads))
        uses.update(o if isinstance(o, str) else o.name for o in each.body.output)
        uses.update(quantization_parameters(each.body))
    queue = [name for name in maybe_unread if name not in uses]
    described = described_in(body)
    dead_nodes: set[int] = set()
    dead: set[str] = set()
    makers: dict[str, int] = {}
    if not described and set(initializer_names).issuperset(queue):
        dead.update(queue)  # no node makes them, and nothing goes along
        queue.clear()
    else:
        makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    while queue:
        name = queue.pop()
        dead.add(name)
        needed = described.get(name, [])
        index = makers.get(name)
        if index is not None and not constants.is_computed(name):
            index = None
        if index is not None and not any(uses[output] for output in nodes[index].output):
            needed = [*needed, *(() if index in dead_nodes else nodes[index].input)]
            dead_nodes.add(index)
        for other in needed:
            uses[other] -= 1
            if not uses[other]:
                queue.append(other)
    if dead_nodes:
        drop(body.node, [index in dead_nodes for index in range(len(nodes))])
        text.reread()
    if isinstance(body, GraphProto):
        _drop_initializers(body, initializer_names, dead)
        if described:
            drop_annotations(body, dead)
    return dead


def _drop_initializers(body: GraphProto, initializer_names: Sequence[str], dead: set[str]) -> None:
    formal = dead.intersection(item.name for item in body.input)
    if formal:
        drop_named(body.input, formal.intersection(initializer_names))
    # Without a loop in Python: most constants of most models are dropped here.
    drop(body.initializer, list(map(dead.__contains__, initializer_names)))
    drop_sparse(body, dead)
    drop_named(body.value_info, dead)


def drop_sparse(body: GraphProto, names: Set[str]) -> None:
    """Drop the sparse initializers of some names."""
    fields = body.sparse_initializer
    drop(fields, [sparse.values.name in names for sparse in fields])
