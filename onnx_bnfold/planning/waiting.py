"""Nodes that a search has still to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class _Row(NamedTuple):
    """Nodes that were put in together.

    Attributes:
        nodes: those of them that are left.
        but: some that are passed over.
        since: how many nodes had been taken by then.
    """

    nodes: Iterator[int]
    but: tuple[int | None, ...]
    since: int


class Waiting:
    """Nodes in the order in which they were put in, each once while it waits.

    A tensor may have thousands of readers, and most searches end at the first of them. So a row of
    nodes is put in at once, and looked at as far as it is taken.
    """

    def __init__(self) -> None:
        self._rows: deque[_Row] = deque()
        self._taken: dict[int, int] = {}  # when each was taken last, counted in nodes
        self._count = 0

    def put(self, nodes: Sequence[int], *but: int | None) -> None:
        """Put nodes in, some passed over."""
        self._rows.append(_Row(iter(nodes), but, self._count))

    def take(self) -> int | None:
        """Take out the node that waits longest, None if there is none."""
        while self._rows:
            nodes, but, since = self._rows[0]
            for index in nodes:
                # What has been taken since waited already when it was put in once more.
                if index not in but and self._taken.get(index, -1) < since:
                    self._taken[index] = self._count
                    self._count += 1
                    return index
            self._rows.popleft()
        return None
