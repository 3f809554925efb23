"""The seeds of the share that fail today: empty it when what they show is mended."""

# A second fold folds a norm more. A body of an If reads a tensor no more after the first fold (12);
# norms whose statistics contradict each other (95, 107); not explained (323: fp16 with
# keep_shared_weights).
FAILS_TODAY = frozenset({12, 95, 107, 323})
