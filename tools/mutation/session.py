"""One pytest session in a process of its own, told by pipe what to do.

    python -m tools.mutation.session map TEST_FILE      which lines does each of its tests execute?
    python -m tools.mutation.session run                does one of the tests on stdin fail?

The package under test is the one that the working directory holds.
"""

from __future__ import annotations

import json
import os
import pkgutil
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import pytest

PACKAGE = "onnx_bnfold"
ROOT = Path(__file__).resolve().parents[2]
MEMORY = 12 << 30  # of address space: a change may ask for all there is
QUIET = [
    *("-q", "-x", "-m", "not slow and not browser", "--rootdir", str(ROOT), "--no-header"),
    *("-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "no:xdist"),
]
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")


class Mapper:
    """Notes for every test how long it takes, whether it starts processes, and what it executes."""

    def __init__(self) -> None:
        import coverage

        os.environ["COVERAGE_CORE"] = "ctrace"  # of the three, the one that knows contexts
        self._coverage = coverage.Coverage(
            data_file=None, source=[str(Path.cwd() / PACKAGE)], config_file=False, messages=False
        )
        self.tests: list[dict[str, Any]] = []
        self._starts = False
        sys.addaudithook(self._audit)
        self._coverage.start()
        package = import_module(PACKAGE)
        for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
            if not module.name.endswith("__main__"):
                with suppress(ImportError):  # of a module for a package that is not installed
                    import_module(module.name)

    def _audit(self, event: str, _: object) -> None:
        self._starts = self._starts or event in STARTS

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Give each test a context of its own."""
        self._coverage.switch_context(item.nodeid)
        self._starts, begun = False, time.perf_counter()
        self.tests.append({"test": item.nodeid, "passed": True})
        yield
        taken = time.perf_counter() - begun
        self.tests[-1] |= {"seconds": round(taken, 4), "processes": self._starts}
        self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note which tests do not pass as things are."""
        if report.outcome != "passed":
            self.tests[-1]["passed"] = False

    def lines(self) -> dict[str, dict[int, str]]:
        """Return module → line → the tests that execute it, as bits of a hexadecimal number."""
        self._coverage.stop()
        data, package = self._coverage.get_data(), Path.cwd().resolve() / PACKAGE
        numbers = {test["test"]: index for index, test in enumerate(self.tests)}
        found: dict[str, dict[int, str]] = {}
        for file in data.measured_files():
            module = Path(file).resolve().relative_to(package).with_suffix("").as_posix()
            found[module] = {
                line: f"{sum(1 << numbers[c] for c in contexts if c):x}"
                for line, contexts in data.contexts_by_lineno(file).items()
                if any(contexts)
            }
        return found


class Runner:
    """Runs chosen tests in a given order, and says before each which it is."""

    def __init__(self, tests: list[str], out: TextIO) -> None:
        self._order = {test: index for index, test in enumerate(tests)}
        self._out = out
        self.failed = ""

    def say(self, **what: object) -> None:
        """Write a line for the process that waits."""
        print(json.dumps(what), file=self._out, flush=True)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Select and order the tests."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order),
            key=lambda item: self._order[item.nodeid],
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say which test begins."""
        self.say(begins=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what fails."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what cannot even be collected."""
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _without_shrinking() -> None:
    """Have hypothesis draw the same examples every time and not look for smaller ones."""
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("once", derandomize=True, database=None, phases=phases, deadline=None)
    settings.load_profile("once")


def _map(file: str) -> dict[str, object]:
    mapper = Mapper()
    begun = time.perf_counter()
    pytest.main([a for a in QUIET if a != "-x"] + [file], plugins=[mapper])
    seconds = time.perf_counter() - begun - sum(test["seconds"] for test in mapper.tests)
    return {"tests": mapper.tests, "collecting": round(seconds, 3), "lines": mapper.lines()}


def _run(stages: list[list[str]], out: TextIO) -> str:
    for tests in stages:
        runner = Runner(tests, out)
        files = dict.fromkeys(str(ROOT / test.partition("::")[0]) for test in tests)
        code = pytest.main([*QUIET, *files], plugins=[runner])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return runner.failed or f"pytest ends with {code!r}"
    return ""


def main() -> None:
    """Do what the command line says; stdout is for the process that waits, whatever tests print."""
    out = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _without_shrinking()
    # A campaign that was started in the background is deaf to interrupts; some tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1] == "map":
        print(json.dumps(_map(sys.argv[2])), file=out, flush=True)
    else:
        print(json.dumps({"failed": _run(json.load(sys.stdin), out)}), file=out, flush=True)
    os._exit(0)  # whatever threads a change has left behind


if __name__ == "__main__":
    main()
