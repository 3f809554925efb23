"""``python -m onnx_bnfold``."""

from typing import NoReturn

from onnx_bnfold.cli import main
from onnx_bnfold.memory import leave


def run() -> NoReturn:
    """Run the command line in a process that has nothing else to do."""
    leave(main())


if __name__ == "__main__":
    run()
