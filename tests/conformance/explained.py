"""Refusals that are right although a change exists: where, and why.

An entry is an operator (`"*"` for all), a reason code, a condition, and the explanation. Whatever a
rule refuses without reason and without an entry here is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onnx_bnfold.affine import VANISHED
from onnx_bnfold.reasons import Reason, Refusal

from .engine import Ports, Trial

Condition = Callable[[Trial, Ports], bool]


class Explained(NamedTuple):
    """Why an operator may refuse for a reason, None for any, under a condition."""

    operator: str
    reason: Reason | None
    condition: Condition
    why: str


def _not_ordinary(trial: Trial, known: Ports) -> bool:
    return any(not (c.is_invertible and c.is_ordinary) for c in known.values())


def _dead(trial: Trial, known: Ports) -> bool:
    return any(((c.scale == 0) | (np.abs(c.scale) >= VANISHED)).any() for c in known.values())


def _attribute(name: str, *values: object) -> Condition:
    """Whether an attribute has one of some values."""
    return lambda trial, known: trial.case.attributes.get(name) in values


def _given(name: str) -> Condition:
    """Whether an input is given, and not false or zero throughout."""
    return lambda trial, known: any(
        o.name == name and o.value is not None and o.value.any() for o in trial.case.operands
    )


def _open(trial: Trial, known: Ports) -> bool:
    operands = range(len(trial.case.operands))
    return any(trial.open_axes(p) for p in (*operands, -1) if p < 0 or trial.samples[0][p].ndim)


def _run_time(trial: Trial, known: Ports) -> bool:
    return bool(trial.case.run_time)


EXPLAINED = (
    Explained(
        "*", None, _dead,
        "a scale of zero makes a constant, of which much holds that no other channel would take",
    ),
    Explained(
        "MaxPool", Reason.OPAQUE, lambda trial, known: trial.case.outputs > 1,
        "a positive scale leaves the indices alone; a model that unpools is not worth a rule",
    ),
    Explained(
        "Dropout", Reason.OPAQUE, _given("training_mode"),
        "in training mode with a ratio of zero nothing is dropped; no model is exported like that",
    ),
    Explained(
        "Cast", Reason.UNSUPPORTED_TYPE, lambda trial, known: True,
        "a truth value survives a scale, an integer none but by chance: it holds no floats",
    ),
    Explained(
        "Resize", Reason.OPAQUE, _attribute("coordinate_transformation_mode", "tf_crop_and_resize"),
        "it fills with a constant only where the region exceeds the image; no exporter writes it "
        "between layers",
    ),
    Explained(
        "Gemm", None, _attribute("alpha", 0.0),
        "with an alpha of zero nothing of the input comes out",
    ),
    Explained(
        "*", Reason.PRECISION, _not_ordinary,
        "a scale of zero, or one that stands for its inverse, is divided by: the numbers would do, "
        "but a constant or a weight cannot hold them",
    ),
    Explained(
        "*", Reason.UNKNOWN_SHAPE, _open,
        "the model leaves sizes open that decide where elements go; that the sizes of this run "
        "would allow it says nothing of others",
    ),
    Explained(
        "*", Reason.PARAMETERS_NOT_CONSTANT, _run_time,
        "a parameter is computed at run time; what it is in this run says nothing of others",
    ),
)  # fmt: skip


def explanation(trial: Trial, known: Ports, refusal: Refusal) -> str:
    """Why a refusal is right; "" if nobody knows."""
    for entry in EXPLAINED:
        if entry.operator in ("*", trial.case.op) and entry.reason in (None, refusal.reason):
            with np.errstate(all="ignore"):
                if entry.condition(trial, known):
                    return entry.why
    return ""
