"""The record of a check as plain text: aligned columns, without colour or cursor movement."""

from collections.abc import Iterator, Sequence

from onnx_bnfold.check.results import (
    Accuracy,
    CheckResult,
    Difference,
    Latency,
    LatencyMode,
    Numerics,
    Quantized,
)


def render_text(result: CheckResult) -> str:
    """Return the record as lines of text; the last line says whether the check holds."""
    lines = [f"original  {result.original}", f"folded    {result.folded}"]
    if result.numerics is not None:
        lines += _numerics(result.numerics)
    if result.accuracy is not None:
        lines += _accuracy(result.accuracy)
    if result.latency is not None:
        lines += _latency(result.latency)
    if result.quantized is not None:
        lines += _quantized(result.quantized)
    lines += ["", *(f"FAILED  {failure}" for failure in result.failures)]
    if result.holds:
        lines.append("OK  all gates hold")
    return "\n".join(lines) + "\n"


def _numerics(numerics: Numerics) -> Iterator[str]:
    fed = ", ".join(f"{i.name} {i.dtype} {list(i.shape)}" for i in numerics.inputs)
    source = numerics.inputs[0].source if numerics.inputs else "none"
    yield ""
    yield f"numerics  inputs: {fed or 'none'}"
    origin = f"random, seed {numerics.seed}" if source == "random" else source
    yield (
        f"          {numerics.sets} input set(s), {origin}; {numerics.evaluator}, "
        "optimisations disabled"
    )
    if numerics.rtol is None and numerics.atol is None:
        yield (
            f"          limit: {numerics.factor:g} times the original's own rounding noise, "
            f"from {numerics.draws} evaluations with other rounding"
        )
    else:
        yield f"          limit: atol {numerics.atol or 0:g} + rtol {numerics.rtol or 0:g}"
    header = ("output", "max error", "of peak", "SNR dB", "times noise", "top-1 same", "")
    yield from _table([header, *(_row(output) for output in numerics.outputs)])
    if numerics.first_difference is not None:
        first = numerics.first_difference
        node = f" node {first.node!r}" if first.node else ""
        yield f"  first tensor that differs: {first.tensor!r}, from {first.op_type}{node}:"
        yield f"    {first.difference.reason}"
    yield (
        f"  {numerics.seconds:.2f} s, of which {numerics.evaluator} "
        f"{numerics.onnxruntime_seconds:.2f} s"
    )
    for note in numerics.notes:
        yield f"  note: {note}"


def _row(output: Difference) -> tuple[str, ...]:
    verdict = "ok" if output.holds else "FAILED"
    if output.holds and output.reason:
        verdict = "not compared"
    if "float" not in output.dtype:
        equal = f"{output.mismatched} differ"
        return (output.name, equal, "", "", "", "", verdict)
    return (
        output.name,
        f"{output.max_abs:.3g}",
        "-" if output.relative_to_peak is None else f"{output.relative_to_peak:.2g}",
        "exact" if output.snr_db is None else f"{output.snr_db:.1f}",
        f"{output.times_noise:.3g}",
        "" if output.top1_agreement is None else f"{output.top1_agreement:.2%}",
        verdict,
    )


def _accuracy(accuracy: Accuracy) -> Iterator[str]:
    yield ""
    yield f"accuracy  {accuracy.examples} examples of {accuracy.data}, output {accuracy.output!r}"
    rows = [
        ("", "original", "folded"),
        ("top-1", f"{accuracy.top1_original:.4%}", f"{accuracy.top1_folded:.4%}"),
    ]
    if accuracy.top5_original is not None and accuracy.top5_folded is not None:
        rows.append(("top-5", f"{accuracy.top5_original:.4%}", f"{accuracy.top5_folded:.4%}"))
    yield from _table(rows)
    yield (
        f"  predictions changed: {accuracy.changed} (now right {accuracy.became_right}, "
        f"now wrong {accuracy.became_wrong}); agreement {accuracy.agreement:.6f}"
    )


def _latency(latency: Latency) -> Iterator[str]:
    threads = f"{latency.threads} thread(s)" if latency.threads else "onnxruntime's threads"
    yield ""
    yield (
        f"latency   batch {latency.batch}, {threads}, {latency.runs} interleaved pairs of runs "
        f"after {latency.warm_up} to warm up"
    )
    header = ("optimisations", "original ms", "folded ms", "speed-up", "95 % interval")
    yield from _table([header, *(_speed(mode) for mode in latency.modes)])
    costs = ("optimisations", "session ms", "folded", "peak MB", "folded", "model MB", "folded")
    yield from _table([costs, *(_costs(mode) for mode in latency.modes)])
    yield f"  {latency.remark}"


def _speed(mode: LatencyMode) -> tuple[str, ...]:
    return (
        mode.mode,
        f"{mode.original.median_ms:.3f}",
        f"{mode.folded.median_ms:.3f}",
        f"{mode.speedup:.3f}",
        f"[{mode.speedup_low:.3f}, {mode.speedup_high:.3f}]",
    )


def _costs(mode: LatencyMode) -> tuple[str, ...]:
    def megabytes(size: int | None) -> str:
        return "-" if size is None else f"{size / 1e6:.1f}"

    both = (mode.original, mode.folded)
    return (
        mode.mode,
        *(f"{timing.session_ms:.1f}" for timing in both),
        *(megabytes(timing.peak_memory) for timing in both),
        *(megabytes(timing.model_memory) for timing in both),
    )


def _quantized(quantized: Quantized) -> Iterator[str]:
    yield ""
    yield (
        f"int8      calibrated on {quantized.calibration_sets}, compared on {quantized.sets} "
        f"{quantized.source} input set(s) with the original in float"
    )
    header = ("output", "SNR dB: original", "folded", "top-1 same: original", "folded")
    rows = [
        (
            output.name,
            *(f"{snr:.2f}" for snr in (output.snr_original_db, output.snr_folded_db)),
            *("" if t is None else f"{t:.2%}" for t in (output.top1_original, output.top1_folded)),
        )
        for output in quantized.outputs
    ]
    yield from _table([header, *rows])
    header = ("optimisations", "original ms", "folded ms", "speed-up", "95 % interval")
    yield from _table([header, _speed(quantized.latency)])


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows in columns: the first aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join([first, *others]).rstrip()
