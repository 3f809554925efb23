"""Tensors that become one because what lies between them is removed.

Of a group of tensors those are *seen* that a node which stays writes or reads, or that keep their
names. The others are nobody's any more: a change of the group is decided on without them, and what
it makes of them is composed when all is decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from onnx_bnfold.model.graph import Graph
from onnx_bnfold.operators.affine import VANISHED, Affine

_ROUNDING = 1e-6  # far more than that of a row of compositions

_Key = str | tuple[int, int]  # see ``graph_state``


class _Trail(NamedTuple):
    """What has happened to a group since a tensor of it was seen for the last time, newest first.

    Attributes:
        lost: a tensor that was seen no more from here on, and the change that it had.
        change: that the seen ones have got since then.
        before: what happened before that; of each of two groups if they were joined here.
    """

    lost: tuple[str, Affine | None] | None
    change: Affine | None
    before: tuple[_Trail, ...]


class _Group(NamedTuple):
    """Tensors that have become one.

    Attributes:
        members: all of them.
        seen: those that somebody writes, reads or knows.
        between: the nodes that have gone between them.
    """

    members: list[str]
    seen: tuple[str, ...]
    between: tuple[int, ...]


class Groups:
    """The tensors of a graph, each a group of its own until it is joined with others.

    A name is fixed if somebody outside the graph knows it, or nobody in the graph computes it.

    Args:
        graph: the graph.
        named: further names that are fixed.

    Attributes:
        joined: the names that stand for their groups no more, in order.
    """

    def __init__(self, graph: Graph, named: Set[str] = frozenset()) -> None:
        self._graph = graph
        self._named = named
        self.joined: list[str] = []
        self._parents: dict[str, str] = {}
        self._groups: dict[str, _Group] = {}  # by the name that stands for them
        self._trails: dict[str, _Trail] = {}
        self._readers_left: dict[str, int] = {}
        self._written_by_gone: set[str] = set()
        self._carried: dict[int, Carried] = {}

    def copy(self) -> Groups:
        """Return groups of their own that are as these are now."""
        new = Groups(self._graph, self._named)
        new._parents, new.joined = dict(self._parents), [*self.joined]
        groups = self._groups.items()
        new._groups = {root: group._replace(members=[*group.members]) for root, group in groups}
        new._trails, new._readers_left = dict(self._trails), dict(self._readers_left)
        new._written_by_gone = set(self._written_by_gone)
        return new

    def root(self, name: str) -> str:
        """Return the name that stands for the whole group of a tensor."""
        parents, root = self._parents, name
        if name not in parents:  # most are alone
            return name
        while root in parents:
            root = parents[root]
        while name != root:  # the next time the way is short
            parents[name], name = root, parents[name]
        return root

    def carried(self, index: int, keys: Mapping[int, _Key]) -> Carried:
        """Return what the ports of a wide node carry, given the key of each."""
        if index not in self._carried:
            self._carried[index] = Carried(self, keys)
        return self._carried[index]

    def are_joined(self, *names: str) -> bool:
        """Whether another name stands for the group of any of some tensors."""
        return not self._parents.keys().isdisjoint(names)

    def members(self, name: str) -> list[str]:
        """Return the group of a tensor, itself included."""
        root = self.root(name)
        group = self._groups.get(root)
        return [root] if group is None else group.members

    def seen(self, name: str) -> tuple[str, ...]:
        """Return those of the group of a tensor that somebody writes, reads or knows."""
        if not self._groups:
            return (name,)
        root = self.root(name)
        group = self._groups.get(root)
        return (root,) if group is None else group.seen or (root,)

    def between(self, name: str) -> tuple[int, ...]:
        """Return the nodes that have gone between the members of the group of a tensor."""
        group = self._groups.get(self.root(name)) if self._groups else None
        return () if group is None else group.between

    def join(self, index: int, before: str, after: str) -> list[str]:
        """Make two groups one as a node goes; the root of the second stands for both.

        Args:
            index: the node.
            before, after: the tensors that it reads and writes.

        Returns:
            Those of the two that nobody sees any more.
        """
        readers, left, parents = self._graph.readers, self._readers_left, self._parents
        count = left.get(before)
        left[before] = (len(readers.get(before, ())) if count is None else count) - 1
        lost = [before] if before in self._written_by_gone and self.is_lost(before) else []
        self._written_by_gone.add(after)
        if (after in left or after not in readers) and self.is_lost(after):
            lost.append(after)
        old = self.root(before) if before in parents else before
        root = self.root(after) if after in parents else after
        if old != root:
            parents[old] = root
            self.joined.append(old)
        if lost or old == root or old in self._groups or root in self._groups:
            self._grow(old, root, index, lost)
        else:  # most were alone; a tuple's own constructor takes a third of the time
            alone = [old, root], (old, root), (index,)
            self._groups[root] = tuple.__new__(_Group, alone)
        return lost

    def _grow(self, old: str, root: str, index: int, lost: list[str]) -> None:
        """Let one root stand for two groups, or for one that a node led back to."""
        groups = self._groups
        members, seen, between = groups.get(root) or _Group([root], (root,), ())
        if old != root:
            first, others, nodes = groups.pop(old, _Group([old], (old,), ()))
            if len(first) >= len(members):  # the longer of the lists goes on
                first += members
                members = first
            else:
                members[:0] = first
            seen, between = (*(others or (old,)), *(seen or (root,))), (*nodes, *between)
            if self._trails:
                trails = [self._trails.pop(each) for each in (old, root) if each in self._trails]
                if trails:
                    self._trails[root] = _Trail(None, None, tuple(trails))
        seen = seen or (root,)
        if lost:  # a hub of many readers loses none
            seen = tuple([name for name in seen if name not in lost])
        groups[root] = _Group(members, seen, (*between, index))

    def is_lost(self, name: str) -> bool:
        """Whether nobody sees a tensor any more."""
        if name not in self._written_by_gone:
            return False
        left = self._readers_left.get(name)
        is_read = left != 0 if left is not None else name in self._graph.readers
        return not is_read and not self.is_fixed(name)

    def lose(self, name: str, change: Affine | None) -> None:
        """Note the change that a tensor had when it was seen for the last time."""
        root = self.root(name)
        trail = self._trails.get(root)
        self._trails[root] = _Trail((name, change), None, () if trail is None else (trail,))

    def change(self, name: str, change: Affine) -> None:
        """Note that the seen tensors of a group have got a further change."""
        root = self.root(name)
        trail = self._trails.get(root)
        if trail is not None:
            both = change if trail.change is None else trail.change.then(change)
            self._trails[root] = trail._replace(change=both)

    @property
    def has_lost(self) -> bool:
        """Whether there is any tensor that nobody sees."""
        return bool(self._trails)

    def lost(self, name: str) -> Iterator[tuple[str, Affine | None]]:
        """Yield the tensors of a group that nobody sees, each with its change by now."""
        trail = self._trails.get(self.root(name)) if self._trails else None
        yield from () if trail is None else _followed(trail)

    def may_be_unchanged(self, name: str, more: Affine | None) -> bool:
        """Whether a tensor of a group that nobody sees may be as it was after a further change.

        It is judged by one element of each, as there may be thousands.
        """
        trail = self._trails.get(self.root(name)) if self._trails else None
        return trail is not None and any(map(_Element.may_be_unchanged, _elements(trail, more)))

    def all_lost(self) -> Iterator[tuple[str, Affine | None]]:
        """Yield all tensors that nobody sees, each with its change by now."""
        for trail in self._trails.values():
            yield from _followed(trail)

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
        return any(map(self.is_fixed, self.seen(name)))


class Carried:
    """What the ports of a node carry, by what stands for it as groups are joined.

    A Concat or Split may have thousands of ports, of which few change.

    Args:
        groups: the tensors that have become one.
        keys: the ports of the node, and the key of each.
    """

    def __init__(self, groups: Groups, keys: Mapping[int, _Key]) -> None:
        self._groups = groups
        self._places = {port: place for place, port in enumerate(keys)}
        self._ports: dict[_Key, list[int]] = {}
        self._joined = len(groups.joined)
        for port, key in keys.items():
            root = groups.root(key) if isinstance(key, str) else key
            self._ports.setdefault(root, []).append(port)

    @property
    def ports(self) -> Mapping[_Key, Sequence[int]]:
        """The ports by the key that stands for what they carry."""
        joined = self._groups.joined
        for old in joined[self._joined :]:
            ports = self._ports.pop(old, None)
            if ports is not None:
                self._ports.setdefault(self._groups.root(old), []).extend(ports)
        self._joined = len(joined)
        return self._ports

    def place(self, port: int) -> int:
        """Return the place of a port among all."""
        return self._places[port]


class _Element(NamedTuple):
    """What becomes of the first element of a tensor.

    Attributes:
        scale, shift: of it.
        size: of all that the shift is the sum of.
    """

    scale: float
    shift: float
    size: float

    def after(self, change: Affine | None) -> _Element:
        """Return what becomes of it if it has changed before."""
        if change is None:
            return self
        summand = self.scale * change.shift.item(0)
        scale = self.scale * change.scale.item(0)
        scale = math.inf if abs(scale) >= VANISHED else scale  # from here on it is lost in part
        return _Element(scale, summand + self.shift, abs(summand) + self.size)

    def may_be_unchanged(self) -> bool:
        """Whether that may be nothing, but for rounding."""
        if not math.isfinite(self.scale):
            return True
        return not (abs(self.scale - 1) > _ROUNDING or abs(self.shift) > _ROUNDING * self.size)


def _elements(newest: _Trail, more: Affine | None) -> Iterator[_Element]:
    """Yield what becomes of the first elements of the tensors along a trail."""
    todo = [(newest, _Element(1.0, 0.0, 0.0).after(more))]
    while todo:
        trail, since = todo.pop()
        since = since.after(trail.change)
        if trail.lost is not None:
            yield since.after(trail.lost[1])
        todo += [(each, since) for each in trail.before]


def _followed(newest: _Trail) -> Iterator[tuple[str, Affine | None]]:
    """Yield the tensors along a trail, each with the change that it had and those since then."""
    todo: list[tuple[_Trail, Affine | None]] = [(newest, None)]
    while todo:
        trail, since = todo.pop()
        since = _then(trail.change, since)
        if trail.lost is not None:
            name, change = trail.lost
            yield name, _then(change, since)
        todo += [(each, since) for each in trail.before]


def _then(one: Affine | None, other: Affine | None) -> Affine | None:
    return one.then(other) if one is not None and other is not None else one or other
