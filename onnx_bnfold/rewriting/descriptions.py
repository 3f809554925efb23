"""What a model says of its tensors beside its nodes: shapes, quantization, devices."""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import chain

from onnx import GraphProto, NodeProto

from onnx_bnfold.model.graph import Body
from onnx_bnfold.model.repeated_fields import drop, drop_named


def hand_on_shapes(body: Body, mapping: Mapping[str, str]) -> None:
    """Let what is said of a tensor's shape and type hold for the one that it is merged into.

    Nothing else may be said of that one, and runtimes misread the shapes of some nodes.
    """
    if not mapping:
        return
    told = {value.name for value in body.value_info}
    if isinstance(body, GraphProto):
        told.update(value.name for value in chain(body.input, body.output))
    for value in body.value_info:
        final = mapping.get(value.name)
        if final is not None and final not in told:
            value.name = final
            told.add(final)


def drop_descriptions(body: Body, gone: Set[str], changed: Set[str] = frozenset()) -> set[str]:
    """Drop what a body says beside its nodes of tensors that are no more what they were.

    Args:
        body: loses it.
        gone: names that nothing has any more, or that have another shape or type.
        changed: names of tensors of other values; what is said of their type stays.

    Returns:
        The names of the quantization parameters that go with it.
    """
    drop_named(body.value_info, gone)
    described = described_in(body)
    stale = described.keys() & (gone | changed)
    if stale and isinstance(body, GraphProto):
        drop_annotations(body, stale)
    return {parameter for name in stale for parameter in described[name]}


def rename_shards(node: NodeProto, mapping: Mapping[str, str]) -> None:
    """Let what a node says of its tensors' devices follow the tensors that it has by now."""
    for device in node.device_configurations:
        for shard in device.sharding_spec:
            shard.tensor_name = mapping.get(shard.tensor_name, shard.tensor_name)
        known = {*node.input, *node.output}
        drop(device.sharding_spec, [s.tensor_name not in known for s in device.sharding_spec])


def described_in(body: Body) -> dict[str, list[str]]:
    """Return the names of the quantization parameters of each tensor that has some in a body."""
    if not isinstance(body, GraphProto):
        return {}
    return {
        annotation.tensor_name: [p.value for p in annotation.quant_parameter_tensor_names]
        for annotation in body.quantization_annotation
    }


def drop_annotations(body: GraphProto, names: Set[str]) -> None:
    """Drop the quantization annotations of some tensors."""
    fields = body.quantization_annotation
    drop(fields, [annotation.tensor_name in names for annotation in fields])
