"""Constants that others read as they are: to change one for a single node takes a copy of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property

from onnx_bnfold.arrays import dtype_of
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import Read
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.reasons import Reason, Refused


class SharedConstants:
    """What changes would add to a model by copies of constants.

    Args:
        state: the graph as it is by now.
    """

    def __init__(self, state: GraphState) -> None:
        self._state = state

    @cached_property
    def _readers(self) -> Mapping[str, list[Read]]:
        """The nodes that read a constant, for those with several readers."""
        state, graph, found = self._state, self._state.graph, defaultdict(list)
        uses = ((name, number) for name, number in graph.uses.items() if number > 1)
        several = {name for name, _ in uses if state.constants.get(name) is not None}
        for index, names in enumerate(graph.reads if several else ()):
            if not several.isdisjoint(names):
                for slot, name in enumerate(names):
                    if name in several:
                        found[name].append((index, slot))
        return found

    def growth(self, nodes: Iterable[int]) -> int:
        """Return the bytes that copies add by what is planned, the constants of some nodes."""
        if not self._readers and not self._state.graph.captured:
            return 0
        staying = set(nodes) - self._state.removed
        altered = {read for index in staying for read in self._altered_at(index, {})}
        fresh = {read for read in altered if not self._is_own(read)}
        return sum(self._copies(fresh, altered).values())

    def require_cheap(self, origin: int, changes: Mapping[Key, Affine], asked: set[int]) -> None:
        """Refuse changes whose copies take more bytes than the node that they remove.

        Args:
            origin: the node.
            changes: of every key, relative to now.
            asked: gets the readers of the constants that are too large to copy.

        Raises:
            Refused: the copies would cost more than the node does.
        """
        altered = {read for read in self._altered(changes, changes) if not self._is_own(read)}
        copies = self._copies(altered - set(self._altered(changes, {}))) if altered else {}
        if not copies:
            return
        if sum(copies.values()) > self._freed_by(origin):
            asked.update(index for name in copies for index, _ in self._readers.get(name, ()))
            name = max(copies, key=lambda each: copies[each])
            advice = ", more than the node takes"
            if self._state.is_bn(origin):
                advice = "; fold without --keep-shared-weights if the model may grow by them"
            raise Refused(
                Reason.SHARED_WEIGHT,
                repr(name),
                f"others read it as it is, and a copy of it would add {copies[name]:,} bytes"
                f"{advice}",
            )

    def require_stored(self, origin: int, changes: Mapping[Key, Affine]) -> None:
        """Refuse changes of computed constants that take more bytes than all that they save.

        Args:
            origin: the node that is removed.
            changes: of every key, relative to now.

        Raises:
            Refused: a model that computes a constant from a few numbers would grow by its elements.
        """
        graph = self._state.graph
        if not self._state.constants.computes_any:
            return
        altered = {graph.reads[i][s] for i, s in self._altered(changes, changes)}
        before = {graph.reads[i][s] for i, s in self._altered(changes, {})}
        for name in sorted(altered - before):
            if name in graph.producer and graph.only_reader(name):
                more = self._bytes(name) - self._needed_for(name)
                if more > self._freed_by(origin):
                    raise Refused(
                        Reason.NOT_SMALLER,
                        repr(name),
                        f"it is computed from less, and what it becomes would take {more:,} bytes "
                        "more",
                        because=self._cause(name, changes),
                    )

    def _cause(self, name: str, changes: Mapping[Key, Affine]) -> tuple[Key, ...]:
        """Return a key whose change gives a constant new values; that of no other undoes it.

        ``Absorber.altered`` asks either side for itself.
        """
        reads = self._state.graph.reads
        for key, change in changes.items():
            if any(reads[i][s] == name for i, s in self._altered((key,), {key: change})):
                return (key,)
        return ()

    def _freed_by(self, origin: int) -> int:
        """Return the bytes of a node and of the constants that nothing else reads."""
        graph = self._state.graph
        own = filter(graph.only_reader, graph.reads[origin])
        return int(graph.nodes[origin].ByteSize()) + sum(map(self._bytes, own))

    def _needed_for(self, name: str) -> int:
        """Return the bytes of the nodes and initializers that only a computed constant needs."""
        graph, total, uses, unread = self._state.graph, 0, Counter[str](), [name]
        while unread:
            name = unread.pop()
            if name in graph.dims:
                total += self._bytes(name)
            elif name in graph.producer and self._state.constants.get(name) is not None:
                index = graph.producer[name]
                # A Constant's value may lie in a file.
                is_held = not any(graph.reads[index])
                total += self._bytes(name) if is_held else graph.nodes[index].ByteSize()
                for other in filter(None, graph.reads[index]):
                    uses[other] += 1
                    is_last = uses[other] == graph.uses[other]
                    if is_last and other not in graph.outputs and other not in graph.captured:
                        unread.append(other)
        return total

    def _copies(self, fresh: Set[Read], altered: Set[Read] = frozenset()) -> dict[str, int]:
        """Return the bytes that copies of each constant add if some nodes get one of their own.

        Args:
            fresh: reads of constants that others read, too, and that get a copy.
            altered: reads of all constants that change, if the plan is complete.
        """
        graph = self._state.graph
        sizes = {graph.reads[index][slot]: self._bytes_at(index, slot) for index, slot in fresh}
        counts = Counter(graph.reads[index][slot] for index, slot in fresh)
        found = {}
        for name, count in counts.items():
            here = self._is_here(name)
            others = (read for read in self._readers.get(name, ()) if read not in fresh)
            fixed = not here or name in graph.outputs or name in graph.captured
            if not fixed and all(self._has_own(r) or self._is_idle(r[0], altered) for r in others):
                count -= 1  # the last one takes the place of the original
            if count:
                found[name] = count * sizes[name]
        return found

    def _is_own(self, read: Read) -> bool:
        """Whether nobody else reads a constant."""
        index, slot = read
        name = self._state.graph.reads[index][slot]
        return self._is_here(name) and self._state.graph.only_reader(name)

    def _is_here(self, name: str) -> bool:
        """Whether a constant belongs to this body, not to one that holds it."""
        return name in self._state.graph.producer or name in self._state.graph.dims

    def _has_own(self, read: Read) -> bool:
        """Whether a node needs a constant no more, or gets its own copy as it is planned by now."""
        index, _ = read
        return index in self._state.removed or read in set(self._altered_at(index, {}))

    def _is_idle(self, index: int, altered: Set[Read]) -> bool:
        """Whether a node computes constants, and what reads them gets others or goes."""
        state, graph, todo, seen = self._state, self._state.graph, [index], {index}
        while todo:
            for name in filter(None, graph.writes[todo.pop()]):
                readers = graph.readers.get(name, ())
                fixed = name in graph.outputs or name in graph.captured
                if fixed or len(readers) < graph.uses[name] or state.constants.get(name) is None:
                    return False
                left = {r[0] for r in readers if r not in altered} - state.removed - seen
                seen |= left
                todo += left
        return True

    def _altered(self, near: Iterable[Key], changes: Mapping[Key, Affine]) -> Iterator[Read]:
        """Yield the constants that get new values at the nodes near some keys."""
        state = self._state
        for index in {i for key in near for i in state.neighbours(key)} - state.removed:
            yield from self._altered_at(index, changes)

    def _altered_at(self, index: int, changes: Mapping[Key, Affine]) -> Iterator[Read]:
        state = self._state
        absorber = state.absorber_or_none(index)
        if absorber is not None:
            yield from absorber.altered(state.side_changes(index, changes))
        else:
            slots = range(len(state.graph.reads[index]))
            yield from (
                (index, s) for s in slots if (index, s) in state.total or (index, s) in changes
            )

    def _bytes_at(self, index: int, slot: int) -> int:
        """Return the bytes of a constant that a node reads, of the integers if it is quantised."""
        layer = self._state.layer_or_none(index)
        if layer is not None and layer.quantized is not None and slot == layer.weight_slot:
            return sum(self._bytes(each.name) for each in layer.quantized.operands)
        return self._bytes(self._state.graph.reads[index][slot])

    def _bytes(self, name: str) -> int:
        info = self._state.constants.get(name)
        if info is None:
            return 0
        return info.size * dtype_of(info.data_type).itemsize
