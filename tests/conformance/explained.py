"""Refusals that are right although a change exists: where, and why.

An entry is an operator (`"*"` for all), a reason code, a condition, and the explanation. Whatever a
rule refuses without reason and without an entry here is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onnx_bnfold.operators.affine import VANISHED
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.reasons import Reason, Refusal

from .complete import influence
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


def _spread(trial: Trial, known: Ports) -> bool:
    """Whether windows may leave the image: dilated ones, and the last ones of a ceiling."""
    attributes = trial.case.attributes
    return max(attributes.get("dilations", [1])) > 1 or attributes.get("ceil_mode") == 1


def _given(name: str) -> Condition:
    """Whether an input is given, and not false or zero throughout."""
    return lambda trial, known: any(
        o.name == name and o.value is not None and o.value.any() for o in trial.case.operands
    )


def _same_bounds(trial: Trial, known: Ports) -> bool:
    given = {o.name: o.value for o in trial.case.operands if o.name}
    low, high = (trial.case.attributes.get(name, given.get(name)) for name in ("min", "max"))
    return (low is None and high is None) or (
        low is not None and high is not None and float(low) >= float(high)
    )


def _single(trial: Trial, known: Ports) -> bool:
    """Whether every element of the output is made of one element."""
    reached = influence(trial, 0, [OUT])
    names = {trial.case.key(slot) for slot, o in enumerate(trial.case.operands) if o.changes}
    return len(names) == 1 and reached is not None and bool((reached.sum(axis=0) <= 1).all())


def _one_wins(trial: Trial, known: Ports) -> bool:
    """Whether one operand, a constant out of reach perhaps, is the result in all samples."""
    slots = [slot for slot, operand in enumerate(trial.case.operands) if operand.name]
    pairs = [*zip(trial.samples, trial.outs, strict=True)]
    return any(
        all(np.array_equal(np.broadcast_to(x[slot], y.shape), y) for x, (y, *_) in pairs)
        for slot in slots
    )


def _repeated_axes(trial: Trial, known: Ports) -> bool:
    given = {o.name: o.value for o in trial.case.operands if not o.changes and o.name}
    axes = np.asarray(given.get("axes", trial.case.attributes.get("axes", [])))
    return len(set((axes % len(trial.shape(0))).tolist())) < axes.size


def _of_itself(trial: Trial, known: Ports) -> bool:
    return trial.case.key(0) == trial.case.key(1)


def _zero_constant(trial: Trial, known: Ports) -> bool:
    values = (o.value for o in trial.case.operands if o.value is not None)
    return any((value == 0).any() for value in values)


def _hidden(trial: Trial, known: Ports) -> bool:
    """Whether a constant is so large that float32 does not show what is added to it."""
    constants = (o.value for o in trial.case.operands if o.value is not None)
    return any((np.abs(value) >= 1e4).any() for value in constants)


def _constant_known(trial: Trial, known: Ports) -> bool:
    return any(p >= 0 and not trial.case.operands[p].is_data for p in known)


def _has_shift(known: Ports) -> bool:
    return any(change.has_shift for change in known.values())


def _reduces(trial: Trial, known: Ports) -> bool:
    return trial.case.attributes.get("reduction", "none") != "none"


def _exclusive(trial: Trial) -> bool:
    return trial.case.attributes.get("exclusive") == 1


def _pointless_power(trial: Trial, known: Ports) -> bool:
    return bool(np.isin(trial.samples[0][1], (0, 1)).any())


def _padded(trial: Trial, known: Ports) -> bool:
    attributes = trial.case.attributes
    return any(attributes.get("pads", ())) or "SAME" in attributes.get("auto_pad", "")


def _forward_over_two_axes(trial: Trial, known: Ports) -> bool:
    return 0 in known and min(trial.shape(0)[-2:]) > 1


def _deformed(trial: Trial, known: Ports) -> bool:
    """Whether a DeformConv moves or weighs its samples, or may do so in another run."""
    given = {o.name: o.value for o in trial.case.operands if o.value is not None}
    mask = given.get("mask", np.ones(()))
    return bool(trial.case.run_time) or given["offset"].any() or (mask != 1).any()


def _always(trial: Trial, known: Ports) -> bool:
    return True


def _matrix_bias(trial: Trial, known: Ports) -> bool:
    operands = trial.case.operands
    return len(operands) > 2 and operands[2].value is not None and operands[2].value.ndim == 2


def _over_positions(trial: Trial, known: Ports) -> bool:
    return any(max(change.shape[2:], default=1) > 1 for change in known.values())


def _along_reduced(trial: Trial, known: Ports) -> bool:
    """Whether a change varies along an axis that does not come out as it went in."""
    before, after = trial.shape(0), trial.shape(OUT)
    kept = before == after
    return not kept and any(max(change.shape, default=1) > 1 for change in known.values())


def _batched_weight(trial: Trial, known: Ports) -> bool:
    return any(o.value is not None and o.value.ndim > 2 for o in trial.case.operands)


def _vector_weight(trial: Trial, known: Ports) -> bool:
    return any(o.value is not None and o.value.ndim == 1 for o in trial.case.operands)


def _scaled_in_front(trial: Trial, known: Ports) -> bool:
    return 0 in known and known[0].has_scale


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
        "Col2Im", Reason.OPAQUE, _always,
        "of three axes onnxruntime makes another image than the specification",
    ),
    Explained(
        "Col2Im", Reason.CONFLICT, _always,
        "an image that no block reaches is zero, whatever the changes",
    ),
    Explained(
        "Slice", Reason.OPAQUE, _always,
        "onnxruntime's reading of an end behind the input is not the specification's",
    ),
    Explained(
        "MaxPool", Reason.OPAQUE, lambda trial, known: trial.case.outputs > 1,
        "a positive scale leaves the indices alone; a model that unpools is not worth a rule",
    ),
    Explained(
        "MaxPool", Reason.PADDING, _spread,
        "whether a window may lie in its padding is decided without the sizes of the image",
    ),
    Explained(
        "Dropout", Reason.OPAQUE, _given("training_mode"),
        "in training mode with a ratio of zero nothing is dropped; no model is exported like that",
    ),
    *(
        Explained(
            op, Reason.UNSUPPORTED_TYPE, _always,
            "a truth value survives a scale, an integer none but by chance: it holds no floats",
        )
        for op in ("Cast", "CastLike")
    ),
    Explained(
        "Resize", Reason.OPAQUE, _attribute("coordinate_transformation_mode", "tf_crop_and_resize"),
        "it fills with a constant only where the region exceeds the image; no exporter writes it "
        "between layers",
    ),
    Explained(
        "Clip", None, _same_bounds,
        "without bounds it does nothing, with equal ones it is a constant; nobody exports either",
    ),
    Explained("LeakyRelu", None, _attribute("alpha", 1.0), "with a slope of 1 it does nothing"),
    *(
        Explained(
            op, Reason.NEEDS_POSITIVE_SCALE, _single,
            "the largest of one element is that element: no exporter writes it",
        )
        for op in ("GlobalMaxPool", "Max", "MaxPool", "MaxRoiPool", "Min", "ReduceMax",
                   "ReduceMin")
    ),
    *(
        Explained(
            op, Reason.NEEDS_POSITIVE_SCALE, _one_wins,
            "the same operand wins in all samples; other values may let another",
        )
        for op in ("Max", "Min")
    ),
    *(
        Explained(
            op, Reason.AXES, _over_positions,
            "a change that varies over positions comes from no BatchNormalization",
        )
        for op in ("AveragePool", "Conv", "ConvTranspose", "DeformConv", "GlobalAveragePool",
                   "GlobalMaxPool", "GridSample", "InstanceNormalization", "LpPool", "MaxPool")
    ),
    *(
        Explained(
            op, Reason.AXES, _always,
            "a change that varies along a resized axis, or over channels that become positions, "
            "comes from no BatchNormalization or suits no layer behind",
        )
        for op in ("DepthToSpace", "Resize", "SpaceToDepth", "Upsample")
    ),
    *(
        Explained(
            op, Reason.AXES, _along_reduced,
            "what varies along a reduced axis may be a shift, whose mean would do, but no norm "
            "behind a layer makes one there",
        )
        for op in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
    ),
    *(
        Explained(
            op, Reason.OPAQUE, _attribute("noop_with_empty_axes", 1),
            "with no axes to reduce, older runtimes take it for an identity",
        )
        for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare")
    ),
    *(
        Explained(
            op, Reason.AXES, _always,
            "a change that varies a little along its axis leaves the order of these samples alone, "
            "and says nothing of others",
        )
        for op in ("ArgMax", "ArgMin", "Hardmax")
    ),
    Explained(
        "Hardmax", Reason.NEEDS_POSITIVE_SCALE, lambda trial, known: 2 in trial.shape(0),
        "of two elements one is the largest where the other is not: no model has a Hardmax of two",
    ),
    Explained(
        "LpPool", Reason.NO_SHIFT, _over_positions,
        "a change that varies over positions comes from no BatchNormalization",
    ),
    *(
        Explained(
            op, Reason.AXES, _always,
            "which elements it takes or adds along its axes is not looked at: channels are not "
            "sequences",
        )
        for op in ("Compress", "CumSum", "GatherElements", "GatherND", "ReverseSequence",
                   "Scatter", "ScatterElements", "ScatterND")
    ),
    *(
        Explained(
            op, reason, condition,
            "what is written over, or to a few places, may change otherwise than the rest",
        )
        for op in ("Scatter", "ScatterElements", "ScatterND")
        for reason, condition in ((Reason.CONFLICT, _always), (None, _reduces))
    ),
    Explained(
        "CumSum", None, lambda trial, known: _has_shift(known) or _exclusive(trial),
        "sums of one, two, … elements get as many shifts, a picture; the first, of none, is zero",
    ),
    *(
        Explained(
            "DFT", reason, _always,
            "a shift comes out at frequency zero, a picture; of one element nothing is mixed",
        )
        for reason in (Reason.AXES, Reason.NO_SHIFT)
    ),
    *(
        Explained(
            "STFT", reason, _always,
            "of one frame, or of one sample, the window takes what it does not take of more",
        )
        for reason in (Reason.AXES, Reason.NO_SHIFT)
    ),
    Explained(
        "GridSample", Reason.NO_SHIFT, _always,
        "no sample of this grid reaches the zeros around the image, or some do: a picture",
    ),
    *(
        Explained(
            op, reason, _always,
            "no sample of these regions leaves the image, or mixes what differs; others may",
        )
        for op in ("MaxRoiPool", "RoiAlign")
        for reason in (Reason.AXES, Reason.NO_SHIFT)
    ),
    Explained(
        "TopK", Reason.NEEDS_POSITIVE_SCALE, lambda trial, known: 1 in trial.shape(0),
        "the largest of one element is that element: no exporter writes it",
    ),
    Explained(
        "TopK", Reason.NO_SHIFT, lambda trial, known: trial.case.outputs > 1,
        "nothing tells how large the numbers are whose order a shift must not cost",
    ),
    *(
        Explained(
            "Where", reason, _always,
            "an operand that the condition of these samples leaves out may change otherwise",
        )
        for reason in (Reason.AXES, Reason.CONFLICT)
    ),
    Explained(
        "Sign", Reason.NO_SHIFT, _always,
        "a shift leaves the signs of these samples alone, and says nothing of others",
    ),
    Explained(
        "Pow", None, _pointless_power,
        "an exponent of 1 does nothing, one of 0 makes a constant; nobody exports either",
    ),
    Explained(
        "Pow", Reason.OPAQUE, lambda trial, known: trial.samples[0][1].ndim > 0,
        "exponents of several axes may be alike, or give the output further ones of size 1; "
        "exporters write one number",
    ),
    Explained(
        "*", Reason.CONFLICT, _constant_known,
        "a constant that has its change keeps it, though scale and shift of a constant are one",
    ),
    Explained(
        "Sub", Reason.CONFLICT, _of_itself,
        "a tensor less itself is zero, which takes any scale",
    ),
    Explained("Div", None, _of_itself, "a tensor by itself is one"),
    Explained(
        "Mean", Reason.CONFLICT, _hidden,
        "any scale suits what a large constant hides in float32, the one type with a kernel",
    ),
    Explained(
        "Mul", Reason.PRECISION, _zero_constant,
        "behind a factor of zero anything may have been; the rule does not invent it",
    ),
    Explained(
        "Squeeze", Reason.INCONSISTENT_SHAPES, _repeated_axes,
        "an axis is named twice, of which onnx's own inference makes another rank",
    ),
    *(
        Explained(
            op, Reason.CONFLICT, _always,
            "zeros that are added may have any scale; the rule gives them none",
        )
        for op in ("CenterCropPad", "Pad")
    ),
    Explained(
        "Trilu", Reason.CONFLICT, _always,
        "what becomes zero may have any scale; the rule gives it that of the element in front",
    ),
    Explained(
        "AveragePool", Reason.NO_SHIFT, _always,
        "the zeros that are counted make another shift at the border, a picture that nothing takes",
    ),
    *(
        Explained(
            op, Reason.AXES, _scaled_in_front,
            "its epsilon is nothing beside the variance of these numbers; of others it need not be",
        )
        for op in ("GroupNormalization", "InstanceNormalization", "LayerNormalization",
                   "RMSNormalization")
    ),
    Explained(
        "CausalConvWithState", Reason.OPAQUE, _always,
        "its first output would do, but the state that it hands on would change",
    ),
    Explained(
        "LayerNormalization", Reason.OPAQUE, lambda trial, known: trial.case.outputs > 1,
        "its first output would do, but the statistics that it writes beside it would change",
    ),
    Explained(
        "Gemm", Reason.AXES, _matrix_bias,
        "its C has a value per row and could take a change per row; rows are the batch",
    ),
    Explained(
        "Pad", Reason.AXES, _always,
        "a change that varies along a padded axis: channels are not padded with each other",
    ),
    *(
        Explained(
            op, Reason.PADDING, _padded,
            "no window of this size, or no weight of this layer, reaches the zeros",
        )
        for op in ("Conv", "DeformConv")
    ),
    *(
        Explained(
            "DeformConv", reason, _deformed,
            "where the samples of this run lie, and what they weigh, says nothing of others; "
            "constant offsets and masks, which may suit a change, no exporter writes",
        )
        for reason in (Reason.AXES, Reason.PADDING)
    ),
    Explained(
        "ConvTranspose", Reason.PADDING, _always,
        "the few positions of this size, or the zeros of this weight, do not show the border",
    ),
    Explained(
        "MatMul", Reason.AXES, _batched_weight,
        "the summand would be a matrix per batch entry, which nothing behind it takes",
    ),
    Explained(
        "MatMul", Reason.AXES, _vector_weight,
        "a vector makes one channel of all: a shift per row would have to be that of its rows",
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
    *(
        Explained(
            "*", reason, _run_time,
            "a parameter is computed at run time; what it is in this run says nothing of others",
        )
        for reason in (Reason.PARAMETERS_NOT_CONSTANT, Reason.UNKNOWN_SHAPE)
    ),
)  # fmt: skip


# Right, and not done yet: a rule that learns it loses its line here.
LATER = (
    Explained(
        "Einsum", Reason.AXES, _always,
        "one letter stands for the channels of a side; a change or a bias along several would do",
    ),
    Explained(
        "Mul", Reason.AXES, _always,
        "what comes back through a constant varies along a broadcast axis by rounding alone",
    ),
    *(
        Explained(
            op, Reason.NO_SHIFT, _always,
            "zeros on several axes leave a shift that is none in the padding: a picture",
        )
        for op in ("CenterCropPad", "Pad")
    ),
    *(
        Explained(
            "Col2Im", reason, _always,
            "a change that differs within the blocks, or that their overlap makes one that does: a "
            "picture",
        )
        for reason in (Reason.AXES, Reason.NO_SHIFT)
    ),
    Explained(
        "Trilu", Reason.NO_SHIFT, _forward_over_two_axes,
        "a shift in front is one in the triangle and none in its zeros: a picture",
    ),
    Explained(
        "Pad", Reason.OPAQUE, _always,
        "a constant that is padded with is like a zero for a change that leaves it alone",
    ),
)  # fmt: skip


def explanation(trial: Trial, known: Ports, refusal: Refusal) -> str:
    """Why a refusal is right; "" if nobody knows."""
    for entry in (*EXPLAINED, *LATER):
        if entry.operator in ("*", trial.case.op) and entry.reason in (None, refusal.reason):
            with np.errstate(all="ignore"):
                if entry.condition(trial, known):
                    return entry.why
    return ""
