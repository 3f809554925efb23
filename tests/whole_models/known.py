"""The seeds of the share that fail today: empty it when what they show is mended."""

# A second fold finds that a body of an If reads a tensor no more, and folds a norm in front of it.
_NORM = {12, 323}
# What rounding a summand costs is judged by the digits that it happens to lose.
_AFFINE = {405, 423}

FAILS_TODAY = frozenset(_NORM | _AFFINE)
