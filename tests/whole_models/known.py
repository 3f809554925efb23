"""The seeds of the share that fail today, and why."""

FAILS_TODAY: frozenset[int] = frozenset()
