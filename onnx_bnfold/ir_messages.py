"""Models of onnx_ir as messages, whose large tensors stay where they are, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, TensorProto

from onnx_bnfold.storage import read_tensor
from onnx_bnfold.storage.skeleton import SMALL
from onnx_bnfold.storage.tensors import LOCATION, decode, naming

# Location in a message → the tensor of the model.
Held = Mapping[str, ir.TensorProtocol]
_START = "onnx_bnfold.tensor."


def message_of(model: ir.Model) -> tuple[ModelProto, Held]:
    """Return a model as a message that refers to its large tensors, and those.

    Args:
        model: it is not changed.
    """
    copy, held = model.clone(), dict[str, ir.TensorProtocol]()
    for value, tensor in _initializers(copy):
        is_small = tensor.nbytes < SMALL and not isinstance(tensor, ir.ExternalTensor)
        if is_small or tensor.dtype == ir.DataType.STRING:
            continue
        location = f"{_START}{len(held)}"
        held[location] = tensor
        value.const_value = ir.ExternalTensor(
            location,
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    return ir.to_proto(copy), held


def model_of(message: ModelProto, held: Held) -> ir.Model:
    """Return a message as a model, with the tensors that it refers to."""
    model = ir.from_proto(message)
    for value, tensor in _initializers(model):
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) in held:
            value.const_value = held[str(tensor.location)]
    return model


def read(held: Held, tensor: TensorProto) -> np.ndarray:
    """Return the values of a tensor of a message.

    Raises:
        ModelError: they cannot be read.
    """
    for entry in tensor.external_data:
        if entry.key == LOCATION and entry.value in held:
            with naming(tensor):
                return decode(held[entry.value].tobytes(), tensor)
    return read_tensor(tensor, None)


def _initializers(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
