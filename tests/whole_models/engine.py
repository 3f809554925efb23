"""What a model is run on: onnxruntime, or this package's interpreter where that has no kernels."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from .interpreter import Interpreter, Tensor
from .runtime import NoKernel, session


class NotRunnable(Exception):
    """The model cannot be loaded, or fails on what it is fed."""


class Engine(Protocol):
    """Runs one model."""

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs; raise NotRunnable."""


class Runtime:
    """onnxruntime."""

    def __init__(self, model: ModelProto) -> None:
        self._session = session(model)

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self._session.run(None, dict(feed))
        except Exception as error:
            raise NotRunnable(str(error)) from error


class Emulation:
    """The interpreter, which rounds to each tensor's own type."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        opset = next(i.version for i in self._model.opset_import if not i.domain)
        interpreter = Interpreter(opset, self._model.functions)
        try:
            with np.errstate(all="ignore"):
                found = interpreter.model(self._model, feed)
        except Exception as error:
            raise NotRunnable(f"interpreter: {error}") from error
        return [t.array.astype(t.dtype) for t in found]


def engine_of(model: ModelProto, like: Engine | None = None) -> Engine:
    """Return what runs a model; a folded one runs on what the original ran on (`like`)."""
    emulated = (
        holds_type(model, TensorProto.BFLOAT16) if like is None else isinstance(like, Emulation)
    )
    if emulated:
        return Emulation(model)
    try:
        return Runtime(model)
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error):
            if like is None:
                return Emulation(model)
            raise NoKernel(str(error)) from error
        raise NotRunnable(str(error)) from error


def attempt(engine: Engine, feed: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """Return all outputs, or None if the model does not run on this."""
    try:
        return engine.run(feed)
    except NotRunnable:
        return None


def every_tensor(
    model: ModelProto,
    feed: Mapping[str, np.ndarray],
    *,
    double: bool = False,
    noise: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """Return all tensors of the main graph, in their own types; see ``Interpreter``."""
    opset = next(i.version for i in model.opset_import if not i.domain)
    interpreter = Interpreter(opset, model.functions, double=double, noise=noise)
    env = {name: interpreter.held(array) for name, array in feed.items()}
    with np.errstate(all="ignore"):
        interpreter.graph(model.graph, env)
    return env


def graphs(model: ModelProto) -> list[GraphProto]:
    """Return the main graph and all that are inside it."""
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            found += [a.g for a in node.attribute if a.HasField("g")]
    return found


def every_node(model: ModelProto) -> Iterable[NodeProto]:
    """Yield the nodes of all graphs, bodies and functions."""
    waiting = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for a in node.attribute:
            waiting += a.g.node


def holds_type(model: ModelProto, kind: int) -> bool:
    """Whether anything in a model is declared as, stored as or cast to an element type."""
    return (
        any(i.type.tensor_type.elem_type == kind for i in model.graph.input)
        or any(t.data_type == kind for t in model.graph.initializer)
        or any(_node_holds(n, kind) for n in every_node(model))
    )


def _node_holds(node: NodeProto, kind: int) -> bool:
    return any(
        (a.name == "to" and a.i == kind)
        or (a.HasField("t") and a.t.data_type == kind)
        or any(t.data_type == kind for t in a.g.initializer)
        for a in node.attribute
    )
