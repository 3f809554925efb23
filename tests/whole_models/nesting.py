"""Graphs inside graphs: If, Loop, Scan and local functions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper

from .builder import Builder, Scope
from .constants import constant
from .runtime import typed

Grow = Callable[[Builder, int], None]


@contextmanager
def _inside(b: Builder, pool: list[str], bare: bool = False) -> Iterator[Scope]:
    outer = b.scope
    b.scope = Scope(outer=outer, bare=bare or b.ir_version < 4, pool=list(pool))
    try:
        yield b.scope
    finally:
        b.scope = outer


def _last(b: Builder, start: str) -> str:
    """Return the newest tensor of a body, which the body itself has made."""
    newest = b.scope.pool[-1]
    made = {o for n in b.scope.nodes for o in n.output}
    return newest if newest in made else b.one("Identity", [start])


def _body(b: Builder, outputs: list[str]) -> GraphProto:
    scope = b.scope
    return helper.make_graph(
        scope.nodes,
        b.fresh("body"),
        scope.inputs,
        [typed(n, b.type(n), None) for n in outputs],
        scope.initializers,
        sparse_initializer=scope.sparse,
    )


def _finish(b: Builder, node: NodeProto, results: list[str]) -> None:
    b.append(node)
    b.scope.pool += results


def if_(b: Builder, x: str, grow: Grow) -> None:
    """Append an If whose branches capture tensors of the graph around it."""
    d = b.draw
    if b.scope is b.main and d.chance(0.8):
        condition = b.input(b.fresh("cond"), np.array(d.chance(0.5)))
    else:
        condition = b.initializer(np.array(d.chance(0.5)))
    captured = [*d.some(b.scope.pool, 2), x]
    branches: list[GraphProto] = []
    count, kinds, ranks = b._count, [], []
    for _ in range(2):
        if d.chance(0.2) and not branches:
            b._count = count  # both branches may use the same names
        with _inside(b, captured, bare=d.chance(0.3)):
            grow(b, d.between(1, 4))
            out = _last(b, x)
            kinds.append(b.type(out))
            ranks.append(b.rank(out))
            branches.append(_body(b, [out]))
    b.need(kinds[0] == kinds[1] and (ranks[0] == ranks[1] or d.chance(0.1)))
    b.uncertain |= ranks[0] != ranks[1]
    name = b.fresh()
    then, other = branches
    node = helper.make_node("If", [condition], [name], then_branch=then, else_branch=other)
    _finish(b, node, [name])


def loop(b: Builder, x: str, grow: Grow) -> None:
    """Append a Loop that carries a tensor, or stacks what it makes of it."""
    d = b.draw
    trips = b.initializer(np.array(d.between(1, 3), np.int64))
    go = "" if d.chance(0.5) else b.initializer(np.array(True))
    captured = d.some(b.scope.pool, d.between(0, 2))
    with _inside(b, captured, bare=d.chance(0.3)) as scope:
        turn = b.input(b.fresh("turn"), np.array(0))
        on = b.input(b.fresh("on"), np.array(True))
        carried = b.input(b.fresh("v"), b.array(x), None)
        _retype(b, scope, carried, x)
        scope.pool.append(carried)
        del turn
        grow(b, d.between(1, 4))
        out = _last(b, carried)
        (still,) = b.add("Identity", [on])
        if b.shape(out) == b.shape(x) and b.type(out) == b.type(x) and d.chance(0.7):
            results, outputs = [b.fresh()], [still, out]
        else:
            (kept,) = b.add("Identity", [carried])
            results, outputs = [b.fresh(), b.fresh()], [still, kept, out]
        body = _body(b, outputs)
    _finish(b, helper.make_node("Loop", [trips, go, x], results, body=body), results)


def _retype(b: Builder, scope: Scope, name: str, like: str) -> None:
    """Declare a body's input as what it is given, with or without its shape."""
    b.env[name] = b.env[like]
    shape = b.shape(like) if b.draw.chance(0.5) and not b.symbolic else None
    scope.inputs[-1].CopyFrom(typed(name, b.type(like), shape))


def scan(b: Builder, x: str, grow: Grow) -> None:
    """Append a Scan over one axis of a tensor."""
    d = b.draw
    b.need(b.opset >= 9 and b.rank(x) >= 2 and b.array(x).size > 0)
    axis = d.pick([0, 0, 1])
    extra: dict = {}
    if axis:
        extra["scan_input_axes"] = [axis]
    if d.chance(0.2):
        extra["scan_input_directions"] = [1]
    first = np.take(b.array(x), -1 if "scan_input_directions" in extra else 0, axis)
    shape = None if b.symbolic else first.shape
    state = d.chance(0.4)
    start = constant(b, np.zeros(first.shape), b.type(x)) if state else ""
    with _inside(b, d.some(b.scope.pool, 1), bare=d.chance(0.3)) as scope:
        inputs = []
        if state:
            inputs.append(b.input(b.fresh("s"), np.zeros_like(first)))
            scope.inputs[-1].CopyFrom(typed(inputs[-1], b.type(x), shape))
            b.env[inputs[-1]] = b.env[start]
        part = b.input(b.fresh("p"), first)
        b.env[part] = b.env[x]._replace(array=first)
        scope.inputs[-1].CopyFrom(typed(part, b.type(x), shape))
        scope.pool.append(part)
        grow(b, d.between(1, 4))
        out = _last(b, part)
        outputs = [out]
        if state:
            outputs = [b.add("Add", [inputs[0], part])[0], out]
        if d.chance(0.2) and len(b.shape(out)) > 0:
            extra["scan_output_axes"] = [1]
        body = _body(b, outputs)
    results = [b.fresh() for _ in outputs]
    given = [start, x] if state else [x]
    node = helper.make_node("Scan", given, results, body=body, num_scan_inputs=1, **extra)
    _finish(b, node, results)


def function(b: Builder, x: str, grow: Grow) -> None:
    """Append a local function and one or two calls of it."""
    d = b.draw
    b.need(b.ir_version >= 8)
    inputs, formals = [x], [b.fresh("f")]
    with_weight = d.chance(0.25)
    if with_weight:
        b.need(b.rank(x) >= 1)
        width = b.shape(x)[-1]
        inputs.append(constant(b, d.normal(width, d.between(1, 5)), b.type(x), "weight"))
        formals.append(b.fresh("f"))
    for formal, name in zip(formals, inputs, strict=True):
        b.env[formal] = b.env[name]
    with _inside(b, [formals[0]], bare=True) as scope:
        scope.outer = None
        if with_weight:
            b.one("MatMul", formals)
        grow(b, d.between(1, 4))
        out = _last(b, formals[0])
        given = _by_reference(scope.nodes) if d.chance(0.15) else {}
        imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("local", 1)]
        imports.append(helper.make_opsetid("com.microsoft", 1))
        name = (
            d.pick(["BatchNormalization", "Conv", "Relu"]) if d.chance(0.08) else b.fresh("Block")
        )
        b.need(name not in {f.name for f in b.functions})
        b.functions.append(
            helper.make_function(
                "local", name, formals, [out], scope.nodes, imports, attributes=list(given)
            )
        )
    (y,) = b.add(name, inputs, domain="local", **given)
    b.scope.pool.append(y)
    if d.chance(0.4):
        again = y if b.shape(y) == b.shape(x) and b.type(y) == b.type(x) else x
        b.scope.pool += b.add(name, [again, *inputs[1:]], domain="local", **given)


def _by_reference(nodes: list[NodeProto]) -> dict[str, float]:
    """Let the call of a function say one attribute of one of its nodes."""
    for node in nodes:
        for a in node.attribute:
            if a.name in ("epsilon", "alpha") and a.type == AttributeProto.FLOAT:
                value = a.f
                a.ClearField("f")
                a.ref_attr_name = "given"
                return {"given": value}
    return {}


NESTS = {if_: 4, loop: 2.5, scan: 2, function: 4}
