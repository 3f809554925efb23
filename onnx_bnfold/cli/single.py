"""The fold command for one model at a URL."""

from __future__ import annotations

import argparse
import os
import posixpath
from urllib.parse import unquote, urlsplit

from onnx_bnfold.api import Outcome
from onnx_bnfold.batch.single import downloaded
from onnx_bnfold.cli.fold import run as run_fold
from onnx_bnfold.cli.parser import is_folder, is_url
from onnx_bnfold.errors import UsageError
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
    if args.output and is_url(args.output):
        raise UsageError(
            f"{args.output}: one model is folded into a file of this machine; give -o FILE"
        )
    if args.output and is_folder(args.output):
        args.output = os.path.join(args.output, unquote(posixpath.basename(urlsplit(url).path)))
    with downloaded(url) as path:
        args.model = str(path)
        return run_fold(args, options)
