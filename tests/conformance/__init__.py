"""Conformance: every rule, layer and BatchNormalization against the operator itself; see README."""
