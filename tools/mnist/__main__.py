"""The command line: ``python -m tools.mnist reproduce`` and ``python -m tools.mnist predict``.

Exit codes: 0 done; 1 a requirement did not hold; 2 bad usage or bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from onnx_bnfold.errors import BnFoldError, CheckFailed, UsageError
from onnx_bnfold.progress import show
from tools.mnist import data

OUTPUT = Path("runs/mnist")
PICTURE = "mnist.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except CheckFailed as failed:
        print(f"onnx-bnfold: {failed}", file=sys.stderr)
        return 1
    except (BnFoldError, OSError) as error:
        print(f"onnx-bnfold: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"onnx-bnfold: {error.name} is missing: pip install -e '.[train]'", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.mnist", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, metavar="DIR", help="folder of MNIST's four IDX files")

    command = commands.add_parser(
        "reproduce", parents=[common], help="train, fold, compare with the seed's figures"
    )
    length = command.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="about a minute of training")
    length.add_argument("--restore", action="store_true", help="take the network saved last time")
    command.add_argument(
        "--out", type=Path, default=OUTPUT, metavar="DIR", help="default %(default)s"
    )
    command.add_argument("--seed", type=int, default=0, help="default %(default)s")
    command.add_argument("--runs", type=int, default=30, help="timed runs, default %(default)s")
    command.set_defaults(run=_reproduce)

    command = commands.add_parser("predict", parents=[common], help="the class of a single image")
    command.add_argument("model", type=Path, help="an ONNX file written by reproduce")
    image = command.add_mutually_exclusive_group(required=True)
    image.add_argument("--index", type=int, metavar="N", help="test image N, from 0")
    image.add_argument("--image", type=Path, metavar="FILE", help="light digit on a dark ground")
    command.add_argument("--invert", action="store_true", help="FILE has dark ink on light ground")
    command.set_defaults(run=_predict)
    return parser


def _reproduce(options: argparse.Namespace) -> None:
    from tools.mnist.picture import draw
    from tools.mnist.reproduce import RESULTS, WEIGHTS, WITH_BN, WITHOUT_BN, reproduce, trained
    from tools.mnist.table import render
    from tools.mnist.train import FULL, QUICK

    show("bars and lines")
    mnist = data.load(options.data)
    restored = True
    if not options.restore:
        schedule = QUICK if options.quick else FULL
        restored = trained(mnist, schedule, options.seed, options.out)
    results = reproduce(mnist, options.out, options.runs, restored)
    print(render(results))
    results.write(options.out / RESULTS)
    draw(results, options.out / PICTURE)
    written = [WEIGHTS, WITH_BN, WITHOUT_BN, RESULTS, PICTURE]
    print(f"\nwritten: {', '.join(str(options.out / name) for name in written)}")
    if failures := results.failures():
        raise CheckFailed("; ".join(failures))
    images, agreeing = results.sizes["test"], results.comparison.agreeing
    print(f"OK  {agreeing:,} of {images:,} predictions are the same without BatchNormalization")


def _predict(options: argparse.Namespace) -> None:
    from tools.mnist.predict import predict, read_image

    if options.image is not None:
        image, label = read_image(options.image, options.invert), ""
    else:
        test = data.load_test(options.data)
        last = len(test.labels) - 1
        if not 0 <= options.index <= last:
            raise UsageError(f"--index {options.index}: test images go from 0 to {last}")
        image = test.images[options.index : options.index + 1]
        label = f", label {test.labels[options.index]}"
    chances = predict(options.model, image)
    print(f"digit {chances.argmax()}, probability {chances.max():.4f}{label}")


if __name__ == "__main__":
    sys.exit(main())
