"""``python -m onnx_bnfold``."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # see ``onnx_bnfold``
if TYPE_CHECKING:
    from typing import NoReturn

INTERRUPTED = 130  # see ``interrupts``, which is imported later


def run() -> NoReturn:
    """Run the command line in a process that has nothing else to do."""
    try:
        # Imported here, so that an interrupt of the import is handled, too.
        from onnx_bnfold.cli.main import main
        from onnx_bnfold.onnx_on_demand import import_on_demand
        from onnx_bnfold.process_memory import keep_to_the_end

        import_on_demand()
        code = main(keep=keep_to_the_end)
    except KeyboardInterrupt:
        print("onnx-bnfold: interrupted; no incomplete file was written", file=sys.stderr)
        code = INTERRUPTED
    if code == INTERRUPTED:
        # At once: while it shuts down, Python would report errors of threads or another interrupt.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
