"""The evaluator of a check: onnxruntime, or onnx's own where that has no kernels for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import Array, NoKernelError, Session, Stopwatch
from onnx_bnfold.errors import ModelError


@dataclass(frozen=True)
class Evaluator:
    """Creates the sessions of a check, without optimisations.

    Attributes:
        name: for the record.
        watch: measures the time spent in the evaluator.
        reason: why it is not onnxruntime; empty if it is.
    """

    name: str
    watch: Stopwatch
    reason: str = ""

    def session(
        self,
        model: CheckedModel,
        *,
        weights: Mapping[str, Array] | None = None,
        rewritten: onnx.ModelProto | None = None,
        extra_outputs: Sequence[str] = (),
        prepack: bool = False,
    ) -> Session:
        """Return a session; the arguments are those of ``Session``."""
        if not self.reason:
            return Session(
                model,
                prepack=prepack,
                weights=weights,
                rewritten=rewritten,
                extra_outputs=extra_outputs,
                watch=self.watch,
            )
        from onnx_bnfold.check.reference import ReferenceSession

        return ReferenceSession(
            model,
            self.reason,
            weights=weights,
            rewritten=rewritten,
            extra_outputs=extra_outputs,
            watch=self.watch,
        )


def evaluator_of(model: CheckedModel, *, prepack: bool = False) -> tuple[Evaluator, Session]:
    """Return the evaluator that can run a model, and a session of the model.

    Args:
        model: the model file.
        prepack: see ``Session``.

    Raises:
        ModelError: no evaluator can run it.
    """
    runtime = Evaluator("onnxruntime", Stopwatch())
    try:
        return runtime, runtime.session(model, prepack=prepack)
    except NoKernelError as error:
        reason = str(error)
    except ModelError as error:
        if "is not a registered function/op" in str(error):
            raise ModelError(f"{error}; name the library that has it by --custom-ops") from error
        raise
    reference = Evaluator("onnx's reference evaluator", Stopwatch(), reason)
    return reference, reference.session(model)
