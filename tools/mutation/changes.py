"""Single changes to source files, drawn from a seed and made in the text."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.places import Proposal, places_of

# Modules that plan no fold and write no model, by any part of their path.
LEFT_OUT = frozenset(
    {"check", "reports", "batch", "store", "cli", "version", "__init__", "__main__"}
)


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        module: the file, relative to the package and without its suffix.
        function: the qualified name of the function or class around it; empty outside of any.
        line: where it begins, from 1.
        before, after: the lines that it changes, without what is around them.
        source: the whole changed file.
        lines: the lines that execute what is changed.
        names: where those are only executed by an import, the names that what is changed defines.
    """

    module: str
    function: str
    line: int
    before: str
    after: str
    source: str
    lines: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names a change in a file of explained equivalents, whatever line it is on."""
        return self.module, self.function, self.before, self.after


def modules_of(package: Path, wanted: Sequence[str] = ()) -> list[str]:
    """Return the modules to change: those wanted, by name or folder; otherwise all not left out.

    Raises:
        SystemExit: there is no such module.
    """
    found = [p.relative_to(package).with_suffix("") for p in sorted(package.rglob("*.py"))]
    if not wanted:
        return [m.as_posix() for m in found if not LEFT_OUT & set(m.parts)]
    for name in wanted:
        if not any(Path(name) in (m, *m.parents) for m in found):
            raise SystemExit(f"{package} has no module {name}; they are named like storage/writer")
    return [m.as_posix() for m in found if any(Path(w) in (m, *m.parents) for w in wanted)]


def draw(package: Path, modules: Sequence[str], seed: int, count: int) -> list[Change]:
    """Draw changes, as many in every module; the first ones are the same whatever the count."""
    drawn: list[Change] = []
    left = {module: _shuffled(package, module, seed) for module in modules}
    while len(drawn) < count and left:
        for module, changes in list(left.items()):
            change = next(changes, None)
            if change is None:
                del left[module]
            elif len(drawn) < count:
                drawn.append(change)
    return drawn


def _shuffled(package: Path, module: str, seed: int) -> Iterator[Change]:
    text = (package / f"{module}.py").read_text()
    places = places_of(text)
    rng = random.Random(f"{seed} {module}")
    rng.shuffle(places)
    for proposals in places:
        change = made(module, text, rng.choice(proposals))
        if change is not None:
            yield change


def made(module: str, text: str, proposal: Proposal) -> Change | None:
    """Make a change; return None if what comes out is no Python."""
    changed = text.encode()
    for (first, last), new in reversed(proposal.edits):
        changed = changed[:first] + new.encode() + changed[last:]
    try:
        ast.parse(changed)
    except SyntaxError:
        return None
    source = changed.decode()
    top, before, after = _differing(text.splitlines(), source.splitlines())
    return Change(
        module, proposal.function, top + 1, before, after, source, proposal.lines, proposal.names
    )


def _differing(old: list[str], new: list[str]) -> tuple[int, str, str]:
    """Return how many lines two texts begin with alike, and the lines in which they differ."""
    shorter = min(len(old), len(new))
    top = next(i for i in range(shorter) if old[i] != new[i])
    same = 0
    while same < shorter - top and old[-1 - same] == new[-1 - same]:
        same += 1
    before, after = ("\n".join(s.strip() for s in x[top : len(x) - same]) for x in (old, new))
    return top, before, after
