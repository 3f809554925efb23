"""Models whose nodes are in local functions: random ones, and those of an old exporter."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, helper, numpy_helper

DOMAIN = "wrapped"


def in_functions(model: ModelProto, choose: random.Random) -> ModelProto:
    """The same model, a few random parts of it in functions, which may call each other.

    Their constants are inputs, in the function or both, and attributes are parameters, as it comes;
    now and then another call with the same or other constants adds what it returns to an output.
    """
    wrapper = _Wrapper(model, choose)
    for _ in range(choose.randrange(1, 6)):
        wrapper.wrap()
    if choose.random() < 0.4:
        wrapper.call_again()
    return wrapper.model


class _Wrapper:
    def __init__(self, model: ModelProto, choose: random.Random) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.choose = choose
        self.opset = model.opset_import[0].version
        self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        self.model.ir_version = max(10, model.ir_version)

    def wrap(self) -> None:
        """Put a run of nodes, which need not be neighbours, into a function."""
        graph, choose = self.model.graph, self.choose
        nodes = [*graph.node]
        start = choose.randrange(len(nodes))
        stop = min(len(nodes), start + choose.choice([1, 1, 2, 2, 3, 4, 6]))
        part = nodes[start:stop]
        made = {name for node in part for name in node.output}
        others = nodes[:start] + nodes[stop:]
        wanted = {name for node in others for name in node.input}
        wanted |= {value.name for value in graph.output}
        read = list(dict.fromkeys(n for node in part for n in node.input if n and n not in made))
        held = [t for t in graph.initializer if t.name in read and t.name not in wanted]
        if choose.random() < 0.6:
            held = [t for t in held if choose.random() < 0.3]
        inside = {tensor.name for tensor in held}
        inputs = [name for name in read if name not in inside]
        outputs = [name for node in part for name in node.output if name and name in wanted]
        if not outputs:
            return
        number = len(self.model.functions)
        body = [
            helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in held
        ] + [_copy(node) for node in part]
        call = helper.make_node(f"F{number}", inputs, outputs, f"call_{number}", domain=DOMAIN)
        parameters, defaults = self._parametrise(body, call)
        rename = {n: f"a{i}" for i, n in enumerate(inputs)} if choose.random() < 0.5 else {}
        for node in body:
            node.input[:] = [rename.get(name, name) for name in node.input]
        function = helper.make_function(
            DOMAIN, f"F{number}", [rename.get(n, n) for n in inputs], outputs, body,
            [helper.make_opsetid("", self._version(body)), helper.make_opsetid(DOMAIN, 1)],
            attributes=parameters, attribute_protos=defaults,
        )  # fmt: skip
        self.model.functions.append(function)
        kept = [tensor for tensor in graph.initializer if tensor.name not in inside]
        del graph.node[:], graph.initializer[:]
        graph.node.extend([*nodes[:start], call, *nodes[stop:]])
        graph.initializer.extend(kept)

    def _version(self, body: Sequence[NodeProto]) -> int:
        """Now and then another version in which all nodes are the same."""
        version = self.choose.choice([self.opset] * 5 + [14, 15, 17])
        for node in body:
            if not node.domain and self._since(node, version) != self._since(node, self.opset):
                return self.opset
        return version

    @staticmethod
    def _since(node: NodeProto, version: int) -> int:
        return onnx.defs.get_schema(node.op_type, version, "").since_version

    def _parametrise(
        self, body: Iterable[NodeProto], call: NodeProto
    ) -> tuple[list[str], list[AttributeProto]]:
        names, defaults = [], []
        for node in body:
            for item in node.attribute:
                if item.type not in (1, 2, 7) or item.ref_attr_name or self.choose.random() < 0.8:
                    continue
                name = f"p{len(names) + len(defaults)}"
                given = AttributeProto()
                given.CopyFrom(item)
                given.name = name
                if self.choose.random() < 0.3:
                    defaults.append(given)
                else:
                    names.append(name)
                    call.attribute.append(given)
                item.CopyFrom(AttributeProto(name=item.name, type=item.type, ref_attr_name=name))
        return names, defaults

    def call_again(self) -> None:
        """Call a function once more, and add what it returns."""
        graph, choose = self.model.graph, self.choose
        calls = [i for i, node in enumerate(graph.node) if node.domain == DOMAIN]
        if not calls:
            return
        index = choose.choice(calls)
        first = graph.node[index]
        second = _copy(first)
        second.name = f"{first.name}_again"
        second.output[:] = [f"{name}_again" for name in first.output]
        stored = {tensor.name: tensor for tensor in graph.initializer}
        floats = [n for n in first.input if n in stored and stored[n].data_type == 1]
        for name in floats if choose.random() < 0.5 else ():
            values = numpy_helper.to_array(stored[name]) * np.float32(choose.uniform(0.7, 1.4))
            graph.initializer.append(numpy_helper.from_array(values, f"{name}_again"))
            second.input[:] = [f"{n}_again" if n == name else n for n in second.input]
        nodes = [*map(_copy, graph.node)]
        for i in reversed(range(len(first.output))):
            was, both = first.output[i], f"{first.output[i]}_alone"
            nodes[index].output[i] = both
            nodes.insert(index + 1, helper.make_node("Add", [both, second.output[i]], [was]))
        nodes.insert(index + 1, second)
        del graph.node[:]
        graph.node.extend(nodes)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def modules_as_functions(model: ModelProto, sizes: Sequence[int] = (1, 3, 6)) -> ModelProto:
    """A model as PyTorch's exporter wrote it from 2.1 to 2.3: each module is a local function.

    Each operator is a function of ``pkg.onnxscript.torch_lib``, each module one of ``pkg.torch…``
    that calls those, and gets its weights as inputs, as do all modules around it.

    Args:
        model: the model.
        sizes: how many calls a module of each level takes together.
    """
    made = ModelProto()
    made.CopyFrom(model)
    version = next(i for i in model.opset_import if not i.domain)
    calls = [_copy(node) for node in model.graph.node]
    stored = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    functions: list[FunctionProto] = []
    for level, size in enumerate(sizes):
        reads = Counter(name for node in calls for name in node.input)
        groups = [calls[i : i + size] for i in range(0, len(calls), size)]
        calls = []
        for number, part in enumerate(groups):
            inside = Counter(name for node in part for name in node.input)
            written = [name for node in part for name in node.output if name]
            wanted = [n for n in written if n in outputs or reads[n] > inside[n]]
            calls.append(_module(part, wanted, stored, (level, number), version, functions))
    del made.graph.node[:]
    made.graph.node.extend(calls)
    made.functions.extend(functions)
    made.opset_import.extend(
        helper.make_opsetid(d, 1) for d in sorted({f.domain for f in functions})
    )
    made.ir_version = 8
    return made


def _module(
    part: Sequence[NodeProto],
    wanted: Sequence[str],
    stored: set[str],
    place: tuple[int, int],
    version: onnx.OperatorSetIdProto,
    functions: list[FunctionProto],
) -> NodeProto:
    """A call of a new function of some nodes."""
    level, number = place
    domain = f"pkg.torch.{level}" if level else "pkg.onnxscript.torch_lib"
    name = f"module_{level}_{number}" if level else f"aten_{part[0].op_type.lower()}_{number}"
    made = {name for node in part for name in node.output}
    read = dict.fromkeys(n for node in part for n in node.input if n and n not in made)
    inputs = [*(n for n in read if n not in stored), *(n for n in read if n in stored)]
    domains = sorted({node.domain for node in part} - {""})
    imports = [version, *(helper.make_opsetid(d, 1) for d in domains)]
    functions.append(helper.make_function(domain, name, inputs, wanted, part, imports))
    return helper.make_node(name, inputs, wanted, f"{name}_call", domain=domain)
