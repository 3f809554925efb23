"""The check as one call."""

from onnx_bnfold.check.accuracy import check_accuracy
from onnx_bnfold.check.latency import check_latency
from onnx_bnfold.check.locate import Changes
from onnx_bnfold.check.models import open_model
from onnx_bnfold.check.numerics import check_numerics
from onnx_bnfold.check.options import CheckOptions, require_files
from onnx_bnfold.check.quantize import check_quantized, require_opset
from onnx_bnfold.check.results import CheckResult
from onnx_bnfold.check.sessions import onnxruntime_version
from onnx_bnfold.given import ModelLike
from onnx_bnfold.validation import require_value

_DEFAULTS = CheckOptions()


def check(
    original: ModelLike,
    folded: ModelLike,
    options: CheckOptions = _DEFAULTS,
    *,
    changes: Changes | None = None,
) -> CheckResult:
    """Check that two models compute the same function, as accurately and no slower.

    Args:
        original: the model before folding: the path of a file, its bytes, an ``onnx.ModelProto``,
            a ``torch.onnx.ONNXProgram`` or an ``onnx_ir.Model``.
        folded: the model after folding.
        options: what to check and how strictly.
        changes: tensor name → (scale, shift), which broadcast against the tensor t; in the folded
            model it is scale * t + shift. Only used to name the first tensor that differs.

    Returns:
        The record; its ``holds`` says whether every gate holds.

    Raises:
        ModelError: a file is not a model that can be read, or the original cannot be loaded or run.
        UsageError: a file is missing, an argument is of another type, or the options do not fit
            the model.

    Example:
        >>> result = check("model.onnx", "model.folded.onnx")  # doctest: +SKIP
        >>> result.holds, result.failures  # doctest: +SKIP
        (True, ())
    """
    require_value("options", options, CheckOptions)
    require_files(options)
    accuracy = latency = quantized = None
    with (
        open_model(original, "original", options.custom_ops) as before,
        open_model(folded, "folded", options.custom_ops) as after,
    ):
        for model in (before, after) if options.quantize else ():
            require_opset(model)
        numerics, failures = check_numerics(before, after, options, changes or {})
        if numerics is not None and options.data is not None:
            accuracy, failed = check_accuracy(before, after, options)
            failures += failed
        if numerics is not None and options.latency:
            latency, failed = check_latency(before, after, options)
            failures += failed
        if numerics is not None and options.quantize:
            quantized, failed = check_quantized(before, after, options)
            failures += failed
        return CheckResult(
            original=before.label,
            folded=after.label,
            holds=not failures,
            failures=failures,
            numerics=numerics,
            accuracy=accuracy,
            latency=latency,
            quantized=quantized,
            onnxruntime_version=onnxruntime_version(),
        )
