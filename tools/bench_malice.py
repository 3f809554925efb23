"""Time and memory of folds of graphs that are made to be hard: chains, fans, nests, towers.

    python -m tools.bench_malice [--nodes 300 1000] [--only constants fan ...]

Each graph is folded in a process of its own. What is printed is the processor time per 1,000 nodes
and the memory over the file and over that of an empty fold; both are to stay below a bound whatever
the graph is (``SECONDS``, ``MEGABYTES``), and those that do not are marked; so is how many
BatchNormalizations stay since a limit was reached.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SECONDS, MEGABYTES = 1.0, 200.0  # per 1,000 nodes; over the file
DOMAIN = "made.up"
_FOLD = """
import resource, sys, onnx_bnfold
report = onnx_bnfold.fold_file(sys.argv[1], sys.argv[2])
limited = [each for each in report.kept if each.refusal.reason.value == "search_limit"]
print(len(limited), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Builder:
    """Makes one graph of tensors with four channels."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def const(self, value: np.ndarray) -> str:
        """Add an initializer."""
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def op(self, operator: str, *inputs: str, **attributes: object) -> str:
        """Add a node; return the name of its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def conv(self, x: str, channels: int = 4, out: int = 4) -> str:
        """Add a Conv."""
        return self.op("Conv", x, self.const(self.rng.standard_normal((out, channels, 1, 1))))

    def bn(self, x: str, channels: int = 4) -> str:
        """Add a BatchNormalization."""
        values = (self.const(self.rng.uniform(0.5, 1.5, channels)) for _ in range(4))
        return self.op("BatchNormalization", x, *values)

    def model(self, *outputs: str) -> ModelProto:
        """Return the model."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4, 4])
        infos = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "g", [x], infos, self.tensors)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def constants(nodes: int) -> ModelProto:
    """Return a chain of Mul and Add by constants, the products of which leave the type."""
    b = Builder()
    t = b.op("Sigmoid", "x")
    for number in range(nodes):
        t = b.op(("Mul", "Add")[number % 2], t, b.const(b.rng.standard_normal((4, 1, 1))))
    return b.model(b.op("Sigmoid", t))


def moves(nodes: int) -> ModelProto:
    """Return BatchNormalizations with a Transpose between any two."""
    b = Builder()
    t = b.op("Sigmoid", "x")
    for _ in range(nodes // 2):
        t = b.bn(b.op("Transpose", t, perm=[0, 1, 3, 2]))
    return b.model(b.op("Sigmoid", t))


def stream(nodes: int) -> ModelProto:
    """Return preactivated residual blocks."""
    b = Builder()
    t = b.conv("x")
    for _ in range(nodes // 4):
        t = b.op("Add", t, b.conv(b.op("Relu", b.bn(t))))
    return b.model(t)


def fan(nodes: int) -> ModelProto:
    """Return one tensor that many BatchNormalizations read."""
    b = Builder()
    t = b.conv("x")
    return b.model(*(b.op("Sigmoid", b.conv(b.bn(t))) for _ in range(nodes // 3)))


def tower(nodes: int) -> ModelProto:
    """Return Concats of Concats, a BatchNormalization behind each."""
    b = Builder()
    t, channels = b.conv("x"), 4
    for _ in range(nodes // 4):
        new = b.conv(b.op("Relu", b.bn(t, channels)), channels)
        t, channels = b.op("Concat", t, new, axis=1), channels + 4
    return b.model(t)


def choices(nodes: int) -> ModelProto:
    """Return a tree of Adds, each of which may take a shift by either operand."""
    b = Builder()
    parts = [b.bn(b.op("Relu", b.conv("x"))) for _ in range(nodes // 4)]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [b.op("Add", *pair) for pair in pairs] + parts[len(parts) & ~1 :]
    return b.model(b.conv(parts[0]))


def row(nodes: int) -> ModelProto:
    """Return a row of Adds, each of which may take a shift by its operand or hand it on."""
    b = Builder()
    t = b.conv("x")
    for _ in range(nodes // 4):
        t = b.op("Add", b.bn(b.op("Relu", b.conv("x"))), t)
    return b.model(b.op("Sigmoid", b.conv(t)))


def wide(nodes: int) -> ModelProto:
    """Return a Sum of many operands."""
    b = Builder()
    return b.model(b.op("Relu", b.bn(b.op("Sum", *(b.conv("x") for _ in range(nodes))))))


def calls(nodes: int) -> ModelProto:
    """Return functions that call one another twice: as many calls as two to the number of them."""
    b, names = Builder(), ["w", "s", "b", "m", "v"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    inner = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *names[1:]], ["y"]),
    ]
    functions = [helper.make_function(DOMAIN, "f0", ["x", *names], ["y"], inner, opsets)]
    depth = min(nodes // 2, 40)
    for number in range(1, depth):
        twice = [
            helper.make_node(f"f{number - 1}", [source, *names], [result], domain=DOMAIN)
            for source, result in (("x", "t"), ("t", "y"))
        ]
        functions.append(
            helper.make_function(DOMAIN, f"f{number}", ["x", *names], ["y"], twice, opsets)
        )
    values = [b.const(b.rng.standard_normal((4, 4, 1, 1)))]
    values += [b.const(b.rng.uniform(0.5, 1.5, 4)) for _ in range(4)]
    model = b.model(b.op(f"f{depth - 1}", "x", *values, domain=DOMAIN))
    model.functions.extend(functions)
    return model


GRAPHS: dict[str, Callable[[int], ModelProto]] = {
    each.__name__: each
    for each in (constants, moves, stream, fan, tower, choices, row, wide, calls)
}


def cost(path: Path) -> tuple[float, float, int]:
    """Fold a file in a process of its own.

    Returns:
        Its processor time, its memory in MB, and how many BatchNormalizations stay for a limit.
    """
    command = [sys.executable, "-c", _FOLD, str(path), str(path.with_suffix(".folded.onnx"))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    limited, kilobytes = map(int, result.stdout.split()[-2:])
    return seconds, kilobytes / 1024, limited


def main() -> None:
    """Measure and print a line per graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--only", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        onnx.save(constants(1), path)
        seconds_empty, megabytes_empty, _ = cost(path)
        for name in options.only:
            for nodes in options.nodes:
                onnx.save(GRAPHS[name](nodes), path)
                seconds, megabytes, limited = cost(path)
                each = (seconds - seconds_empty) * 1000 / nodes
                more = megabytes - megabytes_empty - path.stat().st_size / 2**20
                late = "" if each <= SECONDS and more <= MEGABYTES else "  above the bound"
                late += f"  ({limited} stay for it)" if limited else ""
                print(f"{name:10s} {nodes:6d} {each:7.2f} s per 1,000 {more:6.0f} MB{late}")


if __name__ == "__main__":
    main()
