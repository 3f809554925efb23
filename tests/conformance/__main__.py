"""``python -m tests.conformance``: a long campaign, or one case again."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time

from onnx_bnfold.operators.table import every_entry

from .campaign import Campaign, Progress
from .explained import EXPLAINED, LATER

COLUMNS = (
    *("cases", "skipped", "draws", "judged", "answered", "refused", "explained"),
    *("unsound", "incomplete", "crash", "misread"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run; return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000, help="questions to ask")
    parser.add_argument("--seed", type=int, default=0)
    names = [*every_entry()]
    parser.add_argument("--operator", action="append", choices=names, help="may be repeated")
    parser.add_argument("--case", help="OPERATOR:OPSET:SEED, as a finding names it")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    campaign, began = Campaign(), time.monotonic()
    if options.case:
        op, opset, seed = options.case.split(":")
        campaign.draw(op, int(opset), int(seed))
    else:
        progress = Progress(options.draws, sys.stderr.write)
        campaign.run(options.operator or names, options.draws, options.seed, progress)
    print(report(campaign))
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    return 1 if campaign.found else 0


def report(campaign: Campaign) -> str:
    """The counts per operator, and the smallest example of each finding."""
    lines = [f"{'operator':20}" + "".join(f"{name:>11}" for name in COLUMNS)]
    total = dict.fromkeys(COLUMNS, 0)
    for op, tally in sorted(campaign.tallies.items()):
        lines.append(f"{op:20}" + "".join(f"{tally.counts[name]:11,}" for name in COLUMNS))
        for name in COLUMNS:
            total[name] += tally.counts[name]
    lines.append(f"{'all':20}" + "".join(f"{total[name]:11,}" for name in COLUMNS))
    for (op, why), count in sorted(campaign.explained.items()):
        lines.append(f"explained, {op}, {count} times: {why}")
    used = {why for _, why in campaign.explained}
    for entry in (*EXPLAINED, *LATER):
        if entry.operator in campaign.tallies and entry.why not in used:
            lines.append(f"explained, but never met, {entry.operator}: {entry.why}")
    for (kind, topic), (count, smallest) in sorted(campaign.found.items()):
        lines += ["", f"{kind}: {topic} ({count} times); the smallest:", smallest.text()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
