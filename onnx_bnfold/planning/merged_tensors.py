"""Tensors that become one because what lies between them is removed."""

from __future__ import annotations

from collections.abc import Set

from onnx_bnfold.model.graph import Graph


class Groups:
    """The tensors of a graph, each a group of its own until it is joined with others.

    A name is fixed if somebody outside the graph knows it, or nobody in the graph computes it.

    Args:
        graph: the graph.
        named: further names that are fixed.
    """

    def __init__(self, graph: Graph, named: Set[str] = frozenset()) -> None:
        self._graph = graph
        self._named = named
        self._parents: dict[str, str] = {}
        self._members: dict[str, list[str]] = {}

    def copy(self) -> Groups:
        """Return groups of their own that are as these are now."""
        new = Groups(self._graph, self._named)
        new._parents, new._members = dict(self._parents), dict(self._members)
        return new

    def root(self, name: str) -> str:
        """Return the name that stands for the whole group of a tensor."""
        while name in self._parents:
            name = self._parents[name]
        return name

    def is_joined(self, name: str) -> bool:
        """Whether another name stands for the group of a tensor."""
        return name in self._parents

    def members(self, name: str) -> list[str]:
        """Return the group of a tensor, itself included."""
        root = self.root(name)
        return self._members.get(root, [root])

    def join(self, before: str, after: str) -> None:
        """Make two groups one; the root of the second stands for both."""
        old, root = self.root(before), self.root(after)
        if old != root:
            self._members[root] = [*self._members.pop(old, [old]), *self._members.get(root, [root])]
            self._parents[old] = root

    def fixed(self) -> set[str]:
        """Return all names that are fixed."""
        graph = self._graph
        outer = graph.uses.keys() - graph.producer.keys()
        return outer | graph.outputs | graph.captured.keys() | self._named

    def is_fixed(self, name: str) -> bool:
        """Whether this very name is fixed."""
        graph = self._graph
        if name in graph.outputs or name in graph.captured or name in self._named:
            return True
        return name in graph.uses and name not in graph.producer

    def has_fixed(self, name: str) -> bool:
        """Whether a name of the group of a tensor is fixed."""
        return any(map(self.is_fixed, self.members(name)))
