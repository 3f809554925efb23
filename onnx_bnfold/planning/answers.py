"""Answers that may be refusals, each found once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from onnx_bnfold.reasons import Refusal, Refused

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Answers(Generic[K, V]):
    """Answers by what was asked for."""

    def __init__(self) -> None:
        self._found: dict[K, V | Refusal] = {}

    def copy(self) -> Answers[K, V]:
        """Return answers of their own that are these now."""
        new = Answers[K, V]()
        new._found = dict(self._found)
        return new

    def of(self, asked: K, find: Callable[[K], V]) -> V:
        """Return the answer, found if it is asked for the first time.

        Raises:
            Refused: it is a refusal.
        """
        found = self._found.get(asked)
        if found is None:
            try:
                found = find(asked)
            except Refused as refused:
                found = refused.refusal
            self._found[asked] = found
        if isinstance(found, Refusal):
            raise Refused.again(found)
        return found

    def forget(self, asked: K) -> None:
        """Find an answer anew the next time."""
        self._found.pop(asked, None)
