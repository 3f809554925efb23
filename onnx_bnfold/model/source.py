"""Where the elements of the initializers of a model come from, while it is folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Stored
from onnx_bnfold.model.constants import OpenTensor
from onnx_bnfold.model.float_formats import as_type
from onnx_bnfold.model.graph import ReadTensor
from onnx_bnfold.storage.tensors import is_external


class Source:
    """Where the elements of initializers come from.

    The pipeline holds the graph states, and these hold this: it must not refer to the pipeline. A
    cycle stays in memory until Python looks for cycles, with all of its model.

    Attributes:
        computed: functions that return those of some, by name.
    """

    def __init__(
        self,
        read: ReadTensor,
        open_tensor: OpenTensor | None,
        computed: Mapping[str, Callable[[], Array]] = MappingProxyType({}),
    ) -> None:
        self.computed = computed
        self._read = read
        self._open = open_tensor

    def with_computed(self, computed: Mapping[str, Callable[[], Array]]) -> Source:
        """Return one that has initializers, too, whose elements are computed when asked for.

        They need not be rounded to their type yet.
        """
        return Source(self._read, self._open, {**self.computed, **computed})

    def read(self, tensor: TensorProto) -> Array:
        """Return the elements of an initializer, float64 if they are not rounded yet."""
        compute = self.computed.get(tensor.name) if self.computed else None
        return self._read(tensor) if compute is None or _has_values(tensor) else compute()

    def read_rounded(self, tensor: TensorProto) -> Array:
        """Return the elements of an initializer in its type."""
        return rounded(partial(self.read, tensor), tensor.data_type)

    def open(self, tensor: TensorProto) -> Stored | None:
        if tensor.name in self.computed or self._open is None:
            return None
        return self._open(tensor)


def rounded(compute: Callable[[], Array], data_type: int) -> Array:
    """Return what a function computes, rounded to a type if it is not yet."""
    values = compute()
    return as_type(values, data_type) if values.dtype == np.float64 else values


def _has_values(tensor: TensorProto) -> bool:
    """Whether a tensor is more than declared: that of a node may have the name of another."""
    declared = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    if is_external(tensor):
        declared.data_location = tensor.data_location
    return bool(tensor.ByteSize() != declared.ByteSize())
