"""Runs one tool on a list of jobs; `tools.peers.batch` starts it, under the peers' interpreter.

    python worker.py TOOL RESULTS < jobs.json

It imports nothing but the tool, so that the interpreter needs nothing else. One line of JSON per
job goes to the file RESULTS as soon as the job is done: tools print, and tools crash.
"""

import json
import sys
import time
from importlib.metadata import version


def onnx_bnfold():
    """Its command line's defaults."""
    import onnx_bnfold

    return onnx_bnfold.fold_file


def onnxoptimizer():
    """Its default passes."""
    import onnx
    import onnxoptimizer

    return lambda source, target: onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


def onnxsim():
    """Its defaults."""
    import onnx
    import onnxsim

    def convert(source, target):
        model, passed = onnxsim.simplify(onnx.load(source))
        if not passed:
            raise RuntimeError("its own check failed")
        onnx.save(model, target)

    return convert


def onnxslim():
    """Its defaults."""
    import onnx
    import onnxslim

    return lambda source, target: onnx.save(onnxslim.slim(onnx.load(source)), target)


def onnxscript():
    """Return a function that applies the default rules of its rewriter."""
    import onnx
    from onnxscript import rewriter

    return lambda source, target: onnx.save(rewriter.rewrite(onnx.load(source)), target)


def _onnxruntime(level):
    import onnxruntime

    def convert(source, target):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return convert


def run():
    """Run a model without optimisations; the outputs go to an .npz file, in order."""
    import numpy
    import onnxruntime

    def convert(source, target, feeds):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        numpy.savez(target, *session.run(None, dict(numpy.load(feeds))))

    return convert


# Column → (package, what makes the function).
TOOLS = {
    "onnx_bnfold": ("onnx_bnfold", onnx_bnfold),
    "onnxoptimizer": ("onnxoptimizer", onnxoptimizer),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxslim": ("onnxslim", onnxslim),
    "onnxscript rewriter": ("onnxscript", onnxscript),
    "onnxruntime basic": ("onnxruntime", lambda: _onnxruntime("ORT_ENABLE_BASIC")),
    "onnxruntime extended": ("onnxruntime", lambda: _onnxruntime("ORT_ENABLE_EXTENDED")),
    "run": ("onnxruntime", run),
}


def main():
    """Do the jobs."""
    tool, results = sys.argv[1:]
    package, make = TOOLS[tool]
    convert = make()
    with open(results, "a", encoding="utf-8") as lines:
        for job in json.load(sys.stdin):
            start, error = time.perf_counter(), None
            try:
                convert(**job)
            except (Exception, SystemExit) as raised:
                error = f"{type(raised).__name__}: {raised}"
            done = {
                "error": error,
                "seconds": time.perf_counter() - start,
                "version": version(package),
            }
            print(json.dumps(done), file=lines, flush=True)


if __name__ == "__main__":
    main()
