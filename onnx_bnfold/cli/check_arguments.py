"""The options of a check.

Their values become the fields of a ``CheckOptions`` (see ``console.options_of``). That class is not
imported here, since it loads much that a fold has no use for, so defaults are left to it, too: an
option that is not given is not among the arguments.
"""

from __future__ import annotations

import argparse
from typing import Any


def add_check_arguments(parser: argparse.ArgumentParser, title: str = "") -> list[argparse.Action]:
    """Add the options of a check to a parser, in groups.

    Args:
        parser: the parser.
        title: stands in front of the groups' titles.

    Returns:
        The options.
    """
    actions: list[argparse.Action] = []
    for name, add in (
        ("numerics (always checked)", _add_numerics),
        ("accuracy", _add_accuracy),
        ("latency", _add_latency),
        ("int8", _add_int8),
    ):
        add(_Group(parser.add_argument_group(f"{title}{name}"), actions))
    return actions


class _Group:
    """A group of options without defaults, which are collected in ``actions``."""

    def __init__(self, group: argparse._ArgumentGroup, actions: list[argparse.Action]) -> None:
        self._group = group
        self._actions = actions

    def add(self, flag: str, **settings: Any) -> None:
        """Add an option, see ``ArgumentParser.add_argument``."""
        action = self._group.add_argument(flag, default=argparse.SUPPRESS, **settings)
        self._actions.append(action)


def _add_numerics(group: _Group) -> None:
    group.add(
        "--shape",
        dest="shapes",
        action=_Gather,
        type=_shape,
        metavar="NAME=SIZES",
        help="shape of an input, input=1,3,224,224, or size of a symbolic dimension, N=4",
    )
    group.add(
        "--range",
        dest="value_range",
        type=_range,
        metavar="LOW,HIGH",
        help="range of random values (default: standard normal, integers 0 to 9); write a "
        "negative one as --range=-1,1",
    )
    group.add("--seed", type=int, help="of the random inputs, noise and bootstrap (default 0)")
    group.add(
        "--inputs", metavar="FILE", help=".npz (arrays named like the inputs) or .npy to feed"
    )
    group.add("--sets", type=int, help="random input sets (default 2)")
    group.add(
        "--draws",
        type=int,
        help="noisy evaluations of the original; up to 64 if they do not decide (default 4)",
    )
    group.add(
        "--factor",
        type=float,
        help="smallest limit of a difference, in units of the rounding noise (default 2.25)",
    )
    group.add("--rtol", type=float, help="with --atol, replaces the noise limit")
    group.add("--atol", type=float, help="see --rtol")
    group.add(
        "--custom-ops",
        action="append",
        metavar="LIBRARY",
        help="library with custom operators for onnxruntime; repeatable",
    )


def _add_accuracy(group: _Group) -> None:
    group.add(
        "--data",
        metavar="PATH",
        help=".npz with arrays named like the inputs and `labels`, or a folder of IDX files",
    )
    group.add(
        "--max-accuracy-drop", type=float, help="gate: largest drop of top-1, 0.001 is 0.1 %%"
    )
    group.add(
        "--min-agreement", type=float, help="gate: smallest fraction of unchanged predictions"
    )
    group.add("--batch", type=int, help="examples per run in accuracy (default 64) and latency (1)")


def _add_latency(group: _Group) -> None:
    group.add("--latency", action="store_true", help="measure latency and memory")
    group.add(
        "--modes",
        type=lambda text: tuple(text.split(",")),
        metavar="disabled,enabled",
        help="onnxruntime's optimisations (default: both)",
    )
    group.add("--runs", type=int, help="timed pairs of runs per mode (default 50)")
    group.add("--warm-up", type=int, help="untimed pairs before them (default 5)")
    group.add("--threads", type=int, help="threads; 0: onnxruntime's choice (default 1)")
    group.add(
        "--min-speedup",
        action=_Gate,
        const="latency",
        type=float,
        metavar="R",
        help="gate in every mode; fails only if the interval of the speed-up is below R",
    )


def _add_int8(group: _Group) -> None:
    group.add(
        "--quantize",
        action="store_true",
        help="quantise both by onnxruntime's quantize_static, and compare signal-to-noise, classes "
        "and latency; calibrated on --data or --inputs, else on random inputs",
    )
    group.add(
        "--max-snr-drop",
        action=_Gate,
        const="quantize",
        type=float,
        metavar="DB",
        help="gate: largest loss of signal-to-noise against the original's (default: 4, in each of "
        "three calibrations)",
    )


class _Gather(argparse.Action):
    """Gathers names and values of an option that is repeated."""

    def __call__(self, *called: Any) -> None:
        _, namespace, (name, value), *_ = called
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), name: value})


class _Gate(argparse.Action):
    """A gate that asks for the measurement that it needs, which ``const`` names."""

    def __call__(self, *called: Any) -> None:
        _, namespace, limit, *_ = called
        setattr(namespace, self.dest, limit)
        setattr(namespace, str(self.const), True)


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
