"""Models without the metadata of their nodes, which planning does not read.

PyTorch's exporter writes with each node where in the sources it comes from: often more than all the
rest of the graph. What is copied only to be looked at need not have it.
"""

from __future__ import annotations

from onnx import ModelProto

from onnx_bnfold.model.graph import bodies_of


def without_metadata(model: ModelProto) -> ModelProto:
    """Return a model whose nodes have no ``metadata_props``: itself, emptied, or a new one.

    Args:
        model: must not be used afterwards.
    """
    found = False
    for body in bodies_of(model):
        for node in body.node:
            if node.metadata_props:
                node.ClearField("metadata_props")
                found = True
    # Protobuf gives the memory back with the whole model only.
    return ModelProto.FromString(model.SerializeToString()) if found else model
