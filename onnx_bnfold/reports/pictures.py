"""A small picture of the graph around one node, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx_bnfold.reports.markup import Data, Element, el

_SHOWN = 3  # most boxes in a column


@dataclass(frozen=True)
class Box:
    """A node, or an input or output of the graph.

    Attributes:
        op: operator, or what it is.
        name: of the node or tensor.
        kind: CSS class.
        note: what the node took, or that it is in the way.
    """

    op: str
    name: str
    kind: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of boxes.

    Attributes:
        boxes: from top to bottom.
        is_far: whether they are no neighbours of the columns beside them.
    """

    boxes: tuple[Box, ...]
    is_far: bool = False


def pictures(record: Data) -> Element:
    """Return pictures of the graph around a node before the fold and, if it was folded, after."""
    is_kept = record["status"] == "kept"
    figures = [_figure("before and after" if is_kept else "before", _columns(record, False))]
    if not is_kept:
        figures.append(_figure("after", _columns(record, True)))
    return el("div", *figures, class_="pictures")


# --- layout ---------------------------------------------------------------------------------


def _columns(record: Data, is_after: bool) -> list[Column]:
    takers = {_key(taker): taker for taker in record["taken_by"]}
    producer, consumers = record["producer"], record["consumers"]
    near = {_key(node) for node in (producer, *consumers) if node is not None}
    far = [taker for key, taker in takers.items() if key not in near]

    def box(node: Data) -> Box:
        taker = takers.get(_key(node))
        if taker is None or not is_after:
            return _marked(Box(node["op"], node["name"]), record)
        return Box(node["op"], node["name"], "taker", _taken(taker))

    into = Box("input", record["input"], "end") if producer is None else box(producer)
    out = [box(node) for node in consumers]
    if record["is_graph_output"]:
        out.append(Box("output", record["output"], "end"))
    norm = Box(record["op"], record["name"], "norm")
    columns = [
        Column(tuple(box(node) for node in far if not node["is_behind"]), is_far=True),
        Column((into,)),
        Column(() if is_after else (_marked(norm, record),)),
        Column(tuple(out)),
        Column((*(box(node) for node in far if node["is_behind"]), *_culprit(record)), is_far=True),
    ]
    return [column for column in columns if column.boxes]


def _key(node: Data) -> tuple[str, str, str]:
    return node["op"], node["name"], node["graph"]


def _taken(taker: Data) -> str:
    return " and ".join(word for word in ("scale", "shift") if taker[word])


def _label(node: Data) -> str:
    return f"{node['op']} {node['name']!r}"


def _marked(box: Box, record: Data) -> Box:
    if record["culprit"] == f"{box.op} {box.name!r}":
        return replace(box, kind="culprit", note="in the way")
    return box


def _culprit(record: Data) -> Iterator[Box]:
    """Yield the node or tensor that refused, if it is not one of the neighbours."""
    neighbours = [record, *record["consumers"]]
    neighbours += [] if record["producer"] is None else [record["producer"]]
    if record["culprit"] is not None and record["culprit"] not in map(_label, neighbours):
        op, _, name = record["culprit"].rpartition(" ")
        yield Box(op or "tensor", name.strip("'\""), "culprit", "in the way")


# --- drawing --------------------------------------------------------------------------------


def _figure(caption: str, columns: Sequence[Column]) -> Element:
    items = [
        el("li", *map(_box, _shortened(column)), class_=_join(columns, i))
        for i, column in enumerate(columns)
    ]
    return el("figure", el("figcaption", caption), el("ol", *items, class_="flow"))


def _join(columns: Sequence[Column], i: int) -> str | None:
    """Return how a column is joined to the one in front of it; None if they are neighbours."""
    if any(box.kind == "culprit" for box in columns[i].boxes) and columns[i].is_far:
        return "apart"
    return "far" if i and (columns[i].is_far or columns[i - 1].is_far) else None


def _shortened(column: Column) -> tuple[Box, ...]:
    if len(column.boxes) <= _SHOWN:
        return column.boxes
    return *column.boxes[: _SHOWN - 1], Box(f"{len(column.boxes) - _SHOWN + 1} more", "", "end")


def _box(box: Box) -> Element:
    lines = (("strong", box.op), ("code", box.name), ("em", box.note))
    return el("div", *(el(tag, text) for tag, text in lines if text), class_=f"box {box.kind}")
