"""A partial solution of a search for a place for changes (``propagation``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.graph_state import Key
from onnx_bnfold.planning.waiting import Waiting


@dataclass(eq=False, repr=False)
class Branch:
    """What is decided so far, and what is still to be looked at.

    What becomes of tensors that have become one is kept by the name that stands for them.

    Attributes:
        changes: what changes.
        held: what is held fixed, with an identity.
        forced: nodes to look at.
        open: nodes that leave a choice.
        decided: a node and the alternative chosen for it, still to be carried out.
        disturbed: how many tensors change, those that nobody sees any more among them.
        path: the numbers of the alternatives chosen so far.
        cut: a key at which the branch was left, as too many tensors change; its change; and the
            node that asks for it, still to be carried on.
    """

    changes: dict[Key, Affine] = field(default_factory=dict)
    held: dict[Key, Affine] = field(default_factory=dict)
    forced: Waiting = field(default_factory=Waiting)
    open: dict[int, None] = field(default_factory=dict)
    decided: tuple[int, Mapping[int, Affine]] | None = None
    disturbed: int = 0
    path: tuple[int, ...] = ()
    cut: tuple[Key, Affine, int | None] | None = None

    def forks(self, index: int, alternatives: Sequence[Mapping[int, Affine]]) -> list[Branch]:
        """Return copies that have decided for a node's alternatives each; no node is forced."""
        return [
            Branch(
                dict(self.changes),
                dict(self.held),
                Waiting(),
                dict(self.open),
                (index, alternative),
                self.disturbed,
                (*self.path, number),
            )
            for number, alternative in enumerate(alternatives)
        ]

    def nodes(self) -> Iterator[tuple[int, bool]]:
        """Take out the nodes to look at, those that are forced first, until none is left.

        Yields:
            A node, and whether to choose there, as none was forced.
        """
        while True:
            index = self.forced.take()
            if index is not None:
                self.open.pop(index, None)
                yield index, False
            elif self.open:
                index = next(iter(self.open))
                del self.open[index]
                yield index, True
            else:
                return

    def shares(self, other: Branch, keys: Iterable[Key]) -> bool:
        """Whether some keys are decided on in both, with the same changes."""
        found = ((self.of(key), other.of(key)) for key in keys)
        return all(one is not None and one is two for one, two in found)

    def of(self, key: Key) -> Affine | None:
        """Return what is decided for a key that stands for its group, None if nothing is."""
        return self.changes.get(key) or self.held.get(key)
