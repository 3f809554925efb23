"""The fold as a pass of ``onnx_ir``, for models as ``torch.onnx.export(...).model`` has them.

>>> passes = onnx_ir.passes.PassManager([FoldBatchNormalization(), ...])
>>> model = passes(program.model).model
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

try:
    import onnx_ir
except ImportError as error:
    raise ImportError(f"{error}; install onnx_bnfold[ir], or the package onnx-ir") from error

from onnx_bnfold import ir_messages
from onnx_bnfold.errors import UsageError
from onnx_bnfold.given import Given
from onnx_bnfold.in_memory import folded_of, require_in_memory
from onnx_bnfold.options import Options

if TYPE_CHECKING:
    from onnx_bnfold.report import Report

__all__ = ["FoldBatchNormalization"]

_DEFAULT = Options()


class FoldBatchNormalization(onnx_ir.passes.FunctionalPass):
    """Fold every BatchNormalization that can be removed exactly; returns another model.

    Tensors that do not change are shared by both models.

    Args:
        options: see ``onnx_bnfold.Options``; ``ranges`` need a model in a file.

    Attributes:
        options: of the fold.
        report: of the last model, None before the first.

    Raises:
        UsageError: ``options.ranges`` is given.
    """

    def __init__(self, options: Options = _DEFAULT) -> None:
        require_in_memory(options)
        self.options = options
        self.report: Report | None = None

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """Return the folded model, and whether it differs from the one that is given.

        Raises:
            ModelError: a value cannot be read, or the model is invalid.
            UsageError: it is no model of onnx_ir.
        """
        if not isinstance(model, onnx_ir.Model):
            raise UsageError(
                f"the model is of type {type(model).__name__}; give an onnx_ir.Model, such as the "
                "model of a torch.onnx.ONNXProgram, or use fold"
            )
        message, held = ir_messages.message_of(model)
        given = Given(message, partial(ir_messages.read, held), is_open=True)
        folded, self.report = folded_of(given, model, self.options)
        result = ir_messages.model_of(folded, held)
        return onnx_ir.passes.PassResult(result, modified=folded != message)
