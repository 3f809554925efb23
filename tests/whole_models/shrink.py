"""Makes a finding small: takes away whatever it does not need."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

import onnx_bnfold
from onnx_bnfold import Options

from .engine import every_tensor, graphs
from .interpreter import Tensor, reads
from .models import Case
from .runtime import typed

Persists = Callable[[Case], bool]


def shrink(case: Case, persists: Persists, seconds: float) -> Case:
    """Return the smallest case found in some time for which the finding persists."""
    end = time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(case):
            if time.monotonic() > end:
                return case
            if persists(candidate):
                case, smaller = candidate, True
                break
    return case


def _candidates(case: Case) -> Iterator[Case]:
    yield from _plainer_options(case)
    if len(case.feeds) > 1:
        yield from (replace(case, feeds=(feed,)) for feed in case.feeds)
    yield from _fewer_outputs(case)
    values = _values(case)
    if values is not None:
        yield from _cut_behind(case, values)
        yield from _cut_in_front(case, values)
        yield from _written(case, values)
    yield from _bypassed(case, values or {})
    yield from _stripped(case)


def _plainer_options(case: Case) -> Iterator[Case]:
    plain = Options()
    for f in fields(Options):
        if getattr(case.options, f.name) != getattr(plain, f.name):
            try:
                options = replace(case.options, **{f.name: getattr(plain, f.name)})
            except onnx_bnfold.UsageError:  # another option needs this one
                continue
            yield replace(case, options=options, measured=case.measured and options.equalize)
    if case.measured:
        yield replace(case, measured=False)
    elif case.storage != "memory":
        yield replace(case, storage="memory")


def _fewer_outputs(case: Case) -> Iterator[Case]:
    outputs = list(case.model.graph.output)
    if len(outputs) > 1:
        for kept in outputs:
            yield _with_outputs(case, [kept])


def _values(case: Case) -> dict[str, Tensor] | None:
    """Return every tensor of the main graph on the first feed."""
    try:
        return every_tensor(case.model, case.feeds[0])
    except Exception:
        return None


def _cut_behind(case: Case, values: dict[str, Tensor]) -> Iterator[Case]:
    """Make a tensor in the middle the only output."""
    outputs = {o.name for o in case.model.graph.output}
    for node in case.model.graph.node:
        name = node.output[0]
        if name not in outputs or len(outputs) > 1:
            t = values[name]
            yield _with_outputs(case, [typed(name, t.dtype, t.array.shape)])


def _cut_in_front(case: Case, values: dict[str, Tensor]) -> Iterator[Case]:
    """Make a tensor in the middle an input."""
    fed = _reached(case)
    for node in reversed(case.model.graph.node):
        name = node.output[0]
        if len(node.output) != 1 or name not in fed:
            continue
        t = values[name]
        model = _copied(case.model)
        kept = [n for n in model.graph.node if name not in n.output]
        _replace(model.graph.node, kept)
        model.graph.input.append(typed(name, t.dtype, t.array.shape))
        feed = {**case.feeds[0], name: t.array.astype(t.dtype)}
        yield _swept(replace(case, model=model, feeds=(feed,)))


def _written(case: Case, values: dict[str, Tensor]) -> Iterator[Case]:
    """Write what depends on constants alone as an initializer: all of it, or one tensor."""
    fed = _reached(case)
    computed = [
        n.output[0]
        for n in case.model.graph.node
        if len(n.output) == 1 and n.output[0] not in fed and not reads(n) & fed
    ]
    for names in [computed, *([name] for name in computed)] if computed else []:
        model = _copied(case.model)
        _replace(model.graph.node, [n for n in model.graph.node if n.output[0] not in names])
        for name in names:
            array, dtype, _ = values[name]
            model.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), name))
            if model.ir_version < 4:
                model.graph.input.append(typed(name, dtype, array.shape))
        yield _swept(replace(case, model=model))


def _reached(case: Case) -> set[str]:
    """Return the tensors that depend on an input."""
    found = set(case.feeds[0])
    for node in case.model.graph.node:
        if found & reads(node):
            found |= set(node.output)
    return found


def _bypassed(case: Case, values: dict[str, Tensor]) -> Iterator[Case]:
    """Let the readers of a node read its first input instead, if it has the same shape."""
    for at, graph in enumerate(graphs(case.model)):
        for k, node in enumerate(graph.node):
            if len(node.output) == 1 and node.input and _alike(values, node):
                model = _copied(case.model)
                inner = graphs(model)[at]
                del inner.node[k]
                _renamed(inner, node.output[0], node.input[0])
                if node.output[0] not in {o.name for o in inner.output}:
                    yield _swept(replace(case, model=model))


def _alike(values: dict[str, Tensor], node: NodeProto) -> bool:
    """Whether a node's output may stand for its first input; unknown in a body."""
    one, other = values.get(node.input[0]), values.get(node.output[0])
    if one is None or other is None:
        return bool(node.input[0])
    return one.dtype == other.dtype and one.array.shape == other.array.shape


def _stripped(case: Case) -> Iterator[Case]:
    """Drop what only describes: value_info, names."""
    if case.model.graph.value_info:
        model = _copied(case.model)
        del model.graph.value_info[:]
        yield replace(case, model=model)


def _renamed(graph: GraphProto, old: str, new: str) -> None:
    for inner in [graph]:
        for node in inner.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
            for a in node.attribute:
                if a.HasField("g"):
                    _renamed(a.g, old, new)


def _with_outputs(case: Case, outputs: list) -> Case:
    model = _copied(case.model)
    _replace(model.graph.output, outputs)
    return _swept(replace(case, model=model))


def _swept(case: Case) -> Case:
    """Drop nodes, initializers, inputs and functions that nothing needs, in place."""
    graph = case.model.graph
    wanted = {o.name for o in graph.output}
    grown = True
    alive: set[int] = set()
    while grown:
        grown = False
        for k, node in enumerate(graph.node):
            if k not in alive and wanted.intersection(node.output):
                alive.add(k)
                wanted |= reads(node)
                grown = True
    _replace(graph.node, [n for k, n in enumerate(graph.node) if k in alive])
    told = [a for a in graph.quantization_annotation if a.tensor_name in wanted]
    wanted |= {p.value for a in told for p in a.quant_parameter_tensor_names}
    _replace(graph.quantization_annotation, told)
    _replace(graph.initializer, [t for t in graph.initializer if t.name in wanted])
    sparse = [t for t in graph.sparse_initializer if t.values.name in wanted]
    _replace(graph.sparse_initializer, sparse)
    inputs = [i for i in graph.input if i.name in wanted]
    _replace(graph.input, inputs)
    names = {i.name for i in inputs}
    feeds = tuple({n: a for n, a in feed.items() if n in names} for feed in case.feeds)
    called = {n.op_type for g in graphs(case.model) for n in g.node}
    called |= {n.op_type for f in case.model.functions for n in f.node}
    _replace(case.model.functions, [f for f in case.model.functions if f.name in called])
    return replace(case, feeds=feeds)


def _replace(field, items) -> None:
    kept = [type(i).FromString(i.SerializeToString()) for i in items]
    del field[:]
    field.extend(kept)


def _copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
