"""The pre-commit hook: tell of every model that a fold would change, not of the first alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onnx_bnfold.cli.main import main as run

_ASKED = ("--dry-run", "--require-folded", "--quiet")


def main(words: Sequence[str]) -> int:
    """Plan models, print what is wrong with each, and return the worst exit code.

    Args:
        words: paths that end in ``.onnx``, and options of a fold, such as ``--require-all``. Words
            without such a path are one command: a folder is planned as a store.
    """
    models = [word for word in words if word.endswith(".onnx")]
    options = [word for word in words if not word.endswith(".onnx")]
    if options and not models:
        return run([*options, *_ASKED])
    return max((run([model, *_ASKED, *options]) for model in models), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
