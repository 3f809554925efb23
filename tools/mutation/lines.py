"""Which tests execute which lines of the package, and how long they take."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tools.mutation.changes import Change
from tools.mutation.session import PACKAGE, ROOT

Found = dict[str, Any]  # of one test file: see `session.Mapper`

LEFT_OUT = (ROOT / "tests" / "tools",)  # they are about what is no part of the package


class Test(NamedTuple):
    """A test that passes as things are."""

    name: str
    seconds: float

    @property
    def file(self) -> str:
        """The file that it is in, relative to the repository."""
        return self.name.partition("::")[0]

    def is_about(self, module: str) -> bool:
        """Whether it is in one of the module's own test files."""
        return Path(self.file).stem.startswith(tuple(f"test_{part}" for part in module.split("/")))


class Lines:
    """Which tests execute which lines.

    Attributes:
        tests: all tests that pass; the numbers of ``lines`` are indices of them.
        lines: module → line → numbers of tests.
        failing: tests that do not pass, or are skipped, as things are; no change is shown to them.
        processes: tests that start processes, in which nobody sees what they execute.
    """

    def __init__(self, package: Path, maps: Iterable[Found]) -> None:
        self.tests: list[Test] = []
        self.lines: dict[str, dict[int, set[int]]] = {}
        self.failing: list[str] = []
        self.processes: set[int] = set()
        for found in maps:
            self._add(found)
        self._referring = _references(package)

    def _add(self, found: Found) -> None:
        numbers: dict[int, int] = {}
        for index, test in enumerate(found["tests"]):
            if not test["passed"]:
                self.failing.append(test["test"])
                continue
            numbers[index] = len(self.tests)
            if test["processes"]:
                self.processes.add(len(self.tests))
            self.tests.append(Test(test["test"], test["seconds"]))
        for module, lines in found["lines"].items():
            known = self.lines.setdefault(module, {})
            for line, bits in lines.items():
                here = known.setdefault(int(line), set())
                here.update(numbers[i] for i in _ones(int(bits, 16)) if i in numbers)

    def of(self, change: Change) -> list[Test]:
        """Return the tests that execute a change.

        What only an import executes is met by the tests that execute a line with a name that it
        defines, and if there are none, by all tests of the module; those of the module's own files
        are asked in any case. Tests that start processes may execute anything: those of the
        module's own files are asked, too, and all of them where no test executes the change in its
        own process.
        """
        here = self.lines.get(change.module, {})
        found: set[int] = set().union(*(here.get(line, ()) for line in change.lines))
        for name in () if found else change.names:
            for module, line in self._referring.get(name, ()):
                found |= self.lines.get(module, {}).get(line, set())
        if not found and not change.lines:
            found = set().union(*here.values())
        # A test that reads a constant of its module executes no line of it.
        asked = self.processes if change.lines else range(len(self.tests))
        own = {i for i in asked if self.tests[i].is_about(change.module)}
        return [self.tests[i] for i in sorted(found | own if found else self.processes)]


def _ones(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _references(package: Path) -> dict[str, set[tuple[str, int]]]:
    """Return name → the places (module, line) of the package that read it."""
    found: dict[str, set[tuple[str, int]]] = {}
    for path in package.rglob("*.py"):
        module = path.relative_to(package).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                name = node.id if isinstance(node, ast.Name) else node.attr
                found.setdefault(name, set()).add((module, node.lineno))
    return found


@contextmanager
def copied(package: Path, change: Change | None = None) -> Iterator[Path]:
    """Give the repository with a copy of the package, changed or as it is; remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        shutil.copytree(package, folder / PACKAGE)
        for other in ROOT.glob("[!.]*"):
            if other.name != PACKAGE:
                (folder / other.name).symlink_to(other)
        if change is not None:
            path = folder / PACKAGE / f"{change.module}.py"
            path.write_text(change.source)
            for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                stale.unlink()
        yield folder


def session(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a session on the package that a folder holds."""
    environment = os.environ | {
        **{"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        **{"PYTHONDONTWRITEBYTECODE": "1"},
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tools.mutation.session", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_files() -> list[Path]:
    """Return the files whose tests are asked whether they notice."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in found if path.parent not in LEFT_OUT]


def lines_of(package: Path, files: Sequence[Path], folder: Path, workers: int) -> Lines:
    """Make the map, or read what is left of an earlier one that is still true.

    Raises:
        SystemExit: a session ends without an answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    helpers = [p for p in (ROOT / "tests").rglob("*.py") if not p.name.startswith("test_")]
    state = _digest(sorted([*package.rglob("*.py"), *helpers]))

    def mapped(path: Path) -> Found:
        name = path.relative_to(ROOT / "tests").with_suffix("").as_posix().replace("/", "-")
        kept, key = folder / f"{name}.json", f"{state} {_digest([path])}"
        if kept.exists():
            found: Found = json.loads(kept.read_text())
            if found["of"] == key:
                return found
        with copied(package) as copy:
            answer, _ = session(copy, "map", str(path)).communicate()
        if not answer:
            raise SystemExit(f"{path}: its tests end the process that runs them")
        found = json.loads(answer) | {"of": key}
        kept.write_text(json.dumps(found))
        seconds = sum(test["seconds"] for test in found["tests"])
        print(f"{name}: {len(found['tests'])} tests, {seconds:.1f} s", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(workers) as pool:
        return Lines(package, list(pool.map(mapped, files)))


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]
