"""Applying a plan to a copy of the model: new constants, nodes, names."""
