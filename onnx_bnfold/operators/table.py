"""The table of operators: one entry each, and everything that the package knows of them.

The entries stand in the modules of their families: ``transparent`` for operators through which
changes pass, ``layouts`` for linear layers, ``recurrent``, ``batchnorm_parameters``, and
``normalizations`` for what normalises by statistics of its data.
"""

from __future__ import annotations

from onnx_bnfold.operators import batchnorm, batchnorm_parameters
from onnx_bnfold.operators.entries import UNKNOWN, Operator
from onnx_bnfold.operators.layouts import LINEAR_LAYERS
from onnx_bnfold.operators.normalizations import NORMALIZATIONS
from onnx_bnfold.operators.recurrent import RECURRENT
from onnx_bnfold.operators.transparent import RULES

OPERATORS: dict[str, Operator] = {
    **RULES,
    **LINEAR_LAYERS,
    **NORMALIZATIONS,
    **RECURRENT,
    batchnorm.OPERATOR: batchnorm_parameters.ENTRY,
}


def entry_of(operator: str | None) -> Operator:
    """Return the entry of an operator, ``UNKNOWN`` where it has none."""
    return OPERATORS.get(operator or "", UNKNOWN)
