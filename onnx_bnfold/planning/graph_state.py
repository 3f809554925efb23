"""One graph while it is planned: what was decided so far, and what each node does with a change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.determinism import DESCRIBED
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.shape_inference import Shapes
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.entries import OUT, Absorbing, Sides
from onnx_bnfold.operators.rules import Attributes, Known, Step, Transparent
from onnx_bnfold.planning.answers import Answers
from onnx_bnfold.planning.graph_nodes import MALFORMED, GraphNodes, malformed, opaque
from onnx_bnfold.planning.merged_tensors import Groups
from onnx_bnfold.reasons import Reason, Refusal, Refused

if TYPE_CHECKING:
    from onnx_bnfold.planning.dead_ends import DeadEnds
    from onnx_bnfold.planning.ranges import KnownRanges

# What a change belongs to: a computed tensor, by its name, or the constant that one node reads at
# one input, by (node index, input index). A constant that several nodes read is several keys:
# each of them gets its own copy if it has to change.
Key = str | tuple[int, int]

_ABSORBED = Step(({},))


class GraphState(GraphNodes):
    """A graph with its decisions.

    Attributes:
        total: the change decided so far for each key; a key that is missing is unchanged.
        kept: the BatchNormalizations that the user wants to have left as they are, each with its
            refusal: they absorb nothing, and go on to write a tensor of the same name.
        removed: indices of the nodes that go; each is an identity by now.
        groups: the tensors that have become one by that; ``total`` lacks those that nobody sees
            any more until ``totals.complete`` is called.
        clamps: nodes that any change passes, as they may be written with constants (``clamps``).
        sizes: of original tensors, as far as they were asked for, and how many nodes had gone by
            then; see ``sizes.sizes``.
        dead_ends: tensors that take no change of some kind, if they were looked for (``in_vain``:
            nodes settled since then by searches that came to nothing).
        said: what a BatchNormalization says of the tensor at a port, as far as it was asked.
        told: of tensors, what BNs said that are gone from the model by now; see ``sizes.told``.
        ranges: what is known of original tensors; one list for all copies. See ``int8_noise``.
    """

    def __init__(
        self,
        graph: Graph,
        constants: Constants,
        shapes: Shapes,
        kept: Mapping[int, Refusal] = MappingProxyType({}),
    ) -> None:
        super().__init__(graph, constants, shapes)
        self.kept = kept
        self.total: dict[Key, Affine] = {}
        self.removed: set[int] = set()
        self.clamps: frozenset[int] = frozenset()
        self.groups = Groups(graph, {graph.writes[index][0] for index in self.kept})
        self.sizes: dict[str, tuple[int, tuple[Affine, ...]]] = {}
        self.said: dict[tuple[int, int], tuple[Affine, ...]] = {}
        self.told: Mapping[str, tuple[Affine, ...]] = MappingProxyType({})
        self.ranges: list[KnownRanges] = []
        self.dead_ends: DeadEnds | None = None
        self.in_vain = 0
        self._ports = Answers[int, tuple[int, ...]]()
        self._keys: dict[int, dict[int, Key]] = {}
        self._neighbours = Answers[str, tuple[int, ...]]()
        self._around = Answers[str, tuple[int, ...]]()  # of groups

    def copy(self) -> GraphState:
        """Return a state of its own that is as this one is now; what the nodes are is shared."""
        new = copy(self)
        new.total, new.removed, new.sizes = dict(self.total), set(self.removed), dict(self.sizes)
        new.groups = self.groups.copy()
        new.dead_ends, new.in_vain = None, 0
        new._ports, new._keys = self._ports.copy(), dict(self._keys)
        new._neighbours, new._around = self._neighbours.copy(), self._around.copy()
        return new

    def change(self, key: Key, rank: int) -> Affine:
        """Return the change decided so far for a key."""
        return self.total.get(key) or Affine.identity(rank)

    def key(self, index: int, port: int) -> Key | None:
        """Return what a port of a node carries, None for a port that is left out."""
        if port < 0:
            return self.graph.writes[index][~port] or None
        name = self.graph.reads[index][port]
        if not name:
            return None
        return (index, port) if self.constants.get(name) is not None else name

    def present(self, index: int, slot: int) -> Float64:
        """Return the elements of a constant input as they are by now, float64."""
        value = self.original(index, slot)
        change = self.total.get((index, slot))
        if change is None:
            return value
        with np.errstate(invalid="ignore"):  # 0 * inf, which is refused
            return change.scale * value + change.shift

    def ports(self, index: int) -> tuple[int, ...]:
        """Return the ports of a node that carry data.

        Raises:
            Refused: the operator is not known, or its weights are not constant.
        """
        return self._ports.of(index, self._find_ports)

    def keys(self, index: int) -> Mapping[int, Key]:
        """Return the ports of a node that carry data, and the key of each; see ``ports``."""
        found = self._keys.get(index)
        if found is None:
            both = ((port, self.key(index, port)) for port in self.ports(index))
            found = self._keys[index] = {port: key for port, key in both if key is not None}
        return found

    def _find_ports(self, index: int) -> tuple[int, ...]:
        view, entry = self.view(index), self.entries[index]
        if isinstance(entry, Absorbing):
            slot = entry.data_slot
            return (self.absorber(index).data_slot if slot is None else slot, OUT)
        if index in self.removed:
            return (self.data_slot(index), OUT)
        if not isinstance(entry, Transparent):
            raise opaque(view)
        view.require_version(entry.version)
        outputs = (~slot for slot in entry.data_outputs(view))
        return (*entry.data_slots(view), *entry.own_constants(view), *outputs)

    def step(self, index: int, known: Mapping[int, Affine], *, deciding: bool = True) -> Step:
        """Ask a node how the changes of some of its ports can be completed.

        Args:
            index: the node.
            known: the change per port, of one or more of them.
            deciding: see ``rules.Known``.

        Raises:
            Refused: they cannot.
        """
        if index in self.clamps:
            return self._clamped(index, known)
        if isinstance(self.entries[index], Absorbing):
            return self._absorb(index, known)
        return self.passed(index, known, deciding=deciding)

    def _clamped(self, index: int, known: Mapping[int, Affine]) -> Step:
        """Pass a change through a clamp that may be written with constants."""
        from onnx_bnfold.operators.clamps import passed, require_bounds  # few plans have any

        view, bounds = self.view(index), self.entries[index].bounds
        assert bounds is not None
        [port, change], *_ = known.items()
        require_bounds(view, change)
        into = out = change
        if not any(self.total.get(key) for key in self.keys(index).values()):
            into, out = passed(bounds(view), port, change)
        return Step(({p: out if p == OUT else into for p in self.ports(index)},))

    def passed(self, index: int, known: Mapping[int, Affine], *, deciding: bool = True) -> Step:
        """Ask the rule of a transparent node; see ``step``."""
        entry = self.entries[index]
        assert isinstance(entry, Transparent)
        view = self.view(index)
        asked = Known(
            known,
            lambda slot: self.present(index, slot),
            lambda: self.total.get(self.graph.reads[index][0]),
            deciding,
        )
        try:
            return entry.rule(view, asked)
        except MALFORMED as error:
            raise malformed(view) from error

    def new_attributes(self) -> Iterator[tuple[int, Attributes]]:
        """Yield the transparent nodes that get other attributes by the changes, and these."""
        for index, entry in enumerate(self.entries):
            if isinstance(entry, Transparent) and entry.attributes is not None:
                change = self.total.get(self.graph.reads[index][0])
                if change is not None:
                    yield index, entry.attributes(self.view(index), change)

    def _absorb(self, index: int, known: Mapping[int, Affine]) -> Step:
        if index in self.kept:
            raise Refused.again(self.kept[index])
        absorber = self.absorber(index)
        for port, change in known.items():
            absorber.require(port, change)
        into = known.get(absorber.data_slot)
        if OUT in known or into is None or not into.has_shift:
            return _ABSORBED
        behind = absorber.passed_on(into, self.side_changes(index))
        if behind is None:
            return _ABSORBED
        return Step(({OUT: behind}, {OUT: Affine.identity(behind.rank)}), certain=False)

    def side_changes(self, index: int, changes: Mapping[Key, Affine] | None = None) -> Sides:
        """Return the changes of the data and the output of a node, with further ones on top."""
        absorber = self._absorbers.get(index)
        if absorber is None or isinstance(absorber, Refusal):
            slot = self.ports(index)[0]
        else:
            slot = absorber.data_slot
        into, out = self.key(index, slot) or "", self.graph.writes[index][0]  # "" is of no tensor
        if not changes:
            return Sides(self.total.get(into), self.total.get(out))
        return Sides(self.total_of(into, changes), self.total_of(out, changes))

    def total_of(self, key: Key, changes: Mapping[Key, Affine]) -> Affine | None:
        """Return the change of a key from the original on, with further changes on top."""
        before, more = self.total.get(key), changes.get(key)
        if before is None and isinstance(key, str) and self.groups.is_lost(key):
            return next(total for name, total in self.lost(key, changes) if name == key)
        if before is None or more is None:
            return before or more
        return before.then(more)

    def lost(self, name: str, changes: Mapping[Key, Affine]) -> Iterator[tuple[str, Affine | None]]:
        """Yield the members of a tensor's group that nobody sees, each with its ``total_of``."""
        more = changes.get(self.groups.seen(name)[0])
        for member, before in self.groups.lost(name):
            yield member, before or more if before is None or more is None else before.then(more)

    def neighbours(self, key: Key) -> tuple[int, ...]:
        """Return the nodes that write or read a key.

        Raises:
            Refused: something other than a known data port of a node reads or writes it.
        """
        if isinstance(key, tuple):
            return (key[0],)
        return self._neighbours.of(key, self._find_neighbours)

    def _find_neighbours(self, name: str) -> tuple[int, ...]:
        self._require_free(name)
        graph, producer = self.graph, self.graph.producer[name]
        writer = self._with_port(producer, ~graph.writes[producer].index(name))
        readers = graph.readers.get(name, ())
        data = [(i, slot) for i, slot in readers if (graph.ops[i], slot) not in DESCRIBED]
        return (writer, *(self._with_port(*each) for each in data))

    def _with_port(self, index: int, port: int) -> int:
        if port not in self.keys(index):
            view = self.view(index)
            if port >= 0:
                what = "it uses the tensor as a parameter, and no change of it passes"
            elif self.entries[index].swallows:
                what = "it writes an answer that no scale or shift passes"
            else:
                what = "it writes the tensor beside its data, and no change of it passes"
            raise Refused(Reason.OPAQUE, view.label, what)
        return index

    def _require_free(self, name: str) -> None:
        graph = self.graph
        if name in graph.outputs:
            raise Refused(
                Reason.GRAPH_OUTPUT, repr(name), "it is an output of the graph and keeps its values"
            )
        if name in graph.captured:
            raise Refused(Reason.CAPTURED, graph.captured[name], f"a subgraph of it reads {name!r}")
        if name not in graph.producer:
            raise Refused(
                Reason.GRAPH_INPUT,
                repr(name),
                "it comes from outside the graph and cannot be rescaled",
            )

    def affine_of(self, index: int) -> Affine:
        """Return the affine map of a removable node between its tensors as they are by now.

        Raises:
            Refused: it has none.
        """
        if self.graph.ops[index] == batchnorm.OPERATOR:
            return self._seen_from(index, self.original_map(index))
        slot = self.operands(index).constant
        present = self.map_by(index, self.present(index, slot))
        if (index, slot) not in self.total:
            return present
        return Affine.composed(present.scale, present.shift)

    def absorbs(self, index: int, key: Key) -> bool:
        """Whether a node takes a change of a key, and hands nothing of it on."""
        if isinstance(key, tuple):
            return True
        return isinstance(self.entries[index], Absorbing) or self.entries[index].swallows

    def remove(self, index: int) -> None:
        """Note that a node has become an identity and its two sides one tensor."""
        self.removed.add(index)
        self._ports.forget(index)
        self._keys.pop(index, None)
        x, y = self.sides(index)
        for name in self.groups.join(index, x, y):
            self.groups.lose(name, self.total.pop(name, None))
        self._around.forget(self.groups.root(y))  # which stands for both by now

    def around(self, key: Key) -> tuple[int, ...]:
        """Return the nodes that stay and write or read a key, or a tensor that is one with it.

        Raises:
            Refused: see ``neighbours``.
        """
        if isinstance(key, tuple) or not self.removed:
            return self.neighbours(key)
        return self._around.of(self.groups.root(key), self._find_around)

    def _find_around(self, root: str) -> tuple[int, ...]:
        near = chain.from_iterable(map(self.neighbours, self.groups.seen(root)))
        return tuple(index for index in near if index not in self.removed)

    def are_untouched(self, x: str, y: str) -> bool:
        """Whether two tensors do not change so far, and no others stand for them."""
        total = self.total
        return not (x in total or y in total or self.groups.are_joined(x, y))

    def _seen_from(self, index: int, original: Affine) -> Affine:
        x, y = self.sides(index)
        into, out = self.total.get(x), self.total.get(y)
        present = original
        if into is not None:
            if not into.is_invertible:
                raise Refused(
                    Reason.PRECISION, self.view(index).label, "its input has lost a channel already"
                )
            if (original if out is None else original.then(out)).agrees_with(into):
                return Affine.identity(original.rank)  # which the quotient is but for its rounding
            present = into.inverse().then(present)
        return present if out is None else present.then(out)
