"""Draws a whole case from one integer: a model, what to feed it, and the options of the fold."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnx_bnfold import Options

from .builder import Builder
from .draw import Draw, Unfit
from .engine import every_node
from .floats import BFLOAT16, FLOATS
from .indexing import INDEXING
from .interpreter import reads
from .joins import JOINS
from .layers import RECURRENT, SPECIAL_LAYERS, layer
from .movement import MOVEMENTS
from .nesting import NESTS
from .norms import (
    NORMALIZATIONS,
    affine,
    batch_normalization,
    decomposed,
    equal_norms,
    odd_norm,
)
from .pointwise import OPAQUE, POWERS, RECTIFIERS, SOFT
from .runtime import newest_ir_version, newest_opset, typed
from .windows import WINDOWS

_STEPS = {
    "layer": 7,
    "norm": 8,
    "layer and norm": 4,
    "affine": 2.5,
    "movement": 8,
    "window": 3.5,
    "rectifier": 2.5,
    "join": 3.5,
    "between norms": 2,
    "indexing": 2,
    "special layer": 0.8,
    "power": 1.2,
    "soft": 0.8,
    "normalization": 0.8,
    "opaque": 0.8,
    "nest": 1.5,
}


# Where these are fed no elements, onnxruntime ends the process.
_ENDS_ON_NOTHING = RECURRENT | {"CumSum", "Scan"}

_TABLES = {
    "movement": MOVEMENTS,
    "window": WINDOWS,
    "rectifier": RECTIFIERS,
    "join": JOINS,
    "indexing": INDEXING,
    "special layer": SPECIAL_LAYERS,
    "power": POWERS,
    "soft": SOFT,
    "normalization": NORMALIZATIONS,
    "opaque": OPAQUE,
}


@dataclass(frozen=True)
class Case:
    """A model, the options of its fold, and what it is run on.

    Attributes:
        storage: where the model lies: in memory, in a file, or with its data in another (external)
            or in one per tensor (scattered).
        measured: whether the ranges of ``equalize`` are measured on the first feed.
    """

    model: ModelProto
    options: Options
    feeds: tuple[Mapping[str, np.ndarray], ...]
    storage: Literal["memory", "file", "external", "scattered"] = "memory"
    measured: bool = False


def draw_case(seed: int) -> Case:
    """Return the case of a seed."""
    d = Draw(seed)
    dtype = np.dtype(d.weighted(dict(zip(FLOATS, (1.2, 0.8, 8, 1.2), strict=True))))
    opset = d.between(7, newest_opset())
    if dtype == BFLOAT16:
        opset = max(opset, d.pick([13, 16, 22, 22, 22]))
    ir_version = d.between(3, newest_ir_version())
    b = Builder(d, opset, ir_version, dtype)
    symbols = _inputs(b)
    b.symbolic = bool(symbols)
    if d.chance(0.65):
        _begin(b)
    grow(b, d.between(2, 9))
    for kind in ("norm", "layer and norm", "affine"):
        if not any(n.op_type == "BatchNormalization" for n in b.scope.nodes):
            with suppress(Unfit), b.attempt():
                _step(b, kind, depth=2)
    if not b.scope.nodes:
        b.one("Identity", [b.scope.pool[0]])
    model = _finished(b)
    options, feeds = _options(d), _feeds(b, model, symbols)
    storage = d.weighted({"memory": 16, "file": 1, "external": 1, "scattered": 1})
    examples = all(np.isfinite(a).all() and a.size for a in feeds[0].values())
    # onnxruntime cannot infer shapes where an axis or a size lies in another file.
    measured = options.equalize and examples and storage in ("file", "scattered")
    return Case(model, options, feeds, storage, measured)


def _begin(b: Builder) -> None:
    """Append a layer first: a BatchNormalization behind it has somewhere to go."""
    with suppress(Unfit), b.attempt():
        layer(b, b.scope.pool[-1])


def grow(b: Builder, steps: int, depth: int = 0) -> None:
    """Append so many steps, each of which may be several nodes."""
    weights = dict(_STEPS)
    if depth >= 2 or len(b.scope.nodes) > 25:
        del weights["nest"], weights["join"]
    for _ in range(steps):
        for _ in range(4):
            try:
                with b.attempt():
                    _step(b, b.draw.weighted(weights), depth)
            except Unfit:
                continue
            break


def _step(b: Builder, kind: str, depth: int) -> None:
    d, x = b.draw, b.source()
    if kind == "layer":
        layer(b, x)
    elif kind == "norm":
        d.weighted({batch_normalization: 9, equal_norms: 0.6, odd_norm: 0.25})(b, x)
    elif kind == "layer and norm":
        batch_normalization(b, layer(b, x))
    elif kind == "affine":
        d.weighted({affine: 3, decomposed: 1})(b, x)
    elif kind == "nest":
        d.weighted(NESTS)(b, x, lambda inner, steps: grow(inner, steps, depth + 1))
    elif kind == "between norms":
        _between_norms(b, x)
    else:
        d.weighted(_TABLES[kind])(b, x)


def _between_norms(b: Builder, x: str) -> None:
    """Append an operator with a norm in front of it or behind it, and layers that may take that."""
    d, maps = b.draw, {batch_normalization: 5, affine: 2}
    if d.chance(0.3):
        x = layer(b, x)
    if d.chance(0.7):
        x = d.weighted(maps)(b, x)
    x = d.weighted(_TABLES[d.pick(list(_TABLES))])(b, x)
    d.weighted({layer: 3} | maps)(b, x)


def _inputs(b: Builder) -> dict[str, list[int | str]]:
    """Declare the graph's inputs; return the shapes of those that have symbolic sizes."""
    d = b.draw
    rank = d.weighted({1: 0.3, 2: 2.5, 3: 2.5, 4: 6, 5: 1})
    channels = d.pick([1, 2, 3, 4, 4, 5, 6, 8])
    space = [d.between(1, 6 if rank < 5 else 3) for _ in range(rank - 2)]
    shape = [d.between(1, 3), channels, *space][:rank]
    symbols = {}
    for i in range(d.pick([1, 1, 1, 2])):
        declared: list[int | str] = list(shape)
        if d.chance(0.4):
            declared[0] = "N"
        if d.chance(0.12):
            declared[2:] = [f"S{k}" for k in range(len(declared) - 2)]
        name = b.input(d.pick([f"x{i}", f"input.{i}", f"/in/{i}"]), _data(b, shape), declared)
        b.scope.pool.append(name)
        if any(isinstance(n, str) for n in declared):
            symbols[name] = declared
    return symbols


def _data(b: Builder, shape: list[int], scale: float = 1.0) -> np.ndarray:
    return (b.draw.normal(*shape) * scale).astype(b.dtype)


def _feeds(b: Builder, model: ModelProto, symbols: Mapping) -> tuple[dict[str, np.ndarray], ...]:
    """Return what the graph was built on, and something else: other sizes, the other branch."""
    given = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in given]
    first = {n: b.env[n].array.astype(b.env[n].dtype) for n in names}
    fails = any(n.op_type in _ENDS_ON_NOTHING for n in every_node(model))
    batch = 0 if b.draw.chance(0.06) and not fails else b.draw.between(1, 4)
    sizes = {"N": batch} | {f"S{k}": b.draw.between(2, 6) for k in range(3)}
    second = {}
    for name, array in first.items():
        if array.dtype == bool:
            second[name] = ~array
            continue
        declared = symbols.get(name, array.shape)
        shape = [sizes[n] if isinstance(n, str) else n for n in declared]
        second[name] = _data(b, shape, b.draw.pick([1.0, 3.0])).astype(array.dtype)
    return first, second


def _finished(b: Builder) -> ModelProto:
    d, scope = b.draw, b.scope
    outputs = _outputs(b)
    nodes = scope.nodes if d.chance(0.1) else _alive(scope.nodes, outputs)
    if d.chance(0.03):
        nodes = d.shuffled(nodes)
    used = set(outputs).union(*(reads(n) for n in nodes))
    initializers = [t for t in scope.initializers if t.name in used]
    sparse = [t for t in scope.sparse if t.values.name in used]
    inputs = [i for i in scope.inputs if i.name in used or i.type.tensor_type.elem_type != 9]
    listed = initializers if b.ir_version < 4 else []
    if b.ir_version >= 4 and d.chance(0.12):
        listed = [t for t in initializers if d.chance(0.2)]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in listed]
    branches = any(n.op_type == "If" for n in scope.nodes)  # whose shapes may differ
    told = not b.symbolic and d.chance(0.25) and not branches
    made = [o for n in nodes for o in n.output if o in b.env and o not in outputs]
    if initializers and d.chance(0.02):  # a constant that is an output, too
        outputs.append(d.pick(initializers).name)
    graph = helper.make_graph(
        nodes,
        "whole",
        inputs,
        [_output(b, n) for n in outputs],
        initializers,
        value_info=[_declared(b, n) for n in made if d.chance(0.5)] if told else [],
        sparse_initializer=sparse,
    )
    if d.chance(0.06):
        _annotate(b, graph, [*made, *(t.name for t in initializers)])
    imports = [helper.make_opsetid("", b.opset)]
    if b.functions:
        imports.append(helper.make_opsetid("local", 1))
    if any(n.domain == "com.microsoft" for n in nodes) or b.functions or _nested(nodes):
        imports.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(
        graph, opset_imports=imports, ir_version=b.ir_version, functions=b.functions
    )


def _annotate(b: Builder, graph: GraphProto, names: list[str]) -> None:
    """Say of a few tensors how they are quantised."""
    for name in b.draw.some([n for n in names if b.type(n) == np.float32], 3):
        scale, zero = f"{name}_scale", f"{name}_zero_point"
        size = np.abs(b.array(name)).max(initial=1e-3) / 127
        graph.initializer.append(numpy_helper.from_array(np.array(size, np.float32), scale))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
        if b.ir_version < 4:
            graph.input.extend(typed(n, k, ()) for n, k in ((scale, np.float32), (zero, np.int8)))
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
        annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value=zero)


def _nested(nodes: list[NodeProto]) -> bool:
    return any(n.op_type in ("If", "Loop", "Scan") for n in nodes)


def _outputs(b: Builder) -> list[str]:
    """Return the tensors that nothing reads, or some of them, and a few inner ones."""
    d, scope = b.draw, b.scope
    made = {o for n in scope.nodes for o in n.output}
    read = set().union(*(reads(n) for n in scope.nodes))
    floats = [n for n in scope.pool if n in made]
    leaves = list(dict.fromkeys(n for n in floats if n not in read))
    chosen = leaves[-1:] + d.some(leaves[:-1], 2 if d.chance(0.6) else 0)
    if d.chance(0.15):
        chosen += d.some([n for n in floats if n not in chosen], d.between(1, 2))
    chosen += [n for n in scope.positions if d.chance(0.4)]
    return list(dict.fromkeys(chosen)) or floats[-1:]


def _alive(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    wanted, alive = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            alive.append(node)
            wanted |= reads(node)
    return alive[::-1]


def _declared(b: Builder, name: str) -> ValueInfoProto:
    return typed(name, b.type(name), b.shape(name))


def _output(b: Builder, name: str) -> ValueInfoProto:
    """Declare an output: its shape, its rank alone, or nothing where that depends on the run."""
    branches = any(n.op_type == "If" for n in b.scope.nodes)
    if not b.symbolic and not branches and b.draw.chance(0.7):
        return _declared(b, name)
    return typed(name, b.type(name), None if b.uncertain else [None] * b.rank(name))


_BN_FREE = {
    (): 8,
    (("bn_free", True),): 1.5,
    (("bn_free", True), ("target", "onnxruntime")): 0.5,
}


def _options(d: Draw) -> Options:
    return Options(
        freeze_initializers=d.chance(0.2),
        max_rescale=d.weighted({None: 8, 1.0: 0.5, 2.0: 0.7, 1e6: 0.5}),
        standalone=d.weighted({"keep": 6, "mul-add": 1.5, "conv": 1.5}),
        merge_branches=d.chance(0.2),
        profile=d.weighted({"float": 6, "fp16": 1.5, "int8": 1.5}),
        equalize=d.chance(0.15),
        keep_shared_weights=d.chance(0.15),
        **dict(d.weighted(_BN_FREE)),
    )
