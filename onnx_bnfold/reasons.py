"""Why a node is kept: a stable code, the node that caused it, and one sentence for the user."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import NamedTuple


class Reason(str, Enum):
    """The codes of the report; a published code keeps its meaning."""

    TRAINING_MODE = "training_mode"
    EXTRA_OUTPUTS = "extra_outputs"
    NOT_PER_CHANNEL = "not_per_channel"
    PARAMETERS_NOT_CONSTANT = "parameters_not_constant"
    OVERRIDABLE_INITIALIZER = "overridable_initializer"
    NOT_FINITE = "not_finite"
    BAD_VARIANCE = "bad_variance"
    INCONSISTENT_SHAPES = "inconsistent_shapes"
    UNSUPPORTED_TYPE = "unsupported_type"
    OVERFLOW = "overflow"
    PRECISION = "precision"
    RANGE = "range"
    GRAPH_INPUT = "graph_input"
    GRAPH_OUTPUT = "graph_output"
    CAPTURED = "captured_by_subgraph"
    OPAQUE = "opaque_operator"
    QUANTIZED = "quantized"
    WEIGHT_NOT_CONSTANT = "weight_not_constant"
    BIAS_NOT_CONSTANT = "bias_not_constant"
    PADDING = "padding"
    NEEDS_POSITIVE_SCALE = "needs_positive_scale"
    NO_SHIFT = "no_shift"
    AXES = "axes"
    UNKNOWN_SHAPE = "unknown_shape"
    CONFLICT = "conflict"
    NOT_SMALLER = "not_smaller"
    SEARCH_LIMIT = "search_limit"
    FUNCTION_ATTRIBUTE = "function_attribute"
    EQUALIZED = "equalized"
    UNKNOWN_VERSION = "unknown_version"
    SHARED_WEIGHT = "shared_weight"
    EXCLUDED = "excluded"


class Refusal(NamedTuple):
    """Why a change cannot be made.

    Attributes:
        reason: the code.
        culprit: label of the node or tensor that refuses, e.g. ``Relu 'relu_1'``.
        sentence: what is in the way, and what the user can do.
    """

    reason: Reason
    culprit: str
    sentence: str

    def to_dict(self) -> dict[str, str]:
        """Return it as plain JSON types."""
        return {"reason": self.reason.value, "culprit": self.culprit, "sentence": self.sentence}


def told(refusal: Refusal) -> str:
    """Return who refuses, and why."""
    return f"{refusal.culprit}: {refusal.sentence}"


class Refused(Exception):
    """Raised during planning where a change meets a node that cannot take it.

    Keep its ``refusal``, not the exception: an exception refers to the frames that it has passed,
    and these to the model.

    Attributes:
        refusal: why.
        because: of an outcome that is refused, the keys (``graph_state.Key``) whose changes have
            led to it, whatever the others are; empty if they are not known.
    """

    def __init__(
        self,
        reason: Reason,
        culprit: str,
        sentence: str,
        because: Collection[str | tuple[int, int]] = (),
    ) -> None:
        self.refusal = Refusal(reason, culprit, sentence)
        self.because = because

    def __str__(self) -> str:
        return told(self.refusal)

    @classmethod
    def again(cls, refusal: Refusal) -> Refused:
        """Return a new exception for a known refusal."""
        return cls(refusal.reason, refusal.culprit, refusal.sentence)
