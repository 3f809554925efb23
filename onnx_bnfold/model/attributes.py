"""What an attribute of a node holds."""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto

# Type → field. ``onnx.helper`` reads them as well, but takes longer to import than a small fold.
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
