"""Fuzzes a fold from file to file: any end but a folded model or a BnFoldError is a finding.

    python tools/fuzz.py structure --seconds 60 --seed 1     mutate the graphs of small models
    python tools/fuzz.py coverage --seconds 60 --seed 1      atheris: bytes and graphs, by coverage

Both begin with the models of tests/corpus. A finding is written to --findings with its traceback,
one file per place in the code, and the run goes on. A model that onnx's checker accepts must be
folded into one that it accepts. A warning of numpy's is a finding, too. The last line is the count
of executions, as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

CORPUS = Path(__file__).parents[1] / "tests" / "corpus"
SAVED_EVERY = 500  # executions
SLOW = 10.0  # seconds after which an execution is a finding
ENDLESS = 30.0  # seconds after which it is ended
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"equalize": True},
    {"standalone": "mul-add"},
    {"standalone": "conv", "profile": "int8"},
    {"merge_branches": True, "freeze_initializers": True},
    {"merge_branches": True, "equalize": True, "standalone": "mul-add"},
    {"bn_free": True},
    {"bn_free": True, "target": "onnxruntime", "freeze_initializers": True},
)
LARGEST = 1 << 16  # bytes of a mutant
SIZES = (0, 1, 2, 3, 4, 5, 7, 64, -1, -2, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (0.0, 1.0, -1.0, 1e-45, 1e38, 65504.0, float("inf"), float("-inf"), float("nan"))
OPERATORS = (
    *("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div"),
    *("Relu", "LeakyRelu", "Clip", "Concat", "Split", "Slice", "Gather", "Pad", "Transpose"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Resize", "ReduceMean"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Constant", "ConstantOfShape", "Range"),
    *("Cast", "CastLike", "Shape", "Size", "Identity", "Dropout", "Sum", "Where", "PRelu", "If"),
    *("DequantizeLinear", "QuantizeLinear", "DepthToSpace", "SpaceToDepth", "Abs", "Neg", "Max"),
    *("Min", "HardSigmoid", "GlobalMaxPool"),
)


class Endless(BaseException):
    """Raised in what takes too long; nothing that handles errors takes it for one."""


class Findings:
    """Executes inputs and keeps those that end in anything but what is promised.

    Args:
        folder: where findings are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, str] = {}
        self.count = 0
        self.folded = 0
        self._scratch = tempfile.TemporaryDirectory(dir=_memory())
        self._source = Path(self._scratch.name, "model.onnx")
        self._target = Path(self._scratch.name, "folded.onnx")

    def execute(self, content: bytes) -> None:
        """Fold one file."""
        self.count += 1
        if self.count % SAVED_EVERY == 0:
            self.save()
        self._source.write_bytes(content)
        start = time.perf_counter()
        try:
            with _ended_after(ENDLESS):
                self._fold(content)
        except (Exception, Endless) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._note(content, f"{type(error).__name__} {place.name}", traceback.format_exc())
        if time.perf_counter() - start > SLOW:
            self._note(content, f"slow {time.perf_counter() - start:.0f}", "")

    def save(self) -> None:
        """Write the counts; a crash of the process must not take them along."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "counts.json").write_text(json.dumps(self.counts()))

    def counts(self) -> dict[str, object]:
        """Return what was done and found so far."""
        return {"executions": self.count, "folded": self.folded, "findings": self.seen}

    def _fold(self, content: bytes) -> None:
        from onnx_bnfold import Options, fold_file
        from onnx_bnfold.errors import BnFoldError

        # By the content, so that a finding is found again.
        options = Options(**OPTIONS[sum(content) % len(OPTIONS)])
        try:
            report = fold_file(self._source, self._target, options)
        except BnFoldError as error:
            if "\n" in str(error):
                raise ValueError(f"a message of several lines: {error!r}") from error
            return
        self.folded += bool(report.folded)
        if report.folded and _is_valid(content) and not _is_valid(self._target.read_bytes()):
            onnx.checker.check_model(str(self._target))

    def _note(self, content: bytes, key: str, trace: str) -> None:
        if key in self.seen:
            return
        name = hashlib.sha256(content).hexdigest()[:12]
        self.seen[key] = name
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.onnx").write_bytes(content)
        (self.folder / f"{name}.txt").write_text(f"{key}\n{trace}")
        print(f"finding {name}: {key}", file=sys.stderr)


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Raise Endless in what takes longer; where a system has no timers, it goes on."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def end(*_: object) -> None:
        raise Endless(f"it takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _is_valid(content: bytes) -> bool:
    try:
        onnx.checker.check_model(content)
    except (onnx.checker.ValidationError, DecodeError, UnicodeDecodeError, ValueError):
        return False
    return True


def corpus() -> list[bytes]:
    """Return the models that fuzzing begins with."""
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.onnx"))]


def mutate(content: bytes, choose: random.Random) -> bytes:
    """Change the graph of a model in one to four places, or, if it is none, some of its bytes."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return mutate_bytes(content, choose)
    try:
        for _ in range(choose.randint(1, 4)):
            choose.choice(MUTATIONS)(model, choose)
        result: bytes = model.SerializeToString()
    except (EncodeError, TypeError, ValueError):  # names that are no text, messages too deep
        return mutate_bytes(content, choose)
    return result if len(result) <= LARGEST else content


def mutate_bytes(content: bytes, choose: random.Random) -> bytes:
    """Overwrite, insert or cut bytes."""
    changed = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(changed) + 1)
        way = choose.randrange(4)
        if way == 0 and at < len(changed):
            changed[at] = choose.randrange(256)
        elif way == 1:
            changed[at:at] = choose.randbytes(choose.randint(1, 4))
        elif way == 2:
            del changed[at : at + choose.randint(1, 8)]
        elif choose.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def _graphs(model: ModelProto) -> list[GraphProto]:
    found = [model.graph]
    for graph in found:  # grows while it is walked
        found += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found


def _graph(model: ModelProto, choose: random.Random) -> GraphProto:
    graphs = _graphs(model)
    return graphs[0] if choose.random() < 0.8 else choose.choice(graphs)


def _names(graph: GraphProto) -> list[str]:
    names = [n for node in graph.node for n in (*node.input, *node.output)]
    names += [t.name for t in graph.initializer] + [v.name for v in graph.input]
    return [*names, "", "nobody"]


def _node(model: ModelProto, choose: random.Random) -> NodeProto:
    nodes = _graph(model, choose).node
    return choose.choice(nodes) if nodes else NodeProto()


def _tensor(model: ModelProto, choose: random.Random) -> TensorProto:
    tensors = _graph(model, choose).initializer
    return choose.choice(tensors) if tensors else TensorProto()


def _change_dims(model: ModelProto, choose: random.Random) -> None:
    dims = _tensor(model, choose).dims
    way = choose.randrange(4)
    if way == 0 and dims:
        dims[choose.randrange(len(dims))] = choose.choice(SIZES)
    elif way == 1:
        dims.append(choose.choice(SIZES))
    elif way == 2 and dims:
        dims.pop()
    else:
        shuffled = list(dims)
        choose.shuffle(shuffled)
        dims[:] = shuffled


def _change_size_and_data(model: ModelProto, choose: random.Random) -> None:
    """Change a tensor's shape together with its data, so that it is sound by itself."""
    tensor = _tensor(model, choose)
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT64) or not tensor.raw_data:
        return
    dims = [choose.randint(0, 5) for _ in range(choose.randint(0, 4))]
    size = 1
    for dim in dims:
        size *= dim
    width = 4 if tensor.data_type == TensorProto.FLOAT else 8
    raw = tensor.raw_data * (size * width // len(tensor.raw_data) + 1)
    tensor.dims[:] = dims
    tensor.raw_data = raw[: size * width]


def _change_values(model: ModelProto, choose: random.Random) -> None:
    import numpy as np
    from onnx import numpy_helper

    tensor = _tensor(model, choose)
    try:
        values = numpy_helper.to_array(tensor).copy().reshape(-1)
    except Exception:
        return
    if values.dtype.kind not in "fi" or not values.size:
        return
    value = choose.choice(NUMBERS if values.dtype.kind == "f" else SIZES)
    with np.errstate(all="ignore"):
        values[choose.randrange(values.size)] = np.asarray(value).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))


def _change_type(model: ModelProto, choose: random.Random) -> None:
    _tensor(model, choose).data_type = choose.choice([*range(27), -1, 99])


def _change_location(model: ModelProto, choose: random.Random) -> None:
    tensor = _tensor(model, choose)
    tensor.data_location = choose.choice((0, 1))
    place = choose.choice(("model.onnx", "..", "/dev/zero", "", "a\0b", "x" * 5000, "."))
    key = choose.choice(("location", "offset", "length", "onnx_bnfold.location"))
    tensor.external_data.add(key=key, value=choose.choice((place, str(choose.choice(SIZES)))))


def _change_operator(model: ModelProto, choose: random.Random) -> None:
    _node(model, choose).op_type = choose.choice((*OPERATORS, "Nonesuch"))


def _change_domain(model: ModelProto, choose: random.Random) -> None:
    _node(model, choose).domain = choose.choice(("", "ai.onnx", "ai.onnx.ml", "com.example"))


def _change_edge(model: ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    if not graph.node:
        return
    node = choose.choice(graph.node)
    names = choose.choice((node.input, node.output))
    way = choose.randrange(4)
    if way == 0:
        names.append(choose.choice(_names(graph)))
    elif names and way == 1:
        names.pop()
    elif names:
        names[choose.randrange(len(names))] = choose.choice(_names(graph))


def _change_attribute(model: ModelProto, choose: random.Random) -> None:
    node = _node(model, choose)
    if not node.attribute:
        name = choose.choice(("axis", "axes", "group", "pads", "perm", "to", "value", "epsilon"))
        node.attribute.add(name=name, type=AttributeProto.INT, i=choose.choice(SIZES))
        return
    item = choose.choice(node.attribute)
    way = choose.randrange(7)
    if way == 0:
        item.i = choose.choice(SIZES)
    elif way == 1:
        item.f = choose.choice(NUMBERS)
    elif way == 2:
        item.ints[:] = [choose.choice(SIZES[:8]) for _ in range(choose.randrange(6))]
    elif way == 3:
        item.s = choose.choice((b"SAME_UPPER", b"VALID", b"\xff\xfe", b""))
    elif way == 4:
        item.type = choose.randrange(15)
    elif way == 5:
        item.name = choose.choice(("axis", "group", "pads", "ref", item.name))
    else:
        node.attribute.remove(item)


def _copy_or_drop(model: ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    field = choose.choice(
        (graph.node, graph.initializer, graph.input, graph.output, graph.value_info)
    )
    if not field:
        return
    index = choose.randrange(len(field))
    if choose.random() < 0.5:
        del field[index]
    else:
        field.add().CopyFrom(field[index])


def _move_node(model: ModelProto, choose: random.Random) -> None:
    nodes = _graph(model, choose).node
    if len(nodes) > 1:
        order = list(nodes)
        order.insert(choose.randrange(len(order)), order.pop(choose.randrange(len(order))))
        del nodes[:]
        nodes.extend(order)


def _insert_node(model: ModelProto, choose: random.Random) -> None:
    """Put a node of one input between a tensor and one of its readers."""
    graph = _graph(model, choose)
    readers = [n for n in graph.node if n.input]
    if not readers:
        return
    reader = choose.choice(readers)
    slot = choose.randrange(len(reader.input))
    made = helper.make_node(
        choose.choice(OPERATORS), [reader.input[slot]], [f"made_{choose.randrange(1 << 30)}"]
    )
    reader.input[slot] = made.output[0]
    order = list(graph.node)
    order.insert(choose.randrange(len(order) + 1), made)
    del graph.node[:]
    graph.node.extend(order)


def _nest(model: ModelProto, choose: random.Random) -> None:
    graph = GraphProto()
    graph.CopyFrom(_graph(model, choose))
    node = _node(model, choose)
    node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g.CopyFrom(graph)


def _change_shape(model: ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return
    kind = choose.choice(values).type.tensor_type
    way = choose.randrange(4)
    if way == 0:
        kind.ClearField("shape")
    elif way == 1:
        kind.elem_type = choose.randrange(25)
    elif way == 2:
        kind.shape.dim.add(dim_value=choose.choice(SIZES))
    elif kind.shape.dim:
        choose.choice(kind.shape.dim).dim_value = choose.choice(SIZES)


def _change_version(model: ModelProto, choose: random.Random) -> None:
    way = choose.randrange(4)
    if way == 0 and model.opset_import:
        model.opset_import[0].version = choose.choice((0, 1, 6, 7, 13, 17, 99, -1, 2**62))
    elif way == 1:
        del model.opset_import[:]
    elif way == 2:
        model.ir_version = choose.choice((0, 3, 4, 8, 99))
    else:
        model.opset_import.add(domain=choose.choice(("", "ai.onnx", "x")), version=13)


def _make_sparse(model: ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    if not graph.initializer:
        return
    tensor = choose.choice(graph.initializer)
    sparse = graph.sparse_initializer.add(dims=tensor.dims)
    sparse.values.CopyFrom(tensor)
    sparse.values.dims[:] = [choose.choice(SIZES)]
    indices = [choose.choice(SIZES) for _ in range(3)]
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [3], indices))
    graph.initializer.remove(tensor)


def _rename(model: ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    named = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    if named:
        choose.choice(named).name = choose.choice([*_names(graph), "\x1b[2J", "<b>", "a\nb"])


MUTATIONS: Sequence[Callable[[ModelProto, random.Random], None]] = (
    *(_change_dims, _change_size_and_data, _change_values, _change_type, _change_location),
    *(_change_operator, _change_domain, _change_edge, _change_edge, _change_attribute),
    *(_change_attribute, _copy_or_drop, _move_node, _insert_node, _nest, _change_shape),
    *(_change_version, _make_sparse, _rename),
)


def fuzz_structure(findings: Findings, seconds: float, seed: int) -> None:
    """Mutate corpus models, and mutants of them, until the time is over."""
    choose = random.Random(seed)
    pool = corpus()
    seeds = len(pool)
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        content = mutate(choose.choice(pool), choose)
        if choose.random() < 0.05:
            content = mutate_bytes(content, choose)
        findings.execute(content)
        if len(pool) < 10 * seeds:
            pool.append(content)
        elif choose.random() < 0.01:
            pool[choose.randrange(seeds, len(pool))] = content


def fuzz_coverage(findings: Findings, seconds: float, seed: int, kept: Path) -> None:
    """Let atheris choose the mutants; it ends the process itself."""
    import atexit

    import atheris

    with atheris.instrument_imports(include=["onnx_bnfold"]):
        import onnx_bnfold.api
        import onnx_bnfold.cli.main  # noqa: F401

    def mutator(content: bytes, largest: int, number: int) -> bytes:
        choose = random.Random(number)
        if choose.random() < 0.3:
            mutant: bytes = atheris.Mutate(content, largest)
            return mutant
        return mutate(content, choose)[:largest]

    kept.mkdir(parents=True, exist_ok=True)
    atexit.register(_tell, findings)
    arguments = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-max_len={LARGEST}"]
    arguments += ["-timeout=60", "-rss_limit_mb=4096", str(kept), str(CORPUS)]
    atheris.Setup(
        [sys.argv[0], *arguments],
        findings.execute,
        custom_mutator=mutator,
        enable_python_coverage=True,
    )
    atheris.Fuzz()


def _tell(findings: Findings) -> None:
    findings.save()
    print(json.dumps(findings.counts()), flush=True)


def main() -> int:
    """Run the fuzzer; return 1 if it found something."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("way", choices=["structure", "coverage"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"))
    parser.add_argument("--kept", type=Path, default=Path("fuzz_corpus"), help="what atheris grows")
    args = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)  # numpy's
    findings = Findings(args.findings)
    if args.way == "coverage":
        fuzz_coverage(findings, args.seconds, args.seed, args.kept)
    else:
        fuzz_structure(findings, args.seconds, args.seed)
        _tell(findings)
    return int(bool(findings.seen))


if __name__ == "__main__":
    sys.exit(main())
