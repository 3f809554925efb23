"""Generators of LSTM, GRU and RNN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .cases import Case, Draw, Operand, generator

# Activations, and how many parameters each has: alpha, beta. ThresholdedRelu jumps where rounding
# decides, and Softplus and Elu overflow on the way to a finite number.
BOUNDED = {"Sigmoid": 0, "Tanh": 0, "ScaledTanh": 2, "HardSigmoid": 2, "Softsign": 0}
UNBOUNDED = {"Relu": 0, "Affine": 2, "LeakyRelu": 1}  # whose products, in a cell, grow out of hand


def _recurrent(d: Draw, gates: int, functions: int, *, outputs: int, cells: bool) -> Case:
    direction = d.pick(None, "forward", "reverse", "bidirectional")
    directions = 2 if direction == "bidirectional" else 1
    steps, batch, channels, hidden = d.integers(1, 3, 4)
    layout = d.pick(None, None, None, None, 0, 0, 0, 1) if d.has("layout") else None
    weights = [
        d.constant([directions, gates * hidden, channels]),
        _kept(d, "R", [directions, gates * hidden, hidden]),
    ]
    bias = d.constant([directions, 2 * gates * hidden]) if d.chance(0.6) else Operand("")
    lengths = Operand("")
    if d.chance(0.3):
        lengths = Operand(
            "lengths", d.rng.integers(1, steps + 1, batch).astype(np.int32), changes=False
        )
    states = [Operand("")] * 2
    first = [batch, directions, hidden] if layout else [directions, batch, hidden]
    for slot in range(1 + cells):
        if d.chance(0.3):
            states[slot] = _kept(d, f"initial_{'hc'[slot]}", first)
    operands = [bias, lengths, *states[: 1 + cells]]
    if cells:
        peepholes = d.chance(0.3)
        operands.append(_kept(d, "P", [directions, 3 * hidden]) if peepholes else Operand(""))
    while operands and not operands[-1].name:
        operands.pop()
    activations = BOUNDED if gates > 1 else BOUNDED | UNBOUNDED
    names = [d.pick(*activations) for _ in range(functions * directions)]
    own = names if d.chance(0.3) else None
    counts = [activations[name] for name in own or ()]
    data = [batch, steps, channels] if layout else [steps, batch, channels]
    case = d.node(
        d.data(data),
        *weights,
        *operands,
        outputs=d.integer(1, outputs),
        hidden_size=None if d.chance(0.05) else hidden,
        direction=direction,
        layout=layout,
        clip=d.pick(None, None, 0.5, 3.0),
        activations=own,
        activation_alpha=[d.uniform(0.1, 1.0) for n in counts if n > 0] or None,
        activation_beta=[d.uniform(0.1, 1.0) for n in counts if n > 1] or None,
        linear_before_reset=d.pick(None, 0, 1),
        input_forget=d.pick(None, None, 0, 1),
    )
    given = [o.name for o in case.operands if o.name and not o.changes]
    return replace(case, run_time=frozenset(name for name in given if d.chance(0.5)))


def _kept(d: Draw, name: str, shape: list[int]) -> Operand:
    """A state or a weight that is not asked for changes."""
    return Operand(name, np.asarray(d.rng.standard_normal(shape), d.dtype), changes=False)


@generator("LSTM")
def lstm(d: Draw) -> Case:
    return _recurrent(d, 4, 3, outputs=3, cells=True)


@generator("GRU")
def gru(d: Draw) -> Case:
    return _recurrent(d, 3, 2, outputs=2, cells=False)


@generator("RNN")
def rnn(d: Draw) -> Case:
    return _recurrent(d, 1, 1, outputs=2, cells=False)
