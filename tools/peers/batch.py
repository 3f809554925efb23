"""Runs the jobs of a tool in processes of their own, so that its crashes and hangs count."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
Job = dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        error: why it failed, or None.
        seconds: how long it took, without the start of the process.
        version: of the tool's package; empty if the process died.
    """

    error: str | None
    seconds: float
    version: str = ""


class Unusable(Exception):
    """The tool cannot even be imported."""


def run_jobs(python: str, tool: str, jobs: Sequence[Job], timeout: float) -> list[Outcome]:
    """Do jobs in a process; where it dies or hangs, go on behind that job in another one.

    Args:
        python: the interpreter that has the tool.
        tool: key of ``worker.TOOLS``.
        jobs: the arguments of the tool, one set per job.
        timeout: seconds for each job; the first of a process has its start in them.

    Returns:
        One outcome per job.

    Raises:
        Unusable: the interpreter lacks the tool.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        done, end = _process(python, tool, jobs[len(outcomes) :], timeout)
        outcomes += done
        if len(outcomes) < len(jobs):
            outcomes.append(Outcome(end, timeout))
    return outcomes


def _process(
    python: str, tool: str, jobs: Sequence[Job], timeout: float
) -> tuple[list[Outcome], str]:
    """Start one process; return the outcomes it reports, and how it ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jobs").write_text(json.dumps(list(jobs)), encoding="utf-8")
        (folder / "results").touch()
        with (
            (folder / "jobs").open() as stdin,
            (folder / "stderr").open("w") as stderr,
            subprocess.Popen(
                [python, str(WORKER), tool, str(folder / "results")],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=folder,
            ) as process,
        ):
            hung = _watch(process, folder / "results", timeout)
        errors = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        lines = (folder / "results").read_text(encoding="utf-8").splitlines()
    if process.returncode > 0:
        raise Unusable(f"{tool}: {errors.strip().splitlines()[-1]}")
    died = signal.Signals(-process.returncode).name if process.returncode else ""
    end = f"more than {timeout:.0f} s" if hung else died
    return [Outcome(**json.loads(line)) for line in lines], end


def _watch(process: subprocess.Popen[bytes], results: Path, timeout: float) -> bool:
    """Wait for a process; kill it when no job gets done in time, and return whether it was so."""
    while True:
        size = results.stat().st_size
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            if results.stat().st_size == size:
                process.kill()
                return True
        else:
            return False
