"""Long rows of products and sums with constants, most of which go without a search.

One by one each would be carried through what is left of the row, in ways that reach ever farther.
A row goes into the layer in front of it as far as that takes it. Of each further part one product
and one sum stay, ``A * x + B``. The rounding error of the product that a part begins with is in all
that follows, so rounding ``A``, ``A * x`` and ``B`` costs no more than a few times as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.float_formats import as_type
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.broadcasting import lower
from onnx_bnfold.operators.entries import OUT, Combines
from onnx_bnfold.planning.direct import LONG_ROW, Row, into_layer
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.plan import Given
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.shared_constants import SharedConstants
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Refused

_FEW_DIGITS = TensorProto.BFLOAT16


class _Part(NamedTuple):
    """Nodes in a row.

    Attributes:
        maps: of each, in order.
        pair: a product and the first sum behind it, if both can stay and the others go.
    """

    maps: Mapping[int, Affine]
    pair: tuple[int, int] | None


class LongRows:
    """The rows of a graph in which nodes go without a search.

    Args:
        state: the graph with what is decided so far.
        limits: what a re-parametrised tensor may become.
        shared: what copies of constants would add.
        affine: the products and sums with constants, in the graph's order.
        free: those of them that may go.
    """

    def __init__(
        self,
        state: GraphState,
        limits: Limits,
        shared: SharedConstants,
        affine: Iterable[int],
        free: Collection[int],
    ) -> None:
        self._state = state
        self._limits = limits
        self._shared = shared
        self._free = frozenset(free)
        # What other profiles ask of new values is asked by a search.
        rows = _rows(state, affine) if limits.profile == "float" else ()
        self._row_of = {index: row for row in rows if len(row) >= LONG_ROW for index in row}

    def taken(self, index: int) -> list[Row]:
        """Return what goes of the row of a node, when it is asked for the first time."""
        row = self._row_of.get(index, [])
        for each in row:
            del self._row_of[each]
        found, left = list[Row](), row
        into_layer = self._into_layer(row) if row else None
        if into_layer is not None:
            found.append(into_layer)
            left = row[len(into_layer.takers) :]
        while len(left) >= LONG_ROW:
            part = self._part(left)
            gone = self._changed(part) if part.pair else None
            if gone is not None:
                found.append(gone)
            left = left[max(len(part.maps), 1) :]
        return found

    def _untouched(self, row: Sequence[int]) -> Iterator[tuple[int, Affine]]:
        """Yield the nodes in front of which nothing is decided so far, each with its map."""
        state = self._state
        for index in row:
            change, slot = state.original_map(index), state.operands(index).constant
            if not state.are_untouched(*state.sides(index)) or (index, slot) in state.total:
                return
            # What a BatchNormalization reads is judged by a search.
            after = state.graph.readers.get(state.sides(index)[1], ())
            if not change.is_finite or any(state.is_bn(reader) for reader, _ in after):
                return
            yield index, change

    def _into_layer(self, row: Sequence[int]) -> Row | None:
        """Return what the layer in front of a row takes of it."""
        state, graph = self._state, self._state.graph
        name, _ = state.sides(row[0])
        front = graph.producer.get(name) if graph.only_reader(name) else None
        layer = None if front is None else state.layer_or_none(front)
        if layer is None or layer.bias_slot is None:
            return None
        taken: dict[int, Affine] = {}
        total = None
        for index, change in self._untouched(row):
            total = change if total is None else total.then(change)
            try:
                layer.require(OUT, change)
                layer.require(OUT, total)
            except Refused:
                break
            if index not in self._free:
                break
            taken[index] = change
        return self._allowed(into_layer(state, taken)) if taken else None

    def _part(self, row: Sequence[int]) -> _Part:
        """Return the first part of a row, of which all but a product and a sum may go.

        These are the last ones, as what is behind them would scale what lies between them; or the
        first ones, if the very first node has to stay.
        """
        maps = dict(self._fitting(row))
        at_end, last = row[0] in self._free, None  # the product that a sum may stand behind
        pair, end = None, len(maps)
        for number, (index, change) in enumerate(maps.items(), 1):
            if self._state.entries[index].combines is not Combines.SUM:
                if at_end or number == 1:
                    last = index if self._has_own(index, change.scale) else None
                continue
            if last is not None and self._has_own(index, change.shift):
                pair = last, index
            last, end = None, number if at_end else end
        maps = dict(islice(maps.items(), end))
        return _Part(maps, pair if len(maps) > 2 else None)

    def _fitting(self, row: Sequence[int]) -> Iterator[tuple[int, Affine]]:
        """Yield nodes, and the map of each, as long as all they do fits into constants."""
        first, own, total = row[0], None, Affine.identity(0)
        for index, change in self._untouched(row):
            if own is None:
                own = total = change
                fits = _is_rounding(self._state, index, change)
            else:
                total = total.then(change)
                is_still = first in self._free  # the product that stays is another one
                fits = index in self._free and (is_still or self._keeps_range(first, total, own))
            if not (fits and total.is_invertible and total.is_ordinary):
                return
            yield index, change

    def _has_own(self, index: int, values: Float64) -> bool:
        """Whether the constant of a node is what it multiplies by, or adds; it is not of a Div."""
        state = self._state
        return bool((state.original(index, state.operands(index).constant) == values).all())

    def _keeps_range(self, index: int, total: Affine, own: Affine) -> bool:
        """Whether what a node writes may be scaled as all that is behind it scales."""
        name, scale = self._state.graph.writes[index][0], total.scale / own.scale
        totals = Totals(self._state, {name: Affine.of(scale, np.zeros_like(scale))})
        try:
            self._limits.check_scales(self._state, totals, [name])
        except Refused:
            return False
        return True

    def _changed(self, part: _Part) -> Row | None:
        """Return what goes of a part of a row, if all that it changes may change.

        What is in front of the product goes into it, with the sum taking the shift, then what is
        behind it.
        """
        maps, pair = part
        assert pair is not None
        first, second = pair
        state = self._state
        keys = {index: (index, state.operands(index).constant) for index in (first, second)}
        takers: dict[int, list[tuple[int, Given]]] = {}
        factor, still = maps[first].scale, Affine.identity(maps[first].rank)
        for index in sorted(maps, key=lambda i: -i if i < first else i):
            change = maps[index]
            into, added = _scale(change), change
            if index < first:
                added = still.with_shift(factor * change.shift)
                factor = factor * change.scale
            elif index < second:
                added = still
            if index not in keys:
                both = ((first, into), (second, added))
                takers[index] = [
                    (i, Given(index, keys[i], c)) for i, c in both if not c.is_identity
                ]
        changes: dict[Key, Affine] = {}
        for _, given in chain.from_iterable(takers.values()):
            before = changes.get(given.key)
            changes[given.key] = given.change if before is None else before.then(given.change)
        changes |= self._tensors(maps, first, second)
        row = Row(
            {key: change for key, change in changes.items() if not change.is_identity}, takers
        )
        return row if self._is_sound(row.changes, pair) and self._allowed(row) else None

    def _tensors(self, maps: Mapping[int, Affine], first: int, second: int) -> dict[Key, Affine]:
        """Return what becomes of the tensors of a part.

        Those in front of the two that stay become what the part reads, the others what it writes.
        """
        writes = self._state.graph.writes
        front, behind = Affine.identity(maps[first].rank), Affine.identity(maps[first].rank)
        found: dict[Key, Affine] = {}
        for index, change in maps.items():
            if index < first:
                front = front.then(change)
                found[writes[index][0]] = front.inverse()
        for index in reversed([*maps]):
            if index >= first:
                found[writes[index][0]] = behind
                behind = _scale(behind) if index == second else maps[index].then(behind)
            if index == first:
                shift = maps[first].scale * front.shift
                product = found[writes[index][0]]
                found[writes[index][0]] = product.with_shift(-product.scale * shift)
        return found

    def _is_sound(self, changes: dict[Key, Affine], pair: tuple[int, int]) -> bool:
        """Whether two nodes that stay take changes of all that is around them."""
        state = self._state
        name = state.graph.writes[pair[0]][0]
        totals = Totals(state, changes)
        try:
            if name in changes:
                self._limits.check_scales(state, totals, [name])
                self._limits.check_shifts(state, totals, [name])
            for index in pair:
                known = {port: changes.get(key) for port, key in state.keys(index).items()}
                if any(known.values()):
                    still = Affine.identity(state.operands(index).rank)
                    state.step(index, {port: change or still for port, change in known.items()})
                    slot = state.operands(index).constant
                    lower(state.view(index), slot, changes.get((index, slot), still))
        except Refused:
            return False
        return True

    def _allowed(self, row: Row) -> Row | None:
        """Return a row unless copies of its constants, or what they become, cost too much."""
        origin = next(iter(row.takers))
        try:
            self._shared.require_cheap(origin, row.changes, set())
            self._shared.require_stored(origin, row.changes)
        except Refused:
            return None
        return row


def _rows(state: GraphState, affine: Iterable[int]) -> list[list[int]]:
    """Return the rows of nodes, each the only reader of the one before."""
    found: dict[str, list[int]] = {}  # by what the last one writes
    for index in affine:
        before, after = state.sides(index)
        row = found.pop(before, []) if state.graph.only_reader(before) else []
        row.append(index)
        found[after] = row
    return [*found.values()]


def _scale(change: Affine) -> Affine:
    return change.with_shift(np.zeros((1,) * change.rank))


def _is_rounding(state: GraphState, index: int, product: Affine) -> bool:
    """Whether a node is a product that has to be rounded: its factor has many digits.

    Few digits of what is multiplied by few others are exact, as those of pixels are.
    """
    if state.entries[index].combines is not Combines.PRODUCT:
        return False
    factor = product.scale
    return bool((as_type(factor, _FEW_DIGITS).astype(np.float64) != factor).all())
