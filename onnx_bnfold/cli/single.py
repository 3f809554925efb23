"""The fold command for one model at a URL."""

from __future__ import annotations

import argparse
import posixpath
from urllib.parse import unquote, urlsplit

from onnx_bnfold.api import Outcome
from onnx_bnfold.batch.single import downloaded
from onnx_bnfold.cli.fold import run as run_fold
from onnx_bnfold.cli.parser import file_of
from onnx_bnfold.options import Options


def run(args: argparse.Namespace, options: Options) -> Outcome | None:
    """Download a model and fold it; see ``fold.run``.

    Args:
        args: model, a URL, and the rest as ``fold.run`` has it.
        options: of the fold.

    Raises:
        UsageError: the model cannot be downloaded, or the output is not on this machine.
    """
    url = args.model
    if args.output:
        args.output = file_of(args.output, unquote(posixpath.basename(urlsplit(url).path)))
    with downloaded(url) as path:
        args.model = str(path)
        return run_fold(args, options)
