"""How much a plan looks at before what is not decided by then stays.

Searches have limits of their own (``propagation``). A graph can be made, by accident or by malice,
in which each of thousands of nodes needs a search that looks at all the others; this bounds the
sum. What is counted is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import Reason, Refusal

# Steps that a plan of a graph may take, and so many more for each node. The real network that takes
# most (DenseNet-121, its BNs written with Mul and Add) takes 50 for each, the others far fewer.
ALWAYS, PER_NODE = 30_000, 150
# What is looked at in about the time of one question.
_LOOKS = 8


class Work:
    """What a plan of a graph has looked at so far; the copies of a state share it.

    Args:
        nodes: number of nodes of the graph.

    Attributes:
        asked: nodes that were asked how a change can be completed.
        looked_at: tensors of outcomes that were judged, and nodes whose answer was known already.
    """

    def __init__(self, nodes: int) -> None:
        self.most = ALWAYS + PER_NODE * nodes
        self.asked = self.looked_at = 0

    @property
    def steps(self) -> int:
        """How many steps that was."""
        return self.asked + self.looked_at // _LOOKS

    @property
    def is_spent(self) -> bool:
        """Whether nothing further is to be searched."""
        return self.steps > self.most

    def refusal(self, label: str) -> Refusal:
        """Return why a node stays that is not tried any more."""
        return Refusal(Reason.SEARCH_LIMIT, label, self._sentence)

    @property
    def _sentence(self) -> str:
        return (
            f"planning its graph has taken {self.most} steps, which are all that a graph of its "
            "size gets, and nothing is searched beyond them"
        )

    def left(self, records: Mapping[int, Record]) -> dict[int, list[str]]:
        """Return the nodes that stay for it, each with what is noted of that: ``GraphPlan.left``.

        The next fold would begin to count anew.
        """
        refusals = {index: record.refusal for index, record in records.items()}
        return {
            index: [refusal.reason.value]
            for index, refusal in refusals.items()
            if refusal is not None and refusal.sentence == self._sentence
        }
