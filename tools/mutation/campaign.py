"""Changes judged one by one: is there a test that fails because of them?"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tools.mutation.changes import Change
from tools.mutation.lines import Lines, Test, copied, session

EQUIVALENTS = Path(__file__).with_name("equivalents.yaml")
NOTICED, ENDLESS, UNNOTICED, EQUIVALENT = "noticed", "timed out", "unnoticed", "equivalent"
AT_FIRST = 40  # tests of the module's own files, and such that notice much, before all others
BUCKETS = (0.03, 0.3, float("inf"))  # seconds: the tests of each run together, file by file
TO_BEGIN = 60.0  # seconds that a session has to begin
TO_PASS = 30.0  # seconds that a test has beyond twenty times what it takes

Result = dict[str, Any]


class Campaign:
    """Judges changes, and keeps what it finds in a file.

    Args:
        package: the folder of the package.
        lines: which tests execute what.
        budget: seconds of tests for one change, the fastest first; what takes longer is left out.
        kept: the file of results, one JSON object per line; results of earlier runs are used again
            where the module is as it was.
        again: judges anew what went unnoticed then.
    """

    def __init__(
        self, package: Path, lines: Lines, budget: float, kept: Path, again: bool = False
    ) -> None:
        self._package, self._lines, self._budget, self._kept = package, lines, budget, kept
        self._seconds = {test.name: test.seconds for test in lines.tests}
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, ...], Result] = {}
        for line in kept.read_text().splitlines() if kept.exists() else ():
            result = json.loads(line)
            self._known[_identity(result)] = result
        known = self._known.values()
        self._noticing = Counter(r["by"] for r in known if r["verdict"] == NOTICED)
        if again:
            judged = self._known.items()
            self._known = {k: r for k, r in judged if r["verdict"] != UNNOTICED}
        self._explained = explained()

    def require_passing(self) -> None:
        """Run one test of every file on the code as it is.

        Raises:
            SystemExit: one fails, or the session does: it would with every change.
        """
        fastest = sorted(self._lines.tests, key=lambda test: -test.seconds)
        tests = [test.name for test in {test.file: test for test in fastest}.values()]
        with copied(self._package) as folder:
            verdict, by = _verdict(folder, [tests], self._seconds)
        if verdict != UNNOTICED:
            raise SystemExit(f"the tests do not pass on the code as it is: {verdict} by {by}")

    def run(self, changes: Sequence[Change], workers: int) -> list[Result]:
        """Judge changes; return the results in their order."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self._judged, changes))

    def _judged(self, change: Change) -> Result:
        result: Result = {
            **{"module": change.module, "function": change.function, "line": change.line},
            **{"before": change.before, "after": change.after},
            "code": _digest(self._package / f"{change.module}.py"),
        }
        why = self._explained.get(change.key[1:])
        if why is not None:
            return result | {"verdict": EQUIVALENT, "by": why}
        known = self._known.get(_identity(result))
        if known is not None:
            return known
        begun = time.perf_counter()
        tests = self._lines.of(change)
        stages = stages_of(tests, change.module, self._budget, self._noticing)
        with copied(self._package, change) as folder:
            verdict, by = _verdict(folder, stages, self._seconds)
        result |= {"verdict": verdict, "by": by, "seconds": round(time.perf_counter() - begun, 2)}
        result |= {"tests": sum(map(len, stages)), "of": len(tests)}
        with self._lock:
            self._noticing[by] += verdict == NOTICED
            with self._kept.open("a") as file:
                file.write(json.dumps(result) + "\n")
            place = f"{change.module}:{change.line}"
            print(f"{result['seconds']:6.1f} s  {verdict:9}  {place}  {by}", file=sys.stderr)
        return result


def _identity(result: Result) -> tuple[Any, ...]:
    return tuple(result[k] for k in ("module", "function", "line", "before", "after", "code"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def explained() -> dict[tuple[str, str, str], str]:
    """Return (function, before, after) → why the change has no effect.

    The module is not part of the key, so that a function may move.
    """
    entries = yaml.safe_load(EQUIVALENTS.read_text()) or []
    return {(e["function"], e["before"], e["after"]): e["why"].strip() for e in entries}


def stages_of(
    tests: Iterable[Test], module: str, budget: float, noticing: Mapping[str, int]
) -> list[list[str]]:
    """Return which tests to run in which order, in groups.

    First the module's own and those that have noticed most until now, then by the time that they
    take; within a group file by file, so that what a file prepares is prepared once.

    Args:
        tests: those that execute the change.
        module: that it is in.
        budget: seconds, for the fastest; what takes longer is left out.
        noticing: test → how many changes it has noticed; this decides on the order alone.
    """
    fastest = sorted(tests, key=lambda test: test.seconds)
    own = [test for test in fastest if test.is_about(module)][:AT_FIRST]
    chosen, total = list[Test](), 0.0
    for test in dict.fromkeys([*own, *fastest]):
        if total + test.seconds <= budget or not chosen:
            chosen.append(test)
            total += test.seconds
    keen = sorted(chosen, key=lambda test: -noticing.get(test.name, 0))[:AT_FIRST]
    first = {*own, *(test for test in keen if test.name in noticing)}
    groups = [[t for t in chosen if t in first]]
    rest, low = [t for t in chosen if t not in first], 0.0
    for high in BUCKETS:
        groups.append([t for t in rest if low <= t.seconds < high])
        low = high
    return [
        [t.name for t in sorted(group, key=lambda t: (t.file, t.seconds))]
        for group in groups
        if group
    ]


def _verdict(
    folder: Path, stages: list[list[str]], seconds: Mapping[str, float]
) -> tuple[str, str]:
    """Run the tests, of known durations; return the verdict and which test it is due to."""
    if not stages:
        return UNNOTICED, "no test executes it"
    running = session(folder, "run")
    assert running.stdin is not None
    latest = "the session's start"
    try:
        json.dump(stages, running.stdin)
        running.stdin.close()
        for message in _messages(running, seconds):
            if "failed" in message:
                failed = message["failed"]
                return (NOTICED, failed) if failed else (UNNOTICED, "")
            latest = message["begins"]
        return NOTICED, f"the process ended in {latest}"
    except BrokenPipeError:
        return NOTICED, "the process did not start"
    except TimeoutError:
        return ENDLESS, latest
    finally:
        _end(running)


def _messages(
    running: subprocess.Popen[str], seconds: Mapping[str, float]
) -> Iterator[dict[str, str]]:
    """Yield what a session says.

    Raises:
        TimeoutError: it says nothing for too long.
    """
    assert running.stdout is not None
    rest, source, limit = b"", running.stdout.fileno(), TO_BEGIN
    while True:
        if not select.select([source], [], [], limit)[0]:
            raise TimeoutError
        read = os.read(source, 1 << 16)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        for message in map(json.loads, lines):
            limit = TO_PASS + 20 * seconds.get(message.get("begins"), 0)
            yield message


def _end(running: subprocess.Popen[str]) -> None:
    """End a session and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    if running.stdout is not None:
        running.stdout.close()


def report(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of a table per module and of the list of what went unnoticed."""
    yield "| module | changes | noticed | timed out | unnoticed | equivalent | share noticed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    modules = sorted({result["module"] for result in results})
    for module in [*modules, "all"]:
        counts = Counter(r["verdict"] for r in results if module in ("all", r["module"]))
        caught, missed = counts[NOTICED] + counts[ENDLESS], counts[UNNOTICED]
        share = f"{caught / (caught + missed):.0%}" if caught + missed else ""
        numbers = [counts[v] for v in (NOTICED, ENDLESS, UNNOTICED, EQUIVALENT)]
        yield f"| {module} | {counts.total()} | {' | '.join(map(str, numbers))} | {share} |"
    seconds = [result["seconds"] for result in results if "seconds" in result]
    if seconds:
        mean, median = statistics.mean(seconds), statistics.median(seconds)
        yield f"\n{mean:.1f} s per change, median {median:.1f} s"
    for result in results:
        if result["verdict"] == UNNOTICED:
            ran = f"{result['tests']} of {result['of']} tests"
            place = f"{result['module']}:{result['line']} {result['function']}"
            yield f"\n{place} ({result['by'] or ran})"
            pair = (result["before"].splitlines(), result["after"].splitlines())
            yield from (line for line in difflib.ndiff(*pair) if not line.startswith("?"))
