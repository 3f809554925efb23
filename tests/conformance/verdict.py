"""What a question to a rule came to."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.reasons import Refusal

from .engine import Ports, Trial


@dataclass(frozen=True)
class Finding:
    """A question that a rule answers wrongly, or refuses though it could answer.

    Attributes:
        kind: "unsound", "incomplete", "crash" or "misread".
        topic: what findings of one cause have in common.
        detail: what was answered, and what would have been right.
    """

    kind: str
    topic: str
    trial: Trial
    known: Ports
    detail: str

    @property
    def size(self) -> int:
        """How much a person has to read to see it."""
        elements = sum(int(value.size) for value in self.trial.samples[0])
        changes = sum(c.scale.size + c.shift.size for c in self.known.values())
        return elements + 3 * changes + 2 * len(self.trial.case.attributes)

    def text(self) -> str:
        case = self.trial.case
        lines = [
            f"{self.kind}: {case.text()}",
            f"  reproduce: --case {case.op}:{case.opset}:{case.seed}",
            *(f"  known {port_name(p)}: {change_text(c)}" for p, c in sorted(self.known.items())),
            f"  {self.detail}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Verdict:
    """One draw.

    Attributes:
        answered: whether the rule answered.
        refusal: why it did not.
        finding: what is wrong, if anything is.
        explained: why a refusal of what would be right is to be so.
        judged: whether the numbers could tell right from wrong.
    """

    answered: bool
    refusal: Refusal | None = None
    finding: Finding | None = None
    explained: str = ""
    judged: bool = True


def port_name(port: int) -> str:
    return f"output {~port}" if port < 0 else f"input {port}"


def change_text(change: Affine) -> str:
    def short(array):
        if array.size > 12:
            return f"{list(array.shape)} from {array.min():.6g} to {array.max():.6g}"
        return f"{list(array.shape)} {[float(f'{v:.6g}') for v in array.reshape(-1)]}"

    return f"scale {short(change.scale)}, shift {short(change.shift)}"


def ports_text(ports: Ports) -> str:
    return "; ".join(f"{port_name(p)}: {change_text(c)}" for p, c in sorted(ports.items()))
