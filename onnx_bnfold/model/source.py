"""Where the elements of the initializers of a model come from, while it is folded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Elements, Stored
from onnx_bnfold.model.constants import OpenTensor
from onnx_bnfold.model.float_formats import as_type
from onnx_bnfold.model.graph import ReadTensor
from onnx_bnfold.storage.tensors import is_external


class Source:
    """Where the elements of initializers come from.

    The pipeline holds the graph states, and these hold this: it must not refer to the pipeline. A
    cycle stays in memory until Python looks for cycles, with all of its model.

    Attributes:
        computed: those of some that are computed, by name.
    """

    def __init__(
        self,
        read: ReadTensor,
        open_tensor: OpenTensor | None,
        computed: Mapping[str, Elements] = MappingProxyType({}),
    ) -> None:
        self.computed = computed
        self._read = read
        self._open = open_tensor

    def with_computed(self, computed: Mapping[str, Elements]) -> Source:
        """Return one that has initializers, too, whose elements are computed when asked for.

        They need not be rounded to their type yet.
        """
        return Source(self._read, self._open, {**self.computed, **computed})

    def read(self, tensor: TensorProto) -> Array:
        """Return the elements of an initializer, float64 if they are not rounded yet."""
        computed = self._computed(tensor)
        return self._read(tensor) if computed is None else computed()

    def read_rounded(self, tensor: TensorProto) -> Array:
        """Return the elements of an initializer in its type."""
        return rounded(self.read(tensor), tensor.data_type)

    def open(self, tensor: TensorProto) -> Stored | None:
        """Return a reader of them, None unless they are in a file, or computed."""
        computed = self._computed(tensor)
        if computed is not None:
            return computed.stored()
        return None if self._open is None else self._open(tensor)

    def _computed(self, tensor: TensorProto) -> Elements | None:
        found = self.computed.get(tensor.name) if self.computed else None
        return None if found is None or _has_values(tensor) else found


def rounded(values: Array, data_type: int) -> Array:
    """Return values, rounded to a type if they are not yet."""
    return as_type(values, data_type) if values.dtype == np.float64 else values


def _has_values(tensor: TensorProto) -> bool:
    """Whether a tensor is more than declared: that of a node may have the name of another."""
    declared = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    if is_external(tensor):
        declared.data_location = tensor.data_location
    return bool(tensor.ByteSize() != declared.ByteSize())
