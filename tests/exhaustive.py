"""Which BatchNormalizations of a small graph can go together: by search over all subsets.

Independent of the package. Each element of a tensor (of a batch of one) has an unknown scale s and
an unknown shift d: t' = s * (t + d). In these unknowns everything is linear: the equations of the
scales in log |s| and in their signs (modulo 2), those of the shifts in d alone. A node ties the
unknowns of its tensors; a BN that goes, y = a * x + b, asks for x' = y':

    log |s_x| = log |a| + log |s_y|,   sign(s_x) = sign(a) sign(s_y),   a * d_x = d_y + b

A set of BNs can go if the equations have a solution. Constants are random, so that no solution
exists by chance; scales of zero are not treated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

MOVES = {
    "Identity", "Dropout", "Flatten", "Transpose", "Reshape", "Tile", "Unsqueeze", "Gather",
    "Slice", "Resize", "Concat", "Split", "Pad",
}  # fmt: skip


class Unknowns:
    """Classes of equal unknowns; class 0 is the fixed value (scale one, or shift zero)."""

    def __init__(self) -> None:
        self.parent = [0]

    def fresh(self, shape: Iterable[int]) -> np.ndarray:
        shape = tuple(shape)
        start = len(self.parent)
        count = int(np.prod(shape))
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count).reshape(shape)

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def same(self, *arrays: np.ndarray) -> None:
        """All elements at one position of the broadcast arrays are equal."""
        for row in zip(*(a.flat for a in np.broadcast_arrays(*arrays)), strict=True):
            low = min(self.find(int(i)) for i in row)
            for i in row:
                self.parent[self.find(int(i))] = low

    def uniform(self, array: np.ndarray, axes: Iterable[int]) -> None:
        """The unknown depends on these axes only."""
        others = tuple(i for i in range(array.ndim) if i not in set(axes))
        index = tuple(slice(0, 1) if i in others else slice(None) for i in range(array.ndim))
        self.same(array, array[index])

    def fix(self, array: np.ndarray) -> None:
        self.same(array, np.zeros((), int))


class Equations:
    """The unknowns of a graph and the equations that its nodes ask for.

    Args:
        model: the model, whose graph inputs have a static shape but for the batch.
        gone: names of the BNs that go.
    """

    def __init__(self, model: ModelProto, gone: frozenset[str]) -> None:
        self.gone = gone
        self.s, self.d = Unknowns(), Unknowns()
        self.scales: dict[str, np.ndarray] = {}
        self.shifts: dict[str, np.ndarray] = {}
        self.positive: list[np.ndarray] = []
        self.products: list[tuple] = []  # (s_out, [s_in...], factor): s_out * factor = prod(s_in)
        self.sums: list[tuple] = []  # ([(coefficient, d)...], constant): sum(c * d) = constant
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for value in model.graph.input:
            shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            self.scales[value.name] = np.zeros([1, *shape[1:]], int)
            self.shifts[value.name] = np.zeros([1, *shape[1:]], int)
        for node in model.graph.node:
            self.visit(node)
        for value in model.graph.output:
            self.s.fix(self.scales[value.name])
            self.d.fix(self.shifts[value.name])

    def visit(self, node: NodeProto) -> None:
        computed = [i for i in node.input if i in self.scales]
        if node.op_type in MOVES:
            self.move(node, computed)
        elif len(computed) == 1:
            self.unary(node, computed[0])
        else:
            self.combine(node, computed)

    def move(self, node: NodeProto, computed: list[str]) -> None:
        scales = moved(node, [self.scales[i] for i in computed], self.constants, self.s)
        shifts = moved(node, [self.shifts[i] for i in computed], self.constants, None)
        self.scales |= zip(node.output, scales, strict=True)
        self.shifts |= zip(node.output, shifts, strict=True)

    def unary(self, node: NodeProto, x: str) -> None:
        s, d = self.scales[x], self.shifts[x]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        getattr(self, f"op_{node.op_type}")(node, s, d, attributes)

    def put(self, node: NodeProto, s: np.ndarray, d: np.ndarray) -> None:
        self.scales[node.output[0]], self.shifts[node.output[0]] = s, d

    def per_channel(self, s: np.ndarray, d: np.ndarray, axis: int = 1) -> None:
        self.s.uniform(s, [axis])
        self.d.uniform(d, [axis])

    def absorb(self, node: NodeProto, shape: tuple[int, ...], axis: int) -> None:
        """The output of a layer: any change per channel."""
        s, d = self.s.fresh(shape), self.d.fresh(shape)
        self.per_channel(s, d, axis)
        self.put(node, s, d)

    def op_Conv(self, node, s, d, attributes) -> None:  # noqa: N802
        self.per_channel(s, d)
        weight = self.constants[node.input[1]]
        pads = attributes.get("pads", [0] * 2 * (s.ndim - 2))
        if any(pads):
            self.d.fix(d)
        n = s.ndim - 2
        space = [s.shape[2 + i] + pads[i] + pads[i + n] - weight.shape[2 + i] + 1 for i in range(n)]
        self.absorb(node, (1, weight.shape[0], *space), 1)

    def op_Gemm(self, node, s, d, attributes) -> None:  # noqa: N802
        self.absorb(node, (1, self.constants[node.input[1]].shape[1]), 1)

    def op_MatMul(self, node, s, d, attributes) -> None:  # noqa: N802
        axis = s.ndim - 1
        self.per_channel(s, d, axis)
        self.absorb(node, (*s.shape[:-1], self.constants[node.input[1]].shape[1]), axis)

    def op_BatchNormalization(self, node, s, d, attributes) -> None:  # noqa: N802
        if node.name not in self.gone:
            self.per_channel(s, d)
            self.absorb(node, s.shape, 1)
            return
        scale, shift, mean, var = (self.constants[i].astype(float) for i in node.input[1:5])
        a = scale / np.sqrt(var + attributes["epsilon"])
        shape = [-1] + [1] * (s.ndim - 2)
        a, b = a.reshape(shape), (shift - mean * a).reshape(shape)
        new_s, new_d = self.s.fresh(s.shape), self.d.fresh(d.shape)
        self.products.append((s, [new_s], 1 / a))
        self.sums.append(([(a, d), (-1, new_d)], b))
        self.put(node, new_s, new_d)

    def op_Relu(self, node, s, d, attributes) -> None:  # noqa: N802
        self.positive.append(s)
        self.d.fix(d)
        self.put(node, s, d)

    # A PRelu takes negative scales too, by another slope, which none of the graphs needs.
    op_LeakyRelu = op_PRelu = op_Relu  # noqa: N815

    def op_Sigmoid(self, node, s, d, attributes) -> None:  # noqa: N802
        self.s.fix(s)
        self.d.fix(d)
        self.put(node, np.zeros(s.shape, int), np.zeros(s.shape, int))

    op_Clip = op_Sigmoid  # noqa: N815

    def op_GlobalAveragePool(self, node, s, d, attributes) -> None:  # noqa: N802
        self.per_channel(s, d)
        index = (slice(None), slice(None), *[slice(0, 1)] * (s.ndim - 2))
        self.put(node, s[index], d[index])

    def op_ReduceMean(self, node, s, d, attributes) -> None:  # noqa: N802
        """Over all spatial axes."""
        self.per_channel(s, d)
        index = (slice(None), slice(None), *[slice(0, 1)] * (s.ndim - 2))
        shape = s[index].shape if attributes["keepdims"] else s.shape[:2]
        self.put(node, s[index].reshape(shape), d[index].reshape(shape))

    def op_AveragePool(self, node, s, d, attributes) -> None:  # noqa: N802
        self.per_channel(s, d)
        if attributes.get("count_include_pad"):
            self.d.fix(d)
        n = s.ndim - 2
        pads, strides = attributes.get("pads", [0] * 2 * n), attributes.get("strides", [1] * n)
        kernel = attributes["kernel_shape"]
        space = [(s.shape[2 + i] + 2 * pads[i] - kernel[i]) // strides[i] + 1 for i in range(n)]
        index = (slice(None), slice(None), *[slice(0, 1)] * n)
        shape = (*s.shape[:2], *space)
        self.put(node, np.broadcast_to(s[index], shape), np.broadcast_to(d[index], shape))

    def op_MaxPool(self, node, s, d, attributes) -> None:  # noqa: N802
        self.positive.append(s)
        self.op_AveragePool(node, s, d, attributes)

    def constant(self, node: NodeProto) -> tuple[np.ndarray, bool]:
        """The constant operand, and whether it is the first."""
        first = node.input[0] in self.constants
        return self.constants[node.input[0 if first else 1]].astype(float), first

    def op_Mul(self, node, s, d, attributes) -> None:  # noqa: N802
        c, first = self.constant(node)
        if node.op_type == "Div":
            assert not first
            c = 1 / c
        new = self.d.fresh(d.shape)
        self.sums.append(([(c, d), (-1, new)], 0))
        self.put(node, self.s.fresh(s.shape), new)

    op_Div = op_Mul  # noqa: N815

    def op_Add(self, node, s, d, attributes) -> None:  # noqa: N802
        self.put(node, s, self.d.fresh(d.shape))

    op_Sub = op_Add  # noqa: N815

    def combine(self, node: NodeProto, computed: list[str]) -> None:
        """Several computed operands."""
        s = [self.scales[i] for i in computed]
        d = [self.shifts[i] for i in computed]
        shape = np.broadcast_shapes(*(a.shape for a in s))
        if node.op_type == "Mul":
            for operand in d:
                self.d.fix(operand)
            new = self.s.fresh(shape)
            self.products.append((new, s, 1.0))
            self.put(node, new, np.zeros(shape, int))
            return
        self.s.same(*s)
        if node.op_type == "Max":
            self.positive.append(s[0])
            self.d.same(*d)
            self.put(node, np.broadcast_to(s[0], shape), np.broadcast_to(d[0], shape))
            return
        assert node.op_type in ("Add", "Sub", "Sum"), node.op_type
        signs = [1, -1] if node.op_type == "Sub" else [1] * len(d)
        new = self.d.fresh(shape)
        self.sums.append(([*zip(signs, d, strict=True), (-1, new)], 0))
        self.put(node, np.broadcast_to(s[0], shape), new)

    def solvable(self) -> bool:
        return self.scales_exist() and self.signs_exist() and self.shifts_exist()

    def rows(self) -> Iterable[tuple[dict[int, int], float]]:
        """Equations of the scales: multiplicities per class, and the factor."""
        for out, inputs, factor in self.products:
            for i, *js, f in zip(
                *(a.flat for a in np.broadcast_arrays(out, *inputs, factor)), strict=True
            ):
                row: dict[int, int] = {}
                for index, sign in [(i, 1), *((j, -1) for j in js)]:
                    root = self.s.find(int(index))
                    row[root] = row.get(root, 0) + sign
                row.pop(0, None)
                yield row, f

    def scales_exist(self) -> bool:
        return consistent((row, -np.log(abs(f))) for row, f in self.rows())

    def signs_exist(self) -> bool:
        """Gauss elimination modulo 2; bit 0 of an equation is its right side."""
        equations = []
        for row, f in self.rows():
            bits = sum(1 << i for i, n in row.items() if n % 2)
            equations.append(bits | int(f < 0))
        equations += [
            1 << root for a in self.positive for i in np.unique(a) if (root := self.s.find(int(i)))
        ]
        pivots: dict[int, int] = {}
        for e in equations:
            while e > 1:
                top = e.bit_length()
                if top not in pivots:
                    pivots[top] = e
                    break
                e ^= pivots[top]
            if e == 1:
                return False
        return True

    def shifts_exist(self) -> bool:
        def rows():
            for terms, constant in self.sums:
                arrays = np.broadcast_arrays(*(x for term in terms for x in term), constant)
                for *values, b in zip(*(a.flat for a in arrays), strict=True):
                    row: dict[int, float] = {}
                    for c, i in zip(values[::2], values[1::2], strict=True):
                        root = self.d.find(int(i))
                        row[root] = row.get(root, 0) + c
                    row.pop(0, None)
                    yield row, b

        return consistent(rows())


def consistent(equations: Iterable[tuple[dict[int, float], float]]) -> bool:
    """Whether a sparse linear system has a solution."""
    rows = list(equations)
    columns = {k: i for i, k in enumerate(dict.fromkeys(k for row, _ in rows for k in row))}
    matrix = np.zeros((len(rows), len(columns)))
    right = np.array([b for _, b in rows])
    for line, (row, _) in zip(matrix, rows, strict=True):
        for k, value in row.items():
            line[columns[k]] = value
    if not matrix.size:
        return bool(np.allclose(right, 0, atol=1e-9))
    solution = np.linalg.lstsq(matrix, right, rcond=1e-10)[0]
    return bool(np.abs(matrix @ solution - right).max() < 1e-6)


def moved(node: NodeProto, arrays: list[np.ndarray], constants, unknowns: Unknowns | None):
    """What a node that moves elements makes of arrays; an element that it pads with is new."""
    x = arrays[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = [constants.get(i) for i in node.input]
    op = node.op_type
    if op in ("Identity", "Dropout"):
        return [x]
    if op == "Flatten":
        return [x.reshape(1, -1)]
    if op == "Transpose":
        return [x.transpose(attributes["perm"])]
    if op == "Reshape":
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(inputs[1])]
        return [x.reshape([1, *shape[1:]])]
    if op == "Tile":
        return [np.tile(x, inputs[1])]
    if op == "Unsqueeze":
        return [np.expand_dims(x, tuple(inputs[1]))]
    if op == "Gather":
        return [np.take(x, inputs[1], axis=attributes["axis"])]
    if op == "Slice":
        return [x[:, inputs[1][0] : inputs[2][0]]]
    if op == "Resize":  # nearest, by two
        return [x.repeat(2, axis=2).repeat(2, axis=3)]
    if op == "Concat":
        return [np.concatenate(arrays, axis=attributes["axis"])]
    if op == "Split":
        parts = np.cumsum(inputs[1])[:-1] if inputs[1:] else len(node.output)
        return np.split(x, parts, axis=attributes["axis"])
    assert op == "Pad"
    n = x.ndim
    widths = [(inputs[1][i], inputs[1][i + n]) for i in range(n)]
    if attributes["mode"] == b"edge":
        return [np.pad(x, widths, mode="edge")]
    if unknowns is None:
        return [np.pad(x, widths)]  # the shift of a zero is zero
    padded = np.pad(x, widths, constant_values=-1)
    return [np.where(padded < 0, unknowns.fresh(padded.shape), padded)]


def can_go(model: ModelProto, names: Iterable[str]) -> bool:
    """Whether these BNs can all go."""
    return Equations(model, frozenset(names)).solvable()


def larger_set(model: ModelProto, size: int) -> tuple[str, ...] | None:
    """A set of more than `size` BNs that can go together, as large as possible; None if none is."""
    norms = [n.name for n in model.graph.node if n.op_type == "BatchNormalization"]
    for more in range(len(norms), size, -1):
        for names in itertools.combinations(norms, more):
            if can_go(model, names):
                return names
    return None
