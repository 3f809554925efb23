"""Repeated fields of protobuf messages: sorting them and taking messages out without copies."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial
from typing import Any

from onnx import NodeProto

from onnx_bnfold.model.messages import new_attribute

GONE = 1 << 29  # the place of a message that goes; more than any other


def arrange(field: Any, places: Sequence[int]) -> None:
    """Sort the messages of a repeated field, and take out those whose place is ``GONE``.

    They are sorted to its end: those that stay, weights among them, are not copied.

    Args:
        field: of a message.
        places: one per message; of those that are alike the order stays.
    """
    # A sort asks for its keys once, in the order of the field; what it gives is never the default.
    field.sort(key=partial(next, iter(places)))
    del field[len(places) - places.count(GONE) :]


def drop(field: Any, stale: Sequence[bool]) -> None:
    """Take messages out of a repeated field, those for which ``stale`` is true; see ``arrange``."""
    gone = sum(stale)
    if gone:
        field.sort(key=partial(next, iter(stale)))
        del field[len(stale) - gone :]


def drop_named(field: Any, names: Set[str]) -> None:
    """Take the messages of some names out of a repeated field."""
    if names:
        drop(field, [item.name in names for item in field])


def exchange(field: Any, slot: int, old: str, new: str) -> None:
    """Rename one end of a node, unless it has become another tensor's by now."""
    if slot < len(field) and field[slot] == old:
        field[slot] = new


def set_attribute(node: NodeProto, name: str, value: float | None) -> None:
    """Give a node an attribute in the place of one of the same name, or take it away."""
    drop_named(node.attribute, {name})
    if value is not None:
        node.attribute.append(new_attribute(name, value))
