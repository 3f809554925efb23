"""``python -m onnx_bnfold``."""

import sys
from typing import NoReturn

from onnx_bnfold.cli import main
from onnx_bnfold.memory import keep_to_the_end


def run() -> NoReturn:
    """Run the command line in a process that has nothing else to do."""
    sys.exit(main(keep=keep_to_the_end))


if __name__ == "__main__":
    run()
