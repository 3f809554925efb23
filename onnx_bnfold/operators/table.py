"""The table of operators: one entry each, and everything that the package knows of them.

The entries stand in the modules of their families: ``rules`` for operators through which changes
pass, ``layouts`` for linear layers, ``batchnorm``, and ``normalizations`` for what normalises by
statistics of its data.
"""

from __future__ import annotations

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.entries import UNKNOWN, Operator
from onnx_bnfold.operators.layouts import LINEAR_LAYERS
from onnx_bnfold.operators.normalizations import NORMALIZATIONS
from onnx_bnfold.operators.transparent import RULES

OPERATORS: dict[str, Operator] = {
    **RULES,
    **LINEAR_LAYERS,
    **NORMALIZATIONS,
    batchnorm.OPERATOR: batchnorm.ENTRY,
}


def entry_of(operator: str | None) -> Operator:
    """Return the entry of an operator, ``UNKNOWN`` where it has none."""
    return OPERATORS.get(operator or "", UNKNOWN)
