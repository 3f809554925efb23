"""A function's nodes as they stand instead of a call of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, NodeProto, ValueInfoProto

from onnx_bnfold.model.graph import subgraphs
from onnx_bnfold.rewriting.descriptions import rename_shards


def defined(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Yield the names that nodes and their subgraphs define, in order."""
    for node in nodes:
        yield from node.output
        for body in subgraphs(node):
            yield from (value.name for value in body.input)
            yield from (tensor.name for tensor in body.initializer)
            yield from (tensor.values.name for tensor in body.sparse_initializer)
            yield from defined(body.node)


def resolve(node: NodeProto, given: Mapping[str, AttributeProto]) -> None:
    """Give a node the attributes that are parameters of its function."""
    if not any(item.ref_attr_name for item in node.attribute):
        return
    resolved = []
    for item in node.attribute:
        value = given.get(item.ref_attr_name) if item.ref_attr_name else item
        if value is not None:  # else it is left out
            resolved.append(AttributeProto())
            resolved[-1].CopyFrom(value)
            resolved[-1].name = item.name
    del node.attribute[:]
    node.attribute.extend(resolved)


def rename(node: NodeProto, mapping: Mapping[str, str]) -> None:
    node.input[:] = [mapping[name] for name in node.input]
    node.output[:] = [mapping[name] for name in node.output]
    if node.device_configurations:
        rename_shards(node, mapping)
    for body in subgraphs(node) if node.attribute else ():
        rename_body(body, mapping)


def rename_body(body: GraphProto, mapping: Mapping[str, str]) -> None:
    """Rename what the nodes of a body read and write, its constants, and what is said of them."""
    for node in body.node:
        rename(node, mapping)
    for tensor in (*body.initializer, *(each.values for each in body.sparse_initializer)):
        tensor.name = mapping[tensor.name]
    for values in (body.input, body.output, body.value_info):
        for value in values:
            value.CopyFrom(renamed(value, mapping))
    for annotation in body.quantization_annotation:
        annotation.tensor_name = mapping.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = mapping.get(entry.value, entry.value)


def renamed(value: ValueInfoProto, mapping: Mapping[str, str]) -> ValueInfoProto:
    """Return what is known of a tensor, under its new name.

    The name of a size means something in its function alone.
    """
    new = ValueInfoProto()
    new.CopyFrom(value)
    new.name = mapping.get(value.name, value.name)
    for dim in new.type.tensor_type.shape.dim if new.type.HasField("tensor_type") else ():
        dim.ClearField("dim_param")
    return new


def describe(node: NodeProto, call: NodeProto) -> None:
    """Let a node say what was said of the call that it was inlined for."""
    if call.doc_string and not node.doc_string:
        node.doc_string = call.doc_string
    known = {entry.key for entry in node.metadata_props}
    node.metadata_props.extend(entry for entry in call.metadata_props if entry.key not in known)
