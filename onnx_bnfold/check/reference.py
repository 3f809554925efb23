"""Sessions of onnx's reference evaluator, for models that onnxruntime has no kernels for.

It is slow and not always correct. Its BatchNormalization of opsets 9 to 13 mixes in the statistics
of the batch, and that of opsets 7 and 8 raises an error; the one below replaces both. A
ConvTranspose with groups, which it computes wrongly, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import (
    Array,
    Feed,
    InputSpec,
    Session,
    Stopwatch,
    named,
    with_outputs,
)
from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.graph import bodies_of, operator


class BatchNormalization(OpRun):
    """BatchNormalization in inference, of every opset: in float32 or above, rounded once."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any
    ) -> tuple[Array]:
        wide = np.promote_types(x.dtype, np.float32)
        # scale has the shape (C,), or with spatial=0 (C, *sizes).
        shape = (-1, *[1] * max(0, x.ndim - 2)) if scale.ndim == 1 else scale.shape
        wider = [v.astype(wide).reshape(shape) for v in (scale, bias, mean, var)]
        a = wider[0] / np.sqrt(wider[3] + wide.type(attributes["epsilon"]))
        y = x.astype(wide) * a + (wider[1] - wider[2] * a)
        return (np.asarray(y).astype(x.dtype),)


class ReferenceSession(Session):
    """A session of the reference evaluator.

    Args:
        model: the model file.
        reason: why onnxruntime cannot run it, for messages.
        weights: initializers to replace, by name; later changes of the arrays take effect.
        rewritten: a model to load instead of the file, with its large tensors in files.
        extra_outputs: further tensors to return.
        watch: measures the time spent in the evaluator.

    Raises:
        ModelError: the evaluator cannot load the model, or is known to compute it wrongly.
    """

    def __init__(
        self,
        model: CheckedModel,
        reason: str,
        *,
        weights: Mapping[str, Array] | None = None,
        rewritten: onnx.ModelProto | None = None,
        extra_outputs: Sequence[str] = (),
        watch: Stopwatch | None = None,
    ) -> None:
        self._reason = reason
        self._watch = watch or Stopwatch()
        try:
            with self._watch:
                proto = with_outputs(model, rewritten, extra_outputs)
                _require_known(proto)
                load_external_data_for_model(proto, str(model.path.resolve().parent))
                self._evaluator = ReferenceEvaluator(proto, new_ops=[BatchNormalization])
        except Exception as error:  # its errors share no base class
            raise self._failure(error, "load it") from error
        # The evaluator looks these up in every run.
        self._evaluator.rt_inits_.update(weights or {})
        constants = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = tuple(map(_spec, (i for i in proto.graph.input if i.name not in constants)))
        self.overridable = tuple(i.name for i in proto.graph.input if i.name in constants)
        self.outputs = tuple(output.name for output in proto.graph.output)

    def run(self, feed: Feed, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once; see ``Session.run``."""
        names = self.outputs if names is None else names
        try:
            with self._watch, np.errstate(all="ignore"):
                values = self._evaluator.run(
                    list(names), {spec.name: feed[spec.name] for spec in self.inputs}
                )
        except Exception as error:
            raise self._failure(error, "run it") from error
        return named(names, list(values))

    def _failure(self, error: Exception, what: str) -> ModelError:
        return ModelError(
            f"{self._reason}; onnx's reference evaluator cannot {what} either: {_said(error)}"
        )


def _require_known(proto: onnx.ModelProto) -> None:
    opset = max((i.version for i in proto.opset_import if not i.domain), default=1)
    for body in bodies_of(proto):
        for node in body.node:
            values = {a.name: a.i for a in node.attribute}
            op = operator(node)
            if op == "ConvTranspose" and values.get("group", 1) != 1:
                raise ValueError("it computes a ConvTranspose with groups wrongly")
            training = values.get("training_mode") or (opset < 7 and not values.get("is_test"))
            if op == "BatchNormalization" and training:
                raise ValueError("a BatchNormalization in training mode is not supported")


def _spec(info: onnx.ValueInfoProto) -> InputSpec:
    tensor = info.type.tensor_type
    kind = tensor.elem_type
    name = TensorProto.DataType.Name(kind).lower()
    dims = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
    )
    return InputSpec(info.name, f"tensor({name})", dims)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")
