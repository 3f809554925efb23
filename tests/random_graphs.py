"""Random graphs over the whole rule table."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphs import Net
from onnx import ModelProto

MAX_SIZE = 160  # elements of a tensor, per sample


class RandomNet:
    """Grows a graph node by node; every choice comes from `choose`, so that hypothesis can shrink.

    Args:
        choose: source of the choices.
        generic: leave out what a search over subsets cannot judge: zeros in gamma, rare operators.
    """

    def __init__(self, choose: random.Random, *, generic: bool = False) -> None:
        self.choose, self.generic = choose, generic
        shape = choose.choice([(4, 4, 4), (2, 3, 3), (3, 5), (4,), (4, 1, 1)])
        self.net = Net(("N", *shape), seed=choose.randrange(1000), opset=choose.choice([13, 17]))
        self.tensors = ["x"]
        self.norms = 0

    def shape(self, t: str) -> list[Any]:
        return self.net.shape(t)

    def pick(self, accept: Callable[[list[Any]], bool] = lambda shape: True) -> str | None:
        """A tensor, rather a young one."""
        fitting = [t for t in self.tensors if accept(self.shape(t))]
        if not fitting:
            return None
        return fitting[-1] if self.choose.random() < 0.5 else self.choose.choice(fitting)

    def bn(self, t: str) -> str:
        signs = ["positive", "positive", "positive", "mixed", "negative"]
        if not self.generic:
            signs += ["some zero"]
        self.norms += 1
        shift = self.choose.random() < 0.85
        return self.net.bn(t, signs=self.choose.choice(signs), shift=shift)

    def layer(self, t: str, out: int | None = None) -> str:
        """A layer that reads t: padded, strided, grouped or shared, as it comes."""
        net, shape = self.net, self.shape(t)
        out = self.choose.choice([2, 3, 4]) if out is None else out
        if len(shape) == 2:
            return net.gemm(t, out) if self.choose.random() < 0.7 else net.linear(t, out)
        space = shape[2:]
        kinds = ["1x1"] * 2 + ["padded"] * 2 + ["valid"] * (min(space) >= 3)
        kind = self.choose.choice(kinds)
        options: dict[str, Any] = {"bias": self.choose.random() < 0.7}
        if shape[1] == out and self.choose.random() < 0.2:
            options["group"] = out
        if kind == "padded":
            options["pads"] = [1] * (2 * len(space))
        return net.conv(t, out, 1 if kind == "1x1" else 3, **options)

    def shared_layer(self, t: str) -> str | None:
        """A Conv with a weight that the graph has already."""
        net, shape = self.net, self.shape(t)
        weights = [
            w.name
            for w in net.initializers
            if len(w.dims) == len(shape) > 2
            and list(w.dims[1:]) == [shape[1], *[1] * len(shape[2:])]
        ]
        return net.op("Conv", t, self.choose.choice(weights)) if weights else None

    def activation(self, t: str) -> str:
        ops = ["Relu"] * 4 + ["LeakyRelu", "PRelu", "Sigmoid", "Clip"]
        op = self.choose.choice(ops)
        if op == "PRelu":
            slope = self.net.rng.uniform(
                0.1, 0.9, [self.shape(t)[1]] + [1] * (len(self.shape(t)) - 2)
            )
            return self.net.op(op, t, self.net.const(slope))
        if op == "Clip":
            return self.net.op(op, t, self.net.const(np.float32(-1)), self.net.const(np.float32(1)))
        return self.net.op(op, t)

    def pool(self, t: str) -> str | None:
        shape = self.shape(t)
        if len(shape) < 3:
            return None
        n = len(shape) - 2
        kinds = ["GlobalAveragePool", "ReduceMean", "same", "counted"]
        kinds += ["MaxPool", "AveragePool"] * (min(shape[2:]) >= 2)
        kind = self.choose.choice(kinds)
        if kind == "GlobalAveragePool":
            return self.net.op(kind, t)
        if kind == "ReduceMean":
            return self.net.op(
                kind, t, axes=list(range(2, n + 2)), keepdims=self.choose.randrange(2)
            )
        if kind in ("MaxPool", "AveragePool"):
            stride = self.choose.choice([1, 2])
            return self.net.op(kind, t, kernel_shape=[2] * n, strides=[stride] * n)
        return self.net.op(
            "AveragePool",
            t,
            kernel_shape=[3] * n,
            pads=[1] * 2 * n,
            count_include_pad=int(kind == "counted"),
        )

    def add(self, t: str) -> str:
        """A sum of two or three tensors of one shape, or with one value per channel."""
        net, shape = self.net, self.shape(t)
        other = self.choose.choice([u for u in self.tensors if self.shape(u) == shape])
        if other == t or self.choose.random() < 0.3:
            other = self.same_shape(t)
        if len(shape) > 2 and self.choose.random() < 0.1:
            other = net.op("GlobalAveragePool", other)
        op = self.choose.choice(["Add"] * 5 + ["Sub", "Sum", "Max"])
        return net.op(op, t, other)

    def same_shape(self, t: str) -> str:
        """A layer's output of the shape of t."""
        shape = self.shape(t)
        if len(shape) == 2:
            return self.net.gemm(t, shape[1])
        if self.choose.random() < 0.5:
            return self.net.conv(t, shape[1])
        return self.net.conv(t, shape[1], 3, pads=[1] * 2 * (len(shape) - 2))

    def concat(self, t: str) -> str | None:
        shape = self.shape(t)
        axis = 1 if len(shape) == 2 or self.choose.random() < 0.85 else 2
        fitting = [
            u
            for u in self.tensors
            if len(self.shape(u)) == len(shape)
            and all(
                a == b
                for i, (a, b) in enumerate(zip(self.shape(u), shape, strict=False))
                if i != axis
            )
        ]
        other = self.choose.choice(fitting)
        pair = [t, other] if self.choose.random() < 0.5 else [other, t]
        return self.net.op("Concat", *pair, axis=axis)

    def split(self, t: str) -> tuple[str, str] | None:
        size = self.shape(t)[1]
        if not isinstance(size, int) or size < 2:
            return None
        cut = self.choose.randrange(1, size)
        return self.net.op("Split", t, self.net.ints(cut, size - cut), outputs=2, axis=1)

    def part(self, t: str) -> str | None:
        size = self.shape(t)[1]
        if size < 2:
            return None
        if self.choose.random() < 0.5:
            return self.net.op(
                "Gather", t, self.net.ints(*self.choose.sample(range(size), 2)), axis=1
            )
        start = self.choose.randrange(size - 1)
        return self.net.op("Slice", t, *(self.net.ints(i) for i in (start, size, 1)))

    def move(self, t: str) -> str | None:
        """A node that moves elements."""
        net, shape = self.net, self.shape(t)
        rank = len(shape)
        if rank == 2:
            kind = self.choose.choice(["Unsqueeze", "Identity", "Dropout", "Reshape"])
            if kind == "Unsqueeze":
                return net.op(kind, t, net.ints(2))
            if kind == "Reshape":
                even = shape[1] % 2 == 0
                return net.op(kind, t, net.ints(-1, shape[1] // 2, 2)) if even else None
            return net.op(kind, t)
        kind = self.choose.choice(
            ["Flatten", "Transpose", "Reshape", "Shuffle", "Pad", "Resize", "Tile"]
        )
        if kind == "Flatten":
            return (
                net.op(kind, t)
                if self.choose.random() < 0.5
                else net.op("Reshape", t, net.ints(0, -1))
            )
        if kind == "Transpose":
            order = [0, *self.choose.sample(range(1, rank), rank - 1)]
            return net.op(kind, t, perm=order)
        if kind == "Reshape":
            return net.op(kind, t, net.ints(0, shape[1], -1)) if rank == 4 else None
        if kind == "Shuffle":
            return self.shuffle(t)
        if kind == "Tile":
            return net.op(kind, t, net.ints(*[1] * (rank - 1), 2))
        if kind == "Pad":
            pads = [0, 0] + [1] * (rank - 2)
            mode = self.choose.choice(["constant", "edge"])
            return net.op(kind, t, net.ints(*pads, *pads), mode=mode)
        if rank == 4:
            return net.op(kind, t, "", net.const(np.array([1.0, 1, 2, 2])))
        return None

    def shuffle(self, t: str) -> str | None:
        shape = self.shape(t)
        if shape[1] % 2:
            return None
        net, space = self.net, shape[2:]
        u = net.op("Reshape", t, net.ints(-1, 2, shape[1] // 2, *space))
        u = net.op("Transpose", u, perm=[0, 2, 1, *range(3, 3 + len(space))])
        return net.op("Reshape", u, net.ints(-1, shape[1], *space))

    def affine(self, t: str) -> str:
        shape = self.shape(t)
        per_channel = [shape[1]] + [1] * (len(shape) - 2)
        operand = self.choose.choice([per_channel, [1]])
        op = self.choose.choice(["Mul", "Add", "Sub", "Div", "both"])
        if op == "both":
            return self.net.affine(t, *operand)
        if op in ("Mul", "Add") and self.choose.random() < 0.3:
            return self.net.op(op, self.net.random(*operand), t)
        return self.net.op(op, t, self.net.random(*operand))

    def gate(self, t: str) -> str | None:
        """Squeeze and excite, or the product with another tensor."""
        shape = self.shape(t)
        if len(shape) < 3 or self.choose.random() < 0.3:
            others = [u for u in self.tensors if self.shape(u) == shape]
            return self.net.op("Mul", t, self.choose.choice(others))
        squeezed = self.net.conv(self.net.op("GlobalAveragePool", t), shape[1])
        return self.net.op("Mul", t, self.net.op("Sigmoid", squeezed))

    def step(self) -> None:
        t = self.pick()
        kinds = [self.bn] * 8 + [self.layer] * 6 + [self.activation] * 4 + [self.add] * 5
        kinds += [self.concat] * 3 + [self.move] * 3 + [self.pool] * 2 + [self.split, self.part]
        kinds += [self.affine, self.gate, self.shared_layer]
        made = self.choose.choice(kinds)(t)
        for name in [made] if isinstance(made, str) else made or ():
            if np.prod(self.shape(name)[1:]) <= MAX_SIZE:
                self.tensors.append(name)

    def outputs(self) -> Sequence[str]:
        """A layer on most tensors that nobody reads; now and then a tensor as it is."""
        read = {name for n in self.net.nodes for name in n.input}
        written = [name for n in self.net.nodes for name in n.output]
        leaves = [t for t in written if t not in read]
        found = [self.layer(t) if self.choose.random() < 0.6 else t for t in leaves]
        others = [t for t in written if t in read]
        if others and self.choose.random() < 0.15:
            found.append(self.choose.choice(others))
        return list(dict.fromkeys(found))


def random_model(
    choose: random.Random, *, steps: int = 12, max_norms: int = 99, generic: bool = False
):
    """A model of about `steps` nodes with one to `max_norms` BatchNormalizations."""
    made = RandomNet(choose, generic=generic)
    for _ in range(choose.randrange(2, steps)):
        if made.norms == max_norms:
            break
        made.step()
    if not made.norms:
        made.tensors.append(made.bn(made.pick()))
    return made.net.model(*made.outputs())


def sketch(model: ModelProto) -> str:
    """The nodes of a model, one per line, with the shapes of their constants."""
    dims = {t.name: str(list(t.dims)) for t in model.graph.initializer}
    lines = [
        f"{', '.join(n.output)} = {n.op_type}({', '.join(dims.get(i, i) for i in n.input)})"
        for n in model.graph.node
    ]
    shapes = [
        [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in model.graph.input
    ]
    return "\n".join(
        [f"inputs {shapes}", *lines, f"outputs {[o.name for o in model.graph.output]}"]
    )
