"""The seed's figures beside ours, as a Markdown table."""

from collections.abc import Iterator, Sequence

from tools.mnist.reproduce import WITH_BN, WITHOUT_BN, Results

Row = tuple[str, str, str]

HEAD = ("step", "seed", "here")
SEED_ACCURACIES = {
    "with BN": 0.9902,
    "untrained without BN": 0.1362,
    "weights copied": 0.6854,
    "after the trick": 0.9902,
}
SEED_LATENCIES = (48.1, 38.2)  # ms per 1,000 images, with and without BN
# The seed's name and shape of each parameter, by the exporter's name of ours.
SEED_PARAMETERS = {
    "conv1.weight": ("W_c1", (5, 5, 1, 20)),
    "conv1.bias": ("b_c1", (20,)),
    "bn.weight": ("γ", (20,)),
    "bn.bias": ("β", (20,)),
    "bn.running_mean": ("moving mean", (20,)),
    "bn.running_var": ("moving variance", (20,)),
    "fc1.weight": ("W_fc1", (15680, 1000)),
    "fc1.bias": ("b_fc1", (1000,)),
    "bn_1.weight": ("γ_1", (1000,)),
    "bn_1.bias": ("β_1", (1000,)),
    "bn_1.running_mean": ("moving mean_1", (1000,)),
    "bn_1.running_var": ("moving variance_1", (1000,)),
    "fc2.weight": ("W_fc2", (1000, 10)),
    "fc2.bias": ("b_fc2", (10,)),
}


def render(results: Results) -> str:
    """Return the table, columns aligned."""
    rows = [HEAD, *_steps(results), *_parameters(results), *_proof(results), *_speed(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|".join(["", *("-" * (width + 2) for width in widths), ""]))
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"


def _steps(results: Results) -> Iterator[Row]:
    training, schedule = results.training, results.schedule
    phases = ", then ".join(f"{epochs:g} at lr {rate:g}" for epochs, rate in schedule.phases)
    operators = results.operators["with BN"]
    parts = " / ".join(f"{results.parts[part]:.2%}" for part in ("train", "validation", "test"))
    yield (
        "data: train / validation / test",
        "55,000 / 5,000 / 10,000",
        " / ".join(f"{results.sizes[part]:,}" for part in ("train", "validation", "test")),
    )
    yield (
        "preprocessing",
        "mean subtraction",
        f"in the graph: {', '.join(operators[: operators.index('Sub') + 1])}",
    )
    yield (
        "CNN with BN",
        "Conv1, BN, ReLU, FC1, BN_1, ReLU, FC2",
        ", ".join(operators[operators.index("Conv") :]),
    )
    yield "training, epochs", "5 at lr 0.01, then 5 at lr 0.002", phases
    yield "training, steps", "4,290", f"{training.steps:,} in {training.seconds:.0f} s"
    yield (
        "save / restore",
        "tinyCNN, NoBN_tinyCNN",
        f"{WITH_BN}, {WITHOUT_BN}; restored weights {'equal' if results.restored else 'differ'}",
    )
    yield "benchmark: train / validation / test", "test 99.02%", parts
    yield (
        "predict one image",
        "a class",
        f"test image 0: {results.predicted} (label {results.label})",
    )


def _parameters(results: Results) -> Iterator[Row]:
    for name, shape in results.parameters.items():
        theirs, their_shape = SEED_PARAMETERS[name]
        yield f"parameter {theirs}", _shape(their_shape), f"{_shape(shape)} {name}"


def _proof(results: Results) -> Iterator[Row]:
    steps = {
        "with BN": "CNN with BN",
        "untrained without BN": "CNN without BN, untrained",
        "weights copied": "CNN without BN, weights copied",
        "after the trick": "CNN without BN, after the trick",
    }
    for name, step in steps.items():
        theirs, ours = SEED_ACCURACIES[name], results.accuracies[name]
        yield f"accuracy, {step}", f"{theirs:.2%}", f"{ours:.2%}"
    comparison = results.comparison
    yield "W', b' against the formula in float64", "-", f"{results.deviation:.1e} of the largest"
    yield "equal predictions", "-", f"{comparison.agreeing:,} of {results.sizes['test']:,}"
    yield "largest logit difference, absolute", "-", f"{comparison.max_absolute:.1e}"
    yield "largest logit difference, relative", "-", f"{comparison.max_relative:.1e}"
    if results.check.numerics is not None:
        worst = max(output.times_noise for output in results.check.numerics.outputs)
        yield "the same in units of the rounding noise", "-", f"{worst:.1f}"


def _speed(results: Results) -> Iterator[Row]:
    before, after = SEED_LATENCIES
    theirs = f"{before} ms, {after} ms, old/new {before / after:.2f}"
    for mode in results.latency.modes:
        first, second = mode.original.median_ms, mode.folded.median_ms
        ours = f"{first:.1f} ms, {second:.1f} ms, old/new {first / second:.3f}"
        yield f"ms per {results.latency.batch:,} images, optimisations {mode.mode}", theirs, ours


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
