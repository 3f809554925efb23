"""Names for new tensors and nodes."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_bnfold.model.graph import Graph


class Names:
    """All names of a model, to make new ones that collide with none."""

    def __init__(self, graphs: Iterable[Graph]) -> None:
        self.taken: set[str] = set()
        self._tried: dict[str, int] = {}  # each number up to it is taken, whatever comes
        for graph in graphs:
            self.taken.update(graph.uses)
            self.taken.update(graph.inputs, graph.outputs, graph.dims, graph.producer, graph.names)

    def fresh(self, wanted: str) -> str:
        """Return ``wanted``, or the first of ``wanted_1``, ``wanted_2``, … that is free."""
        name, number = wanted, self._tried.get(wanted, 0)
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        if number:
            self._tried[wanted] = number
        self.taken.add(name)
        return name
