"""Fixtures that every test may use."""

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _progress_as_at_first(monkeypatch):
    """A command sets for its process what is shown, and tests share theirs."""
    monkeypatch.setattr("onnx_bnfold.progress._mode", "bars")
