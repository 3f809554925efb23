"""Which nodes compute the same whenever they get the same, so that constants make constants."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx

# What onnx's reference evaluator computes as onnxruntime does, in every version and any type. Of
# other operators it misreads versions (BatchNormalization 9) or attributes (MaxPool's ceil_mode).
READ_BY_REFERENCE = frozenset(
    {
        *("Abs", "Add", "Cast", "CastLike", "Ceil", "Concat", "Constant", "ConstantOfShape"),
        *("Div", "Exp", "Expand", "Flatten", "Floor", "Gather", "Identity", "Log", "Max", "Min"),
        *("Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape", "Shape", "Size", "Slice"),
        *("Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze"),
    }
)
# (operator, input) of which only the type, or only the dims, matter.
TYPE_ONLY = frozenset({("CastLike", 1)})
DIMS_ONLY = frozenset({("Shape", 0), ("Size", 0)})

# Inputs over which onnxruntime writes further outputs of a node: statistics while it trains. If
# something else reads them, the model's results change from run to run.
WRITTEN_OVER = {"BatchNormalization": (3, 4)}
# What may hand on its first input without a copy: who writes over its output writes over that.
WITHOUT_COPY = frozenset(
    {
        *("Cast", "CastLike", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)


@cache
def is_deterministic(op: str | None, opset: int) -> bool:
    """Return whether nodes of an operator depend on their inputs and attributes alone.

    Args:
        op: the operator, None outside the standard domain.
        opset: version of the operator set.

    Returns:
        False for what draws random numbers, may do so (Dropout), runs a subgraph (If, Loop, Scan),
        or is unknown.
    """
    if op is None:
        return False
    try:
        schema: Any = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return False
    kind = schema.node_determinism  # which the stub lacks
    # onnx 1.22 takes Range for another: its function has a Loop.
    return op in READ_BY_REFERENCE or kind == onnx.defs.OpSchema.NodeDeterminism.Deterministic
