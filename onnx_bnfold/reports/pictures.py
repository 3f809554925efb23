"""A small picture of the graph around one node, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx_bnfold.reports.markup import Data, Element, el, shortened

_WIDTH, _HEIGHT = 150, 46  # of a box, in pixels
_GAP_X, _GAP_Y, _MARGIN = 30, 10, 4
_SHOWN = 3  # most boxes in a column
_LETTERS = 24


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
    kind: str = "plain"
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of boxes; ``is_far`` if they are no neighbours, to which edges are dashed."""

    boxes: tuple[Box, ...]
    is_far: bool = False


def pictures(record: Data) -> Element:
    """Return pictures of the graph around a node before the fold and, if it was folded, after."""
    is_kept = record["status"] == "kept"
    figures = [_figure("before and after" if is_kept else "before", _columns(record, False))]
    if not is_kept:
        figures.append(_figure("after", _columns(record, True)))
    return el("div", *figures, class_="pictures")


def _figure(caption: str, columns: Sequence[Column]) -> Element:
    return el("figure", el("figcaption", caption), _drawn(columns))


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


def _drawn(columns: Sequence[Column]) -> Element:
    shown = [_shortened(column) for column in columns]
    rows = max(len(column.boxes) for column in shown)
    width = len(shown) * (_WIDTH + _GAP_X) - _GAP_X + 2 * _MARGIN
    height = rows * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN
    parts = [edge for i in range(1, len(shown)) for edge in _edges(shown, i, rows)]
    for i, column in enumerate(shown):
        parts += [_box(box, *_corner(i, j, column, rows)) for j, box in enumerate(column.boxes)]
    return el(
        "svg", *parts, class_="picture", width=width, height=height,
        viewBox=f"0 0 {width} {height}", role="img", aria_label=_spoken(columns),
    )  # fmt: skip


def _shortened(column: Column) -> Column:
    if len(column.boxes) <= _SHOWN:
        return column
    rest = len(column.boxes) - _SHOWN + 1
    return replace(column, boxes=(*column.boxes[: _SHOWN - 1], Box(f"{rest} more", "", "end")))


def _corner(i: int, j: int, column: Column, rows: int) -> tuple[float, float]:
    free = (rows - len(column.boxes)) * (_HEIGHT + _GAP_Y) / 2
    return _MARGIN + i * (_WIDTH + _GAP_X), _MARGIN + free + j * (_HEIGHT + _GAP_Y)


def _edges(columns: Sequence[Column], i: int, rows: int) -> Iterator[Element]:
    left, right = columns[i - 1], columns[i]
    is_far = left.is_far or right.is_far
    for j in range(len(left.boxes)):
        for k in range(len(right.boxes)):
            if "culprit" in (left.boxes[j].kind, right.boxes[k].kind) and is_far:
                continue  # the culprit is not connected to the neighbours
            if is_far and j != k and min(len(left.boxes), len(right.boxes)) > 1:
                continue
            x, y = _corner(i - 1, j, left, rows)
            to_x, to_y = _corner(i, k, right, rows)
            yield el(
                "line", x1=x + _WIDTH, y1=y + _HEIGHT / 2, x2=to_x - 1, y2=to_y + _HEIGHT / 2,
                class_="edge far" if is_far else "edge",
                marker_end=None if is_far else "url(#arrow)",
            )  # fmt: skip


def _box(box: Box, x: float, y: float) -> Element:
    lines = [(box.op, "op"), (box.name, "name"), (box.note, "note")]
    lines = [(text, kind) for text, kind in lines if text]
    step = (_HEIGHT - 4) / len(lines)
    texts = [
        el(
            "text",
            shortened(text, _LETTERS),
            x=x + _WIDTH / 2,
            y=y + 2 + step * (i + 0.5),
            class_=kind,
        )
        for i, (text, kind) in enumerate(lines)
    ]
    title = el("title", " ".join(text for text, _ in lines))
    rectangle = el("rect", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=7)
    return el("g", title, rectangle, *texts, class_=f"box {box.kind}")


def _spoken(columns: Sequence[Column]) -> str:
    return " then ".join(", ".join(f"{b.op} {b.name}" for b in column.boxes) for column in columns)
