"""What a user can do about a node that stays, by reason; docs/reasons.md says more of each."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_bnfold.reasons import Reason

_EVAL = "export the model in eval mode"
_REPAIR = "repair the model"

ADVICE: Mapping[Reason, str] = {
    Reason.TRAINING_MODE: f"{_EVAL} (in PyTorch, model.eval() before the export)",
    Reason.EXTRA_OUTPUTS: _EVAL,
    Reason.NOT_PER_CHANNEL: "nothing, unless the model was meant to be exported with spatial=1",
    Reason.PARAMETERS_NOT_CONSTANT: (
        "export with constant parameters, or run a constant folder first"
    ),
    Reason.OVERRIDABLE_INITIALIZER: "if nobody overrides them, pass --freeze-initializers",
    Reason.WEIGHT_NOT_CONSTANT: "export the weight as a constant",
    Reason.BIAS_NOT_CONSTANT: "export the bias as a constant",
    Reason.FUNCTION_ATTRIBUTE: (
        "remove what keeps the function from being inlined, or inline it first, with onnx.inliner"
    ),
    Reason.UNKNOWN_VERSION: (
        "use a newer release of onnx_bnfold, or convert the model to an older opset with "
        "onnx.version_converter"
    ),
    Reason.QUANTIZED: "fold first, then quantise",
    Reason.EQUALIZED: "fold the original model",
    Reason.NOT_FINITE: f"retrain or {_REPAIR}",
    Reason.BAD_VARIANCE: f"{_REPAIR}, or check what wrote the variance",
    Reason.INCONSISTENT_SHAPES: _REPAIR,
    Reason.UNSUPPORTED_TYPE: "convert the model, or leave the BN",
    Reason.UNKNOWN_SHAPE: (
        "give the model's inputs a fixed rank and fixed sizes on the axes that matter, then fold "
        "again"
    ),
    Reason.GRAPH_INPUT: (
        "nothing in front of the BN; a layer behind it can take it, if the operators in between "
        "let the change pass"
    ),
    Reason.GRAPH_OUTPUT: "if you do not need the tensor as an output, remove it from the outputs",
    Reason.CAPTURED: (
        "usually nothing; if the condition of an If is always the same, write it as a constant, "
        "and its branch takes the place of the If"
    ),
    Reason.OPAQUE: (
        "convert an old model with onnx.version_converter, and fold constants first; otherwise the "
        "BN can only go to the other side"
    ),
    Reason.PADDING: "the BN goes if something in front can take its shift (a Conv, a Gemm, an Add)",
    Reason.NO_SHIFT: "the BN goes if the shift is zero, or if a layer in front takes it",
    Reason.NEEDS_POSITIVE_SCALE: (
        "the BN goes if a layer in front can take the sign; training with γ > 0 avoids it"
    ),
    Reason.AXES: (
        "nothing without changing the model: the BN's channels would have to be the layer's"
    ),
    Reason.CONFLICT: "usually nothing: one of the BNs went, and this one stayed",
    Reason.SHARED_WEIGHT: (
        "leave out --keep-shared-weights, if it is given and the model may grow"
    ),
    Reason.EXCLUDED: (
        "leave out --keep and --only, or write other expressions (^bn1$ matches bn1 alone)"
    ),
    Reason.NOT_SMALLER: "nothing; the model is no larger than it has to be",
    Reason.SEARCH_LIMIT: "please report it, with the model if you can share it",
    Reason.OVERFLOW: "convert the model to float32, fold, and convert it back",
    Reason.PRECISION: "convert the model to a wider type first, or leave the BN",
    Reason.RANGE: (
        "--max-rescale R allows larger factors, a wider type larger values, and --profile float "
        "new ranges"
    ),
}
