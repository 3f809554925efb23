"""Names for new tensors and nodes."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_bnfold.model.graph import Graph


class Names:
    """All names of a model, to make new ones that collide with none."""

    def __init__(self, graphs: Iterable[Graph]) -> None:
        self.taken: set[str] = set()
        for graph in graphs:
            self.taken.update(graph.uses)
            self.taken.update(graph.inputs, graph.outputs, graph.dims, graph.producer, graph.names)

    def fresh(self, wanted: str) -> str:
        """Return ``wanted``, or the first of ``wanted_1``, ``wanted_2``, … that is free."""
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name
