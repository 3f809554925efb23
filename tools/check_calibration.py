"""How often the check fails a right fold, or the original against itself.

    python -m tools.check_calibration conv gemm [--count 500] [--seed 0]
    python -m tools.check_calibration FOLDER/*.onnx --inputs FOLDER/inputs.npz [--count 20]

`conv` and `gemm` draw small networks, in float32 and float16 in turn; models are checked with as
many seeds as --count says. Each is compared with its fold, with itself, with itself when its
weights are rounded anew, and with itself when they are divided as in a draw.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnx_bnfold
from onnx_bnfold.check import CheckOptions, check
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.noise import RoundedWeights
from onnx_bnfold.storage import ModelFile

_OTHER_SEED = 1_000_003  # of the roundings that are compared, other than those of the check


class Network:
    """A chain of layers and BNs with random parameters."""

    def __init__(self, rng: np.random.Generator, dtype: type) -> None:
        self._rng = rng
        self._dtype = dtype
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []
        self.last = "x"

    def add(self, op: str, *weights: np.ndarray, **attributes: object) -> None:
        """Put a node behind the last one."""
        inputs = [self.last]
        for weight in weights:
            inputs.append(f"w{len(self._tensors)}")
            self._tensors.append(numpy_helper.from_array(weight.astype(self._dtype), inputs[-1]))
        self.last = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [self.last], self.last, **attributes))

    def add_norm(self, channels: int) -> None:
        """Put a BN with gammas of both signs behind the last node."""
        rng = self._rng
        gamma = rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels)
        shift, mean = 0.5 * rng.standard_normal((2, channels))
        variance = rng.uniform(0.3, 2, channels)
        self.add("BatchNormalization", gamma, shift, mean, variance, epsilon=1e-3)

    def weight(self, *shape: int) -> np.ndarray:
        """Return normal numbers that keep the size of what they are multiplied with."""
        scale: float = float(np.prod(shape[1:])) ** -0.5
        return self._rng.standard_normal(shape) * scale

    def finish(self, shape: tuple[int | str, ...]) -> onnx.ModelProto:
        """Return the model."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self._dtype))
        x = helper.make_tensor_value_info("x", kind, shape)
        y = helper.make_tensor_value_info(self.last, kind, None)
        graph = helper.make_graph(self._nodes, "net", [x], [y], self._tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv_net(rng: np.random.Generator, dtype: type) -> onnx.ModelProto:
    """One to three Convs or ConvTransposes with a BN each, from 1x1 to 16x16 pixels."""
    net = Network(rng, dtype)
    channels = first = int(rng.choice([3, 16, 32, 64, 96, 128, 192, 256]))
    size = int(rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 16]))
    for _ in range(rng.integers(1, 4)):
        wanted = int(rng.choice([16, 32, 64, 128]))
        bias = [0.3 * rng.standard_normal(wanted)] if rng.integers(2) else []
        match rng.choice(["3x3", "3x3", "1x1", "depthwise", "transposed"]):
            case "3x3":
                net.add("Conv", net.weight(wanted, channels, 3, 3), *bias, pads=[1] * 4)
            case "1x1":
                net.add("Conv", net.weight(wanted, channels, 1, 1), *bias)
            case "depthwise":
                wanted = channels
                net.add("Conv", net.weight(wanted, 1, 3, 3), group=wanted, pads=[1] * 4)
            case _:
                net.add("ConvTranspose", net.weight(channels, wanted, 2, 2), *bias, strides=[2, 2])
        channels = wanted
        net.add_norm(channels)
        if rng.integers(2):
            net.add("Relu")
    return net.finish(("N", first, size, size))


def gemm_net(rng: np.random.Generator, dtype: type) -> onnx.ModelProto:
    """One to three Gemms with a BN each; some end in a Softmax or Sigmoid."""
    net = Network(rng, dtype)
    inputs = first = int(rng.choice([8, 32, 64, 128, 256, 512, 1024, 3136]))
    for _ in range(rng.integers(1, 4)):
        outputs = int(rng.choice([10, 32, 64, 128, 256, 512]))
        bias = [0.3 * rng.standard_normal(outputs)] if rng.integers(2) else []
        net.add("Gemm", net.weight(outputs, inputs), *bias, transB=1)
        net.add_norm(outputs)
        inputs = outputs
        if rng.integers(2):
            net.add("Relu")
    if head := rng.choice(["", "", "Softmax", "Sigmoid"]):
        net.add(str(head))
    return net.finish(("N", first))


KINDS: dict[str, Callable[[np.random.Generator, type], onnx.ModelProto]] = {
    "conv": conv_net,
    "gemm": gemm_net,
}


def rounded_anew(path: Path, seed: int, *, divide: bool) -> Path:
    """Write a model with other roundings, as the check itself draws them, beside the model.

    Args:
        path: the model.
        seed: of the draw.
        divide: divide weights, or move all of them by half a unit in the last place at most.
    """
    with ModelFile.open(path) as file:
        weights = RoundedWeights(file, seed, divide=divide)
        weights.draw(0)
        target = path.with_suffix(f".divided-{divide}.onnx")
        onnx.save(weights.frozen(), target)
        return target


def verdicts(path: Path, options: CheckOptions) -> Iterator[tuple[str, str, float, int]]:
    """Check a model in every way.

    Yields:
        What it was compared with, what failed, how much of the limit it took, and how many draws.
    """
    folded = path.with_suffix(".folded.onnx")
    onnx_bnfold.fold_file(path, folded)
    seed = options.seed + _OTHER_SEED
    others = {
        "fold": folded,
        "itself": path,
        "rounded anew": rounded_anew(path, seed, divide=False),
        "divided": rounded_anew(path, seed, divide=True),
    }
    for name, other in others.items():
        result = check(path, other, options)
        assert result.numerics is not None, result.failures
        taken = max(o.times_noise / (o.limit or 1) for o in result.numerics.outputs)
        yield name, "; ".join(result.failures), taken, result.numerics.draws


def models(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, CheckOptions]]:
    """Yield what is to be checked: its name, its file and the options."""
    for number in range(args.count):
        for name in args.models:
            seed = args.seed + number
            options = CheckOptions(seed=seed, inputs=None if name in KINDS else args.inputs)
            path = folder / "model.onnx"
            if name in KINDS:
                dtype = (np.float32, np.float16)[number % 2]
                rng = np.random.default_rng([seed, list(KINDS).index(name)])
                onnx.save(KINDS[name](rng, dtype), path)
            else:
                path.write_bytes(CheckedModel(Path(name), name).path.read_bytes())
            yield name, path, options


def main() -> None:
    """Check, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="conv, gemm, or .onnx files without data files")
    parser.add_argument("--inputs", help="real inputs for the files")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found: Counter[tuple[str, str, str]] = Counter()
    most: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, options in models(args, Path(folder)):
            for against, failure, taken, draws in verdicts(path, options):
                key = Path(name).stem, against
                found[(*key, "checks")] += 1
                found[(*key, "failed")] += bool(failure)
                found[(*key, f"{draws} draws")] += 1
                most[key] = max(most.get(key, 0), taken)
                if failure:
                    print(f"{name}, seed {options.seed}, {against}: {failure}", flush=True)
    for (model, against), taken in most.items():
        counts = {k: n for (*key, k), n in found.items() if key == [model, against]}
        told = ", ".join(f"{k} {n}" for k, n in sorted(counts.items()))
        print(f"{model} against {against}: {told}; at most {taken:.2f} of the limit")


if __name__ == "__main__":
    main()
