"""The allocator's settings are a matter of speed: whatever is missing, nothing happens."""

import ctypes
import gc

import pytest

from onnx_bnfold.memory import collect_rarely, keep_freed_memory


class WithoutMallopt:
    def __init__(self, name: object) -> None:
        self.name = name


@pytest.mark.parametrize("error", [None, OSError, TypeError])
def test_a_system_without_mallopt(error, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail if error else WithoutMallopt)
    keep_freed_memory()


def test_both_thresholds_are_set(monkeypatch):
    calls = []

    class Library:
        def __init__(self, name: object) -> None:
            self.mallopt = lambda option, value: calls.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    keep_freed_memory()
    assert calls == [(-3, 1 << 25), (-1, 1 << 28)]


def test_garbage_in_cycles_is_collected_all_the_same():
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        collect_rarely()
        assert gc.isenabled()
        assert gc.get_threshold()[0] > 700
    finally:
        gc.set_threshold(*before)
