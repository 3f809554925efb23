"""The proof as one picture: accuracies on the left, latencies on the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools.mnist.files import replacing
from tools.mnist.reproduce import Results
from tools.mnist.table import SEED_ACCURACIES, SEED_LATENCIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED_COLOUR, OUR_COLOUR, FOLDED_COLOUR = "#b8bec6", "#2f6db5", "#e08a1e"
BAR = 0.38  # of the distance between two groups


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG; both axes start at zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _accuracies(left, results)
    _latencies(right, results)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False
        )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", pil_kwargs={"optimize": True})


def _accuracies(axes: Axes, results: Results) -> None:
    names = ["with BN", "untrained\nwithout BN", "weights copied\nwithout BN", "after\nthe trick"]
    columns = (
        (-BAR / 2, "seed", SEED_COLOUR, SEED_ACCURACIES),
        (BAR / 2, f"here ({results.training.schedule} training)", OUR_COLOUR, results.accuracies),
    )
    for shift, label, colour, values in columns:
        heights = [100 * values[name] for name in SEED_ACCURACIES]
        bars = axes.bar([i + shift for i in range(4)], heights, BAR, label=label, color=colour)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set_xticks(range(4), names, fontsize=9)
    axes.set_ylabel("accuracy, %")
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(f"accuracy on {results.sizes['test']:,} test images", fontsize=10)


def _latencies(axes: Axes, results: Results) -> None:
    modes = results.latency.modes
    columns = (
        (-BAR / 2, "with BN", OUR_COLOUR, [mode.original for mode in modes]),
        (BAR / 2, "folded", FOLDED_COLOUR, [mode.folded for mode in modes]),
    )
    for shift, label, colour, timings in columns:
        middles = [timing.median_ms for timing in timings]
        spread = [
            [timing.median_ms - timing.low_ms for timing in timings],
            [timing.high_ms - timing.median_ms for timing in timings],
        ]
        places = [i + shift for i in range(len(modes))]
        bars = axes.bar(places, middles, BAR, label=label, color=colour, yerr=spread, capsize=3)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, label_type="center", color="white")
    names = [
        f"optimisations {mode.mode}\nold/new {mode.original.median_ms / mode.folded.median_ms:.3f}"
        for mode in modes
    ]
    axes.set_xticks(range(len(modes)), names, fontsize=9)
    axes.set_ylabel(f"ms per {results.latency.batch:,} images")
    before, after = SEED_LATENCIES
    axes.set_title(
        f"latency: median, 10th to 90th percentile\n"
        f"(seed: {before} ms and {after} ms, old/new {before / after:.2f})",
        fontsize=10,
    )
