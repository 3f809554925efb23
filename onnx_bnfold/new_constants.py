"""The constants that a plan changes: what each becomes, and the function that computes it.

Nothing is computed here before it is asked for, so that a large model can be written one layer at
a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnx_bnfold import batchnorm
from onnx_bnfold.affine import Affine
from onnx_bnfold.layers import LAYOUTS, LinearLayer
from onnx_bnfold.numerics import ONE, Product, product, product_blocks, products
from onnx_bnfold.planner import GraphPlan
from onnx_bnfold.reasons import Refusal, Refused
from onnx_bnfold.site import Site

if TYPE_CHECKING:
    from onnx_bnfold.quantized import QuantizedWeight

Array = np.ndarray[Any, Any]


class Compute(Protocol):
    """Computes the elements of a constant when they are asked for."""

    def __call__(self) -> Array:
        """Return all of them in the constant's shape and type."""

    def blocks(self) -> Iterable[Array]:
        """Return them in arrays one after another; each is there until the next is asked for."""

    def product(self) -> Product | None:
        """Return the product that they are, None if they are none."""


class Whole:
    """Computes all elements at once.

    Args:
        function: returns them.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], Array]) -> None:
        self._function = function

    def __call__(self) -> Array:
        """Return what the function returns."""
        return self._function()

    def blocks(self) -> Iterable[Array]:
        """Return that as the only block."""
        return (self(),)

    def product(self) -> None:
        """Return None: what a function returns may be anything."""


class _Rounded(ABC):
    """Rounds one product, or the values themselves."""

    __slots__ = ()

    def __call__(self) -> Array:
        return product(*self.product())

    def blocks(self) -> Iterable[Array]:
        return (self(),)

    @abstractmethod
    def product(self) -> Product:
        """Return the product."""


class _Described(_Rounded):
    """Rounds the product that a function returns."""

    __slots__ = ("_describe",)

    def __init__(self, describe: Callable[[], Product]) -> None:
        self._describe = describe

    def product(self) -> Product:
        return self._describe()


def compute_all(wanted: Sequence[Compute]) -> Iterator[Array]:
    """Compute small constants, thousands of them as soon as one.

    Yields:
        The elements of each, in its shape or flat.

    Raises:
        Unrepresentable: one of them does not fit its type.
    """
    described = [compute.product() for compute in wanted]
    found = iter(products([each for each in described if each is not None]))
    for compute, each in zip(wanted, described, strict=True):
        result = None if each is None else next(found)
        yield compute() if result is None else result


def exact(compute: Compute) -> Array:
    """Return the elements of a constant before they are rounded, float64 if they are."""
    described = compute.product()
    if described is None:
        return compute()
    with np.errstate(all="ignore"):
        return np.asarray(described.values.astype(np.float64) * described.factor)


class Unrepresentable(Exception):
    """New constants do not fit their data type.

    Attributes:
        failures: (position of the graph, node index) → why.
    """

    def __init__(self, failures: dict[tuple[int, int], Refusal]) -> None:
        super().__init__("constants do not fit their data type")
        self.failures = failures


@dataclass(slots=True)
class NewConstant:
    """A constant that replaces the one a node reads; computes itself.

    Attributes:
        node, slot: the input that reads it; a slot past the node's last adds an input.
        suffix: for its name, where it cannot keep the old one.
        dims, data_type: of the new tensor.
        elements: computes its elements in ``data_type``, or refuses.
        attributes: of the node, to be set along with it.
        cause: (position of the graph, index of the node) whose changes it compensates.
    """

    node: int
    slot: int
    suffix: str
    dims: tuple[int, ...]
    data_type: int
    elements: Compute
    attributes: tuple[tuple[str, int], ...] = ()
    cause: tuple[int, int] = (0, 0)

    def __call__(self) -> Array:
        """Return the elements.

        Raises:
            Unrepresentable: they do not fit their type; so say the other methods.
        """
        try:
            return self.elements()
        except Refused as refused:
            raise self._failure(refused) from None

    def blocks(self) -> Iterator[Array]:
        """Yield the elements in arrays one after another."""
        try:
            yield from self.elements.blocks()
        except Refused as refused:
            raise self._failure(refused) from None

    def product(self) -> Product | None:
        """Return the product that the elements are, None if they are none."""
        try:
            return self.elements.product()
        except Refused as refused:
            raise self._failure(refused) from None

    def _failure(self, refused: Refused) -> Unrepresentable:
        return Unrepresentable({self.cause: refused.refusal})


def new_constants(position: int, plan: GraphPlan) -> Iterator[NewConstant]:
    """Yield the constants of a graph that change, in node order.

    Args:
        position: of the graph in the model, for ``Unrepresentable``.
        plan: its plan.
    """
    site = plan.site
    edges = sorted(key for key in site.total if isinstance(key, tuple))
    for index in sorted(plan.changed - site.removed):
        op = site.graph.ops[index]
        if op in LAYOUTS:
            found = _of_layer(site, index)
        elif op == batchnorm.OPERATOR:
            found = _of_norm(site, index, even=index in plan.evened)
        else:
            found = (_of_edge(site, *edge) for edge in edges if edge[0] == index)
        try:
            for new in found:
                new.cause = position, index
                yield new
        except Refused as refused:  # changes that are fine one by one may not be so together
            raise Unrepresentable({(position, index): refused.refusal}) from None


class _OfLayer(_Rounded):
    """A constant of a layer with changes of its input and its output."""

    __slots__ = ("layer", "sides")

    def __init__(self, layer: LinearLayer, into: Affine | None, out: Affine | None) -> None:
        self.layer = layer
        self.sides = into, out


class _Weight(_OfLayer):
    """Computes the weight."""

    __slots__ = ()

    def __call__(self) -> Array:
        return product(*self.product()).reshape(self.layer.weight.dims)

    def product(self) -> Product:
        layer = self.layer
        return Product(
            layer.view.constants.value(layer.weight.name).reshape(layer.grouped),
            layer.weight_factor(*self.sides),
            layer.weight.data_type,
            layer.view,
            layer.summed_axes,
        )

    def blocks(self) -> Iterable[Array]:
        layer = self.layer
        stored = layer.view.constants.stored(layer.weight.name)
        if stored is None:
            return (self(),)
        return product_blocks(
            stored,
            layer.grouped,
            layer.weight_factor(*self.sides),
            layer.weight.data_type,
            layer.view,
            sums_over=layer.summed_axes,
        )


class _Bias(_OfLayer):
    """Computes the bias, in the shape ``dims``."""

    __slots__ = ("dims",)

    def __init__(
        self,
        layer: LinearLayer,
        into: Affine | None,
        out: Affine | None,
        dims: tuple[int, ...],
    ) -> None:
        super().__init__(layer, into, out)
        self.dims = dims

    def product(self) -> Product:
        layer, constants, (into, out) = self.layer, self.layer.view.constants, self.sides
        old = None if layer.bias is None else constants.value(layer.bias.name)
        shifted = into is not None and into.has_shift
        weight = constants.value(layer.weight.name) if shifted else None
        folded = layer.fold_bias(old, weight, into, out)
        if layer.bias_slot is None:
            folded = folded.reshape(self.dims)
        if folded.shape != self.dims:
            folded = np.broadcast_to(folded, self.dims)
        return Product(folded, ONE, layer.weight.data_type, layer.view)


def _of_layer(site: Site, index: int) -> Iterator[NewConstant]:
    layer, (into, out) = site.layer(index), site.side_changes(index)
    if layer.quantized is not None:
        if out is not None and out.has_scale:
            yield from _of_quantized(site, layer, layer.quantized, out)
    elif (into is not None and into.has_scale) or (out is not None and out.has_scale):
        dims, data_type = layer.weight.dims, layer.weight.data_type
        weight = _Weight(layer, into, out)
        yield NewConstant(index, layer.weight_slot, "weight", dims, data_type, weight)
    if site.needs_bias(index, into, out):
        yield _bias_of_layer(site, index, layer, into, out)


def _of_quantized(
    site: Site, layer: LinearLayer, weight: QuantizedWeight, out: Affine
) -> Iterator[NewConstant]:
    index, view = weight.view.index, weight.view
    factor, _ = layer.output_vectors(out)
    axis = () if weight.is_blocked else (("axis", weight.out_axis),)

    def scale() -> Product:
        return Product(weight.fold_scale(factor), ONE, weight.scale.data_type, view, ())

    if (factor < 0).any():
        integers = partial(weight.fold_integers, factor)
        dims, kind = weight.integers.dims, weight.integers.data_type
        yield NewConstant(index, 0, "integers", dims, kind, Whole(integers))
    dims = weight.scale_dims
    yield NewConstant(index, 1, "scale", dims, weight.scale.data_type, _Described(scale), axis)
    zero = weight.zero_point
    if zero is not None and zero.dims != dims:
        points = Whole(weight.fold_zero_point)
        yield NewConstant(index, 2, "zero_point", dims, zero.data_type, points)


def _bias_of_layer(
    site: Site, index: int, layer: LinearLayer, into: Affine | None, out: Affine | None
) -> NewConstant:
    slot = 2 if layer.bias_slot is None else layer.bias_slot
    dims: tuple[int, ...] = (layer.channels_out,)
    if layer.bias is not None:
        dims = np.broadcast_shapes(layer.bias.dims, dims)
    elif layer.bias_slot is None and site.graph.opset >= 7:
        # A new Add broadcasts from the right; before opset 7 its attributes say where.
        dims += (1,) * (layer.out_rank - 1 - layer.out_axis)
    bias = _Bias(layer, into, out, dims)
    return NewConstant(index, slot, "bias", dims, layer.weight.data_type, bias)


def _of_norm(site: Site, index: int, *, even: bool) -> Iterator[NewConstant]:
    """Compensate at a BatchNormalization that stays; ``even`` gives its scales one size."""
    norm, view, (into, out) = site.norm(index), site.view(index), site.side_changes(index)
    count = norm.channels
    ones, zeros = np.ones(count), np.zeros(count)
    s_in, h_in = (ones, zeros) if into is None else _vectors(into, count)
    s_out, h_out = (ones, zeros) if out is None else _vectors(out, count)
    scale, variance, *_ = norm.between(ones, ones, batchnorm.parameter_type(view, 4))
    scaled = norm.between(s_in, s_out, batchnorm.parameter_type(view, 4))
    new_scale, new_variance = (even and scaled.evened()) or scaled[:2]
    table = (
        (1, scale, new_scale),
        (2, norm.bias, norm.bias * s_out + h_out),
        (3, norm.mean, norm.mean * s_in + h_in),
        (4, variance, new_variance),
    )
    kinds = [batchnorm.parameter_type(view, slot) for slot, _, _ in table]
    altered = [not np.array_equal(old, new) for _, old, new in table]
    for position, (slot, _, new) in enumerate(table):
        info, kind = view.constant(slot), kinds[position]
        assert info is not None
        # Scale and B are of one type, and so are mean and variance: if one changes it, both do.
        partner = position ^ 1
        if altered[position] or (altered[partner] and info.data_type != kind):
            name, exact = batchnorm.PARAMETERS[slot - 1], () if slot in (1, 4) else None
            compute = partial(Product, new, ONE, kind, view, exact)
            yield NewConstant(index, slot, name, (count,), kind, _Described(compute))


def _vectors(change: Affine, count: int) -> tuple[Array, Array]:
    vectors = change.vector(1, count)
    assert vectors is not None
    return vectors


def _of_edge(site: Site, index: int, slot: int) -> NewConstant:
    info = site.view(index).constant(slot)
    assert info is not None
    change = site.total[index, slot]
    dims = np.broadcast_shapes(info.dims, change.shape)

    def compute() -> Product:
        value = np.broadcast_to(site.present(index, slot), dims)
        exact = () if site.graph.ops[index] in ("Mul", "Div") else None
        return Product(value, ONE, info.data_type, site.view(index), exact)

    return NewConstant(index, slot, "constant", dims, info.data_type, _Described(compute))
