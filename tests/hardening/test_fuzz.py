"""The corpus and what fuzzing found, again; a short fuzz; and numbers under stress.

tools/fuzz.py runs as long as it is let; BNFOLD_FUZZ_SECONDS sets how long it does here.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
from tools import fuzz  # noqa: E402

CASES = sorted(fuzz.CORPUS.rglob("*.onnx"))


def executed(content: bytes, folder: Path) -> fuzz.Findings:
    findings = fuzz.Findings(folder / "findings")
    findings.execute(content)
    return findings


@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's
@pytest.mark.parametrize("path", CASES, ids=[p.stem for p in CASES])
def test_the_corpus(path, tmp_path):
    findings = executed(path.read_bytes(), tmp_path)
    assert not findings.seen


def test_the_seeds_are_folded(tmp_path):
    """Fuzzing that begins with models in which nothing is folded would reach little."""
    folded = [executed(content, tmp_path).folded for content in fuzz.corpus()]
    assert sum(folded) >= len(folded) - 6


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return fuzz.Findings(tmp_path_factory.mktemp("fuzz"))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(fuzz.corpus()), st.randoms(use_true_random=False))
def test_mutants_by_hypothesis(findings, content, choose):
    findings.seen.clear()
    findings.execute(fuzz.mutate(content, choose))
    assert not findings.seen


def test_a_short_fuzz(tmp_path):
    seconds = os.environ.get("BNFOLD_FUZZ_SECONDS", "10")
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / "fuzz.py", "structure"]
    done = subprocess.run(
        [*command, "--seconds", seconds, "--findings", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fuzzer_sees_an_exception(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("onnx_bnfold.fold_file", fail)
    assert executed(fuzz.corpus()[0], tmp_path).seen


def test_mutants_are_mostly_new(tmp_path):
    choose = random.Random(1)
    content = fuzz.corpus()[0]
    mutants = {fuzz.mutate(content, choose) for _ in range(200)}
    assert len(mutants - {content}) > 150
