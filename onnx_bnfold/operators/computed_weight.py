"""Linear layers whose weight is computed at run time: their bias takes a shift of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT, Read, Revised, Sides
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Refusal, Refused

_WEIGHT = 1  # the input of every layer that has one for a bias


class BiasAlone(NamedTuple):
    """A layer of which only the bias is a constant, or which has none.

    Attributes:
        layer: the layer, as if the weight were a constant.
        refusal: why nothing else of it changes.
    """

    layer: LinearLayer
    refusal: Refusal
    factor_slot: int | None = None

    @property
    def data_slot(self) -> int:
        """The input that holds the data."""
        return self.layer.data_slot

    def require(self, port: int, change: Affine) -> None:
        """Refuse all but a shift of the output.

        Raises:
            Refused: it is something else, or see ``LinearLayer.require``.
        """
        if change.is_identity:
            return
        if port != OUT or change.has_scale:
            raise Refused.again(self.refusal)
        self.layer.require(port, change)

    def passed_on(self, into: Affine, sides: Sides) -> None:
        """Return that nothing makes up for a shift of the data; see ``Absorber``."""

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the bias, if there is one and the output is shifted."""
        return self.layer.altered(sides)

    def revised(self, sides: Sides) -> Iterator[Revised]:
        """Yield what becomes of the bias."""
        return self.layer.revised(sides)

    def peaks(self, magnitude: Array) -> Array:
        """Return the magnitudes of a factor, of which there is none."""
        return magnitude


class _Assumed(NodeView):
    """A node seen as if its weight were a constant of the shape that is inferred."""

    @classmethod
    def of(cls, view: NodeView) -> _Assumed:
        """Return another view of a node."""
        return cls(view.graph, view.constants, view._shapes, view.index)

    def constant(self, slot: int) -> Constant | None:
        """Return shape and type of an input that is constant, or of the weight."""
        held = super().constant(slot)
        if held is not None or slot != _WEIGHT:
            return held
        name = self.name_in(slot)
        dims = tuple(dim for dim in self.dims_of(name) if isinstance(dim, int))
        is_known = len(dims) == len(self.dims_of(name)) and self.type_of(name) in FLOATS
        return Constant(name, dims, self.type_of(name)) if is_known else None


def bias_alone(
    view: NodeView, layout: Callable[[NodeView], LinearLayer], refusal: Refusal
) -> BiasAlone | None:
    """Read a node whose weight is no constant.

    Args:
        view: the node.
        layout: reads the layout of its weight.
        refusal: says what is wrong with its weight.

    Returns:
        None if it has no input for a bias, or its bias or shape is not known, either.
    """
    try:
        layer = layout(_Assumed.of(view))
    except Refused:
        return None
    if layer.bias_slot is None or layer.weight_slot != _WEIGHT or 0 in layer.weight.dims:
        return None
    return BiasAlone(layer._replace(view=view), refusal)
