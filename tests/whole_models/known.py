"""The seeds of the share that fail today: empty it when what they show is mended."""

# A second fold folds a norm more.
_NORM = {12, 95, 107, 323}

FAILS_TODAY = frozenset(_NORM)
