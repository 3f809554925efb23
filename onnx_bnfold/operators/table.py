"""The table of operators: one entry each, and everything that the package knows of them.

An operator that shares its entry's functions with no other has a file of its own in ``by_name``.
The other entries stand here or in the modules of their families: ``transparent`` for operators
through which changes pass, ``layouts`` for linear layers, and ``batchnorm_parameters``. Those here
are of layers that few models have: their nodes are read by ``normalizations``, for what normalises
by statistics of its data, and by ``recurrent``, which are imported then (``late``).
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_bnfold.operators import batchnorm, batchnorm_parameters, by_name, costs
from onnx_bnfold.operators.entries import UNKNOWN, Absorbing, Operator, Rank
from onnx_bnfold.operators.late import late
from onnx_bnfold.operators.layouts import LINEAR_LAYERS
from onnx_bnfold.operators.transparent import RULES


def _normalization(reader: str, version: int, parameters: tuple[int, ...] = (1, 2)) -> Absorbing:
    return Absorbing(
        late("normalizations", reader),
        (parameters,),
        squares=True,
        version=version,
        depth=costs.NO_POLYNOMIAL,
        rank=Rank.KEPT,
    )


def _recurrent(version: int) -> Absorbing:
    return Absorbing(
        late("recurrent", "recurrent_layer"),
        linear_in=(),
        parameters=(1, 2, 3),
        data_slot=0,
        version=version,
        multiply_adds=costs.unknown_products,
        depth=costs.unknown_depth,
    )


NORMALIZATIONS: Mapping[str, Absorbing] = {
    "GroupNormalization": _normalization("group_normalization", 21),
    "InstanceNormalization": _normalization("instance_normalization", 22),
    "LayerNormalization": _normalization("layer_normalization", 17),
    "RMSNormalization": _normalization("rms_normalization", 23, (1,)),
}
RECURRENT: Mapping[str, Absorbing] = {
    "GRU": _recurrent(22),
    "LSTM": _recurrent(22),
    "RNN": _recurrent(22),
}

OPERATORS: dict[str, Operator] = {
    **RULES,
    **LINEAR_LAYERS,
    **NORMALIZATIONS,
    **RECURRENT,
    batchnorm.OPERATOR: batchnorm_parameters.ENTRY,
}


def entry_of(operator: str | None) -> Operator:
    """Return the entry of an operator, ``UNKNOWN`` where it has none."""
    name = operator or ""
    return OPERATORS.get(name) or by_name.entry_of(name) or UNKNOWN


def every_entry() -> dict[str, Operator]:
    """Return all entries by operator, and import those of ``by_name``; for what walks them."""
    return {**OPERATORS, **by_name.every_entry()}
