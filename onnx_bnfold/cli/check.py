"""The check command."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from onnx_bnfold.check.api import check
from onnx_bnfold.check.options import MODES, CheckOptions
from onnx_bnfold.check.results import CheckResult
from onnx_bnfold.check.text import render_text
from onnx_bnfold.cli.console import options_of, tell
from onnx_bnfold.errors import ModelError, UsageError

_EPILOG = """\
exit codes: 0 all gates hold, 1 a gate does not (it is named), 2 bad usage or bad input"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``check original.onnx folded.onnx [options]``, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="onnx_bnfold check",
        description="Checks that a folded model computes the same function as its original, "
        "as accurately and no slower.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("original", help="the model before folding")
    parser.add_argument("folded", help="the model after folding")
    parser.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the record of the check as .json or .html; repeatable",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        result = _checked(args)
    except (ModelError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tell(render_text(result).rstrip())
    return 0 if result.holds else 1


def _checked(args: argparse.Namespace) -> CheckResult:
    options = options_of(CheckOptions, args)
    if not args.report:
        return check(args.original, args.folded, options)
    from onnx_bnfold.reports.files import require_writable, write

    require_writable(args.report, taken=(args.original, args.folded))
    result = check(args.original, args.folded, options)
    for path in args.report:
        write(path, result.to_dict())
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a check to a parser, in groups."""
    default = CheckOptions()
    group = parser.add_argument_group("numerics (always checked)")
    group.add_argument(
        "--shape",
        dest="shapes",
        action=_Gather,
        default={},
        type=_shape,
        metavar="NAME=SIZES",
        help="shape of an input, input=1,3,224,224, or size of a symbolic dimension, N=4",
    )
    group.add_argument(
        "--range",
        dest="value_range",
        type=_range,
        metavar="LOW,HIGH",
        help="range of random values (default: standard normal, integers 0 to 9); write a "
        "negative one as --range=-1,1",
    )
    _add(group, "--seed", int, default.seed, "of the random inputs, noise and bootstrap")
    group.add_argument(
        "--inputs", metavar="FILE", help=".npz (arrays named like the inputs) or .npy to feed"
    )
    _add(group, "--sets", int, default.sets, "random input sets")
    _add(
        group,
        "--draws",
        int,
        default.draws,
        "noisy evaluations of the original; up to 64 if they do not decide",
    )
    _add(
        group,
        "--factor",
        float,
        default.factor,
        "smallest limit of a difference, in units of the rounding noise",
    )
    group.add_argument("--rtol", type=float, help="with --atol, replaces the noise limit")
    group.add_argument("--atol", type=float, help="see --rtol")
    group.add_argument(
        "--custom-ops",
        action="append",
        default=[],
        metavar="LIBRARY",
        help="library with custom operators for onnxruntime; repeatable",
    )
    group = parser.add_argument_group("accuracy")
    group.add_argument(
        "--data",
        metavar="PATH",
        help=".npz with arrays named like the inputs and `labels`, or a folder of IDX files",
    )
    group.add_argument(
        "--max-accuracy-drop", type=float, help="gate: largest drop of top-1, 0.001 is 0.1 %%"
    )
    group.add_argument(
        "--min-agreement", type=float, help="gate: smallest fraction of unchanged predictions"
    )
    group.add_argument(
        "--batch", type=int, help="examples per run in accuracy (default 64) and latency (1)"
    )
    _add_latency(parser.add_argument_group("latency"), default)
    _add_int8(parser.add_argument_group("int8"))


def _add_latency(group: argparse._ArgumentGroup, default: CheckOptions) -> None:
    group.add_argument("--latency", action="store_true", help="measure latency and memory")
    group.add_argument(
        "--modes",
        type=lambda text: tuple(text.split(",")),
        default=default.modes,
        metavar=",".join(MODES),
        help="onnxruntime's optimisations (default: both)",
    )
    _add(group, "--runs", int, default.runs, "timed pairs of runs per mode")
    _add(group, "--warm-up", int, default.warm_up, "untimed pairs before them")
    _add(group, "--threads", int, default.threads, "threads; 0: onnxruntime's choice")
    group.add_argument(
        "--min-speedup",
        action=_Gate,
        const="latency",
        type=float,
        metavar="R",
        help="gate in every mode; fails only if the interval of the speed-up is below R",
    )


def _add_int8(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quantize",
        action="store_true",
        help="quantise both by onnxruntime's quantize_static, and compare signal-to-noise, classes "
        "and latency; calibrated on --data or --inputs, else on random inputs",
    )
    group.add_argument(
        "--max-snr-drop",
        action=_Gate,
        const="quantize",
        type=float,
        metavar="DB",
        help="gate: largest loss of signal-to-noise against the original's",
    )


class _Gather(argparse.Action):
    """Gathers names and values of an option that is repeated."""

    def __call__(self, *called: Any) -> None:
        _, namespace, (name, value), *_ = called
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), name: value})


class _Gate(argparse.Action):
    """A gate that asks for the measurement that it needs, which ``const`` names."""

    def __call__(self, *called: Any) -> None:
        _, namespace, limit, *_ = called
        setattr(namespace, self.dest, limit)
        setattr(namespace, str(self.const), True)


def _add(group: argparse._ArgumentGroup, flag: str, kind: type, default: float, text: str) -> None:
    group.add_argument(flag, type=kind, default=default, help=f"{text} (default {default:g})")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
    except ValueError:
        shape = (-1,)
    if not equals or not name or any(size < 0 for size in shape):
        raise argparse.ArgumentTypeError(f"{text!r} is not like input=1,3,224,224")
    return name, shape


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0,255") from None
    return low, high


if __name__ == "__main__":
    sys.exit(main())
