"""``python -m onnx_bnfold``."""

import sys

from onnx_bnfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
