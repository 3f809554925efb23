"""What the check sees of faults put into right folds.

    python -m tools.check_sensitivity model.onnx [more.onnx ...] [--layers 12] [--shape x=2,3,64,64]

Into each of some layers, one at a time: two output channels swapped, the largest weight changed by
1 %, a weight drawn at random changed by 1 %; and folds in which epsilon is left out of one BN, or
of all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

import onnx_bnfold
from onnx_bnfold.check import CheckOptions, check, numerics
from onnx_bnfold.cli.check_arguments import add_check_arguments
from onnx_bnfold.cli.console import options_of

Change = Callable[[np.ndarray, np.random.Generator], None]


def _swap(weight: np.ndarray, rng: np.random.Generator) -> None:
    first, second = rng.choice(len(weight), 2, replace=False)
    weight[[first, second]] = weight[[second, first]]


def _largest(weight: np.ndarray, rng: np.random.Generator) -> None:
    weight.flat[np.abs(weight).argmax()] *= 1.01


def _any(weight: np.ndarray, rng: np.random.Generator) -> None:
    weight.flat[rng.integers(weight.size)] *= 1.01


CHANGES: dict[str, Change] = {"channels swapped": _swap, "largest 1 %": _largest, "any 1 %": _any}


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted))})


def faults(original: onnx.ModelProto, layers: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield kinds of fault, each with a wrong fold of a model."""
    folded, _ = onnx_bnfold.fold(original)
    tensors = {tensor.name: i for i, tensor in enumerate(folded.graph.initializer)}
    weights = [n.input[1] for n in folded.graph.node if n.op_type == "Conv"]
    for number in _spread(len(weights), layers):
        for kind, change in CHANGES.items():
            wrong = _copy(folded)
            tensor = wrong.graph.initializer[tensors[weights[number]]]
            array = numpy_helper.to_array(tensor).copy()
            change(array, np.random.default_rng(number))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            yield kind, wrong
    norms = [i for i, n in enumerate(original.graph.node) if n.op_type == "BatchNormalization"]
    for several in (norms, *([norms[i]] for i in _spread(len(norms), layers))):
        wrong = _copy(original)
        for i in several:
            kept = [a for a in wrong.graph.node[i].attribute if a.name != "epsilon"]
            del wrong.graph.node[i].attribute[:]
            wrong.graph.node[i].attribute.extend(kept)
            wrong.graph.node[i].attribute.append(onnx.helper.make_attribute("epsilon", 0.0))
        kind = "epsilon, one BN" if len(several) == 1 else "epsilon, all BNs"
        yield kind, onnx_bnfold.fold(wrong)[0]


def measure(path: str, layers: int, options: CheckOptions) -> None:
    """Print a line for one model."""
    original = onnx.load(path)
    seen: dict[str, list[bool]] = {}
    for kind, wrong in faults(original, layers):
        seen.setdefault(kind, []).append(not check(original, wrong, options).holds)
    told = (f"{kind} {sum(found)} of {len(found)}" for kind, found in seen.items())
    print(f"{path}: {', '.join(told)}", flush=True)


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--layers", type=int, default=12)
    add_check_arguments(parser)
    args = parser.parse_args()
    numerics.first_difference = lambda *_: None  # takes long, and nobody reads it here
    for path in args.models:
        measure(path, args.layers, options_of(CheckOptions, args))


if __name__ == "__main__":
    main()
