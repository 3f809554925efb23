"""Reading and making messages as ``onnx.helper`` does, which takes too long to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto

from onnx_bnfold.arrays import Array, data_type_of
from onnx_bnfold.storage import tensors

Value: TypeAlias = int | float | Sequence[int] | TensorProto  # of a new attribute

# Type of an attribute → field.
_SINGLE = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}
_SEVERAL = {
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}


def value_of(attribute: AttributeProto) -> Any:
    """Return the value of an attribute that is not a parameter of a local function.

    Returns:
        A number, text or message, or a list of them; a list of strings is one of bytes.

    Raises:
        ValueError: it has no known type.
    """
    kind = attribute.type
    if kind in _SEVERAL:
        return list(getattr(attribute, _SEVERAL[kind]))
    if kind not in _SINGLE:
        raise ValueError(f"attribute {attribute.name!r} has the unknown type {kind}")
    value = getattr(attribute, _SINGLE[kind])
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def new_attribute(name: str, value: Value) -> AttributeProto:
    """Return an attribute of the type that its value has."""
    if isinstance(value, TensorProto):
        return AttributeProto(name=name, type=AttributeProto.TENSOR, t=value)
    if isinstance(value, float):
        return AttributeProto(name=name, type=AttributeProto.FLOAT, f=value)
    if isinstance(value, Sequence):
        return AttributeProto(name=name, type=AttributeProto.INTS, ints=value)
    return AttributeProto(name=name, type=AttributeProto.INT, i=value)


def new_node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str | None = None,
    domain: str | None = None,
    **attributes: Value,
) -> NodeProto:
    """Return a node, by default of the standard domain."""
    return NodeProto(
        op_type=operator,
        input=inputs,
        output=outputs,
        name=name or None,
        domain=domain,
        attribute=[new_attribute(*item) for item in sorted(attributes.items())],
    )


def new_tensor(values: Array, name: str | None = None) -> TensorProto:
    """Return a tensor that holds values, in the element type of their own."""
    made = TensorProto(name=name, dims=values.shape, data_type=data_type_of(values.dtype))
    tensors.fill(made, np.asarray(values))
    return made


def new_value_info(
    name: str, data_type: int, dims: Sequence[int | str | None] | None
) -> ValueInfoProto:
    """Return the entry of a tensor; of dims that are None nothing is said."""
    info = ValueInfoProto(name=name)
    tensor = info.type.tensor_type
    tensor.elem_type = data_type
    if dims is not None:
        tensor.shape.SetInParent()
    for size in dims or ():
        kind = "dim_param" if isinstance(size, str) else "dim_value"
        tensor.shape.dim.add(**({} if size is None else {kind: size}))
    return info
