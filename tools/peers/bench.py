"""Runs tools on models and has the results judged."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from tools.peers.batch import Outcome, run_jobs
from tools.peers.judge import Verdict, feeds_for, judge
from tools.peers.worker import TOOLS

OURS = "onnx_bnfold"
PEERS = tuple(tool for tool in TOOLS if tool not in (OURS, "run"))


@dataclass(frozen=True)
class Task:
    """A model on disk, and what is asked of it.

    Attributes:
        name: for the table.
        folder: holds the model, its inputs and outputs, and a tool's result.
        counted: operators whose removal counts.
        foldable: how many of them can be removed exactly.
    """

    name: str
    folder: Path
    counted: Sequence[str]
    foldable: int

    def file(self, name: str) -> str:
        """Return the path of one of the task's files."""
        return str(self.folder / name)

    def discard(self) -> None:
        """Delete the task's files."""
        shutil.rmtree(self.folder)


class Bench:
    """Runs tools on tasks.

    Args:
        folder: for temporary files.
        peer_python: the interpreter that has the peers; the package itself and onnxruntime, which
            judges, are those of this one.
        timeout: seconds per model.

    Attributes:
        versions: tool → version, of the tools that were run.
    """

    def __init__(self, folder: Path, peer_python: str, timeout: float) -> None:
        self._folder = folder
        self._peer_python = peer_python
        self._timeout = timeout
        self._number = 0
        self.versions: dict[str, str] = {}

    def task(self, name: str, model: ModelProto, counted: Sequence[str], foldable: int) -> Task:
        """Write a model and its inputs."""
        self._number += 1
        made = Task(name, self._folder / str(self._number), counted, foldable)
        made.folder.mkdir()
        onnx.save(model, made.file("model.onnx"))
        np.savez(made.file("feeds.npz"), **feeds_for(model))
        return made

    def verdicts(self, tool: str, tasks: Sequence[Task]) -> list[Verdict]:
        """Let a tool convert models, and judge the results.

        Raises:
            Unusable: the interpreter lacks the tool.
        """
        for task in tasks:
            for stale in ("folded.onnx", "actual.npz"):
                (task.folder / stale).unlink(missing_ok=True)
        conversions = run_jobs(
            sys.executable if tool == OURS else self._peer_python,
            tool,
            [{"source": t.file("model.onnx"), "target": t.file("folded.onnx")} for t in tasks],
            self._timeout,
        )
        self.versions[tool] = next((c.version for c in conversions if c.version), "")
        executions = self.execute(tasks, "folded.onnx", "actual.npz")
        return [
            judge(task.folder, task.counted, task.foldable, conversion, execution)
            for task, conversion, execution in zip(tasks, conversions, executions, strict=True)
        ]

    def execute(self, tasks: Sequence[Task], model: str, outputs: str) -> list[Outcome]:
        """Run one of each task's models and keep its outputs."""
        jobs = [
            {"source": t.file(model), "target": t.file(outputs), "feeds": t.file("feeds.npz")}
            for t in tasks
        ]
        return run_jobs(sys.executable, "run", jobs, self._timeout)
