"""Say which tables of the documentation are older than the code that they measure.

    python -m tools.table_ages

Behind each table of ``docs/benchmarks.md`` stands in which commit its figures were recorded, and
what they measure. A table is old if a later commit changes that: it may hold all the same, but
nobody has looked since. It needs the history of git.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
_RECORDED = re.compile(r"Recorded in (?P<commits>.+?), of (?P<code>.+)\.")
_QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        line: of the page, from 1 on.
        section: the heading above it.
        commits: those in which its figures were recorded; none if that is not said.
        code: files and folders that it measures.
    """

    line: int
    section: str
    commits: tuple[str, ...]
    code: tuple[str, ...]


def tables_of(page: str) -> Iterator[Table]:
    """Yield the tables of a page, each with what the paragraph behind it says."""
    section, lines = "", page.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#"):
            section = line.lstrip("# ")
        if line.startswith("| ---"):
            behind = "\n".join(lines[number:]).partition("\n\n")[2].partition("\n\n")[0]
            said = _RECORDED.fullmatch(" ".join(behind.split()))
            commits, code = said.groups() if said else ("", "")
            yield Table(
                number + 1, section, (*_QUOTED.findall(commits),), (*_QUOTED.findall(code),)
            )


def later(table: Table, root: Path = ROOT) -> int:
    """Return how many commits have changed what a table measures since it was recorded."""
    counts = []
    for commit in table.commits:
        command = ["git", "rev-list", "--count", f"{commit}..HEAD", "--", *table.code]
        counts.append(int(subprocess.run(
            command, cwd=root, check=True, capture_output=True, text=True
        ).stdout))  # fmt: skip
    return max(counts)


def main() -> None:
    """Print a line for each table."""
    for table in tables_of(PAGE.read_text()):
        where = f"{PAGE.name}:{table.line} {table.section}"
        if not table.commits:
            print(f"{where}: does not say when it was recorded")
        elif count := later(table):
            changed = ", ".join(table.code)
            print(f"{where}: old, {count} later commits change {changed}")
        else:
            print(f"{where}: of the present code")


if __name__ == "__main__":
    main()
