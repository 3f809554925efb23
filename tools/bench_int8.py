"""Signal-to-noise in int8 of networks as they are, folded, and folded in other ways.

    python -m tools.bench_int8 resnet18 mobilenet_v2 --seeds 5 [--statistics random] [--size 128]

Needs torch and torchvision. Every seed gives other weights, statistics, calibration inputs and test
inputs; printed are the means over the seeds of the signal-to-noise in dB (int8 by onnxruntime's
`quantize_static`, QDQ, per-channel weights, against the original in float), and behind them the
standard deviation over the seeds. One network alone says little: its error is nearly the same for
all inputs, and thus one draw from a wide distribution. The statistics of the BatchNormalizations
are those of the inputs (`own`, as training leaves them) or drawn at random (`random`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnx_bnfold import Options, fold_file
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import quantised, snr
from onnx_bnfold.check.sessions import Feed, Session, join
from onnx_bnfold.check.sessions import session_options as options_of
from tests import zoo

if TYPE_CHECKING:
    import torch

BATCH, SETS = 2, 6
_FREE = (3, 64, 64)  # of networks that take any size
RANGES = "ranges.npz"
WAYS = {
    "default profile": Options(),
    "--profile int8": Options(profile="int8"),
    "... --equalize": Options(profile="int8", equalize=True),
    "... --ranges": Options(profile="int8", equalize=True, ranges=RANGES),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=sorted(zoo.ENTRIES), metavar="NETWORK")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="height and width of the inputs")
    parser.add_argument("--statistics", choices=["own", "random"], default="own")
    args = parser.parse_args()
    names = ["BN left in", "onnxruntime's fold", *WAYS]
    print(f"| network | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}", flush=True)
    for network in args.networks:
        found = np.array([list(measure(network, seed, args)) for seed in range(args.seeds)])
        cells = [f"{np.mean(c):.1f} ± {statistics.pstdev(c):.1f}" for c in found.T.tolist()]
        print(f"| {network} | {' | '.join(cells)} |", flush=True)


def measure(network: str, seed: int, args: argparse.Namespace) -> Iterator[float]:
    """Yield the signal-to-noise of one network as it is, folded by onnxruntime, and in all ways."""
    shape = zoo.ENTRIES[network].shape
    if shape == _FREE:
        shape = (3, args.size, args.size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = folder / "original.onnx"
        net = zoo.network(network, seed=100 * seed)
        if args.statistics == "own":
            set_statistics(net, shape)
        zoo.export(net, shape, "torchscript", source)
        calibration, test, other = (feeds(shape, 3 * seed + part) for part in range(3))
        np.savez(folder / RANGES, x=join(iter(other))["x"])
        float_session = Session(CheckedModel(source, "original"))
        reference = join(float_session.run(feed) for feed in test)["y"]
        models = [source, basic(source), *(folded(source, way) for way in WAYS)]
        for number, path in enumerate(models):
            model = quantised(CheckedModel(path, path.name), folder / str(number), calibration)
            session = Session(model)
            yield snr(reference, join(session.run(feed) for feed in test)["y"])


def set_statistics(net: torch.nn.Module, shape: tuple[int, ...]) -> None:
    """Give every BatchNormalization the statistics of what it reads."""
    import torch

    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # plain means
            module.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(8, *shape, generator=generator))
    net.eval()


def feeds(shape: tuple[int, ...], seed: int) -> list[Feed]:
    """Return random inputs."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((BATCH, *shape), np.float32)} for _ in range(SETS)]


def basic(source: Path, disabled: Sequence[str] = ()) -> Path:
    """Fold by onnxruntime's basic optimisations, which fold BatchNormalizations into Convs.

    Args:
        source: the model; the result is written beside it.
        disabled: names of optimisations that are not wanted.
    """
    import onnxruntime

    path = source.with_name("basic.onnx")
    options = options_of(optimised=False)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=[*disabled]
    )
    onnx.checker.check_model(path)
    return path


def folded(source: Path, way: str) -> Path:
    """Fold in one of the ways."""
    path = source.with_name(f"folded{list(WAYS).index(way)}.onnx")
    options = WAYS[way]
    if options.ranges:
        ranges = str(source.with_name(options.ranges))
        options = Options(profile=options.profile, equalize=True, ranges=ranges)
    fold_file(source, path, options)
    return path


if __name__ == "__main__":
    main()
