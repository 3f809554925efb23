"""Draws single changes to the code and says which of them no test notices.

    python -m tools.mutation --seed 1 --count 600 --workers 2         all that plans and writes
    python -m tools.mutation constants storage --seed 1 --count 40    some modules

What has been found is kept in --folder: a run that was interrupted goes on, and --again judges anew
what went unnoticed, after tests were written. tests/README.md tells the whole.
"""

from __future__ import annotations

import argparse
import compileall
from pathlib import Path

from tools.mutation.campaign import Campaign, report
from tools.mutation.changes import draw, modules_of
from tools.mutation.lines import lines_of, test_files
from tools.mutation.session import PACKAGE, ROOT


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="modules or folders, e.g. storage/writer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="changes, evenly over the modules")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for one change")
    parser.add_argument("--again", action="store_true", help="judge anew what went unnoticed")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation")
    args = parser.parse_args()
    package = ROOT / PACKAGE
    compileall.compile_dir(package, quiet=1)
    changes = draw(package, modules_of(package, args.modules), args.seed, args.count)
    lines = lines_of(package, test_files(), args.folder / "map", args.workers)
    campaign = Campaign(package, lines, args.seconds, args.folder / "results.jsonl", args.again)
    campaign.require_passing()
    results = campaign.run(changes, args.workers)
    if lines.failing:
        print(f"{len(lines.failing)} tests fail or are skipped on the code as it is:")
        print(*(f"  {name}" for name in lines.failing), sep="\n")
    print(*report(results), sep="\n")


if __name__ == "__main__":
    main()
