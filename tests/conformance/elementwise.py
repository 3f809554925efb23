"""Generators of the operators that work element by element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .cases import Case, Draw, Operand, generator


@generator("Abs", "Neg", "Reciprocal", "Relu", "Sign", "Sqrt")
def unary(d: Draw) -> Case:
    return d.node(d.data(d.shape()))


@generator("Pow")
def power(d: Draw) -> Case:
    shape = d.shape()
    exponent = d.pick(2, 2, 3, 1, -1, -2, 0.5, 1.5, 0)
    exponents = np.full(d.pick((), (1,), (1, 1), d.operand_shape(shape)), exponent)
    if exponents.size > 1 and d.chance(0.5):
        exponents = exponents + d.rng.integers(0, 2, exponents.shape)
    return d.node(d.data(shape), Y=exponents)


@generator("LeakyRelu")
def leaky_relu(d: Draw) -> Case:
    return d.node(d.data(d.shape()), alpha=d.pick(None, 0.1, 0.0, 1.0, -0.5, 2.0))


@generator("HardSigmoid")
def hard_sigmoid(d: Draw) -> Case:
    alpha, beta = d.pick(None, 0.2, 1 / 6, -0.5, 1.0, 0.0), d.pick(None, 0.5, 0.0, -1.0, 3.0)
    return d.node(d.data(d.shape()), alpha=alpha, beta=beta, magnitude=4.0)


@generator("PRelu")
def prelu(d: Draw) -> Case:
    shape = d.shape(d.pick(0, 1, 2))
    slopes = d.operand_shape(shape)
    slopes = [n if s == n else 1 for s, n in zip(slopes[::-1], shape[::-1], strict=False)][::-1]
    values = np.asarray(d.rng.standard_normal(slopes) * d.pick(1, 1, 1, 0), d.dtype)
    case = d.node(d.data(shape), Operand("slope", values))
    return replace(case, run_time=frozenset(("slope",) if d.chance(0.2) else ()))


@generator("Clip")
def clip(d: Draw) -> Case:
    low, high = d.pick(None, 0.0, 0.0, 0.0, -0.0, -1.0, 0.5), d.pick(None, None, 6.0, 1.0, 0.0)
    magnitude = 2.0
    if d.chance(0.15):  # a bound that only a wide type can reach
        low, high = 0.0, float(np.finfo(np.float32).max) * (10 if d.dtype == np.float64 else 1)
        high = d.pick(high, float(np.finfo(np.float32).max), np.inf)
        magnitude = 3e39 if d.dtype == np.float64 else 2.0
    if d.dtype == np.float16 and high is not None:
        high = d.pick(high if high < 6e4 else 65504.0, 65504.0)
    return d.node(d.data(d.shape()), min=low, max=high, magnitude=magnitude)


@generator("Add", "Sub", "Mul", "Div")
def binary(d: Draw) -> Case:
    shape = d.shape(0, 4)
    left, right = _operand(d, d.operand_shape(shape)), _operand(d, shape)
    if d.chance(0.5):
        left, right = right, left
    if d.chance(0.08):
        left = right = d.data(shape)
    if not left.is_data and not right.is_data:
        left = d.data(left.value.shape)
    return d.node(left, right)


@generator("Max", "Mean", "Min", "Sum")
def variadic(d: Draw) -> Case:
    shape = d.shape(0, 4)
    operands = [
        _operand(d, d.operand_shape(shape) if d.since >= 8 else shape)
        for _ in range(d.pick(0, 1, 1, 2, 2, 3))
    ]
    operands.insert(d.integer(0, len(operands)), d.data(shape))
    if d.chance(0.15):
        operands.append(operands[0])
    return d.node(*operands)


@generator("Where")
def where(d: Draw) -> Case:
    shape = d.shape(0, 4)
    condition = d.rng.random(d.operand_shape(shape)) < 0.5
    x, y = _operand(d, d.operand_shape(shape)), _operand(d, shape)
    if d.chance(0.5):
        x, y = y, x
    if d.chance(0.08):
        x = y
    if not x.is_data and not y.is_data:
        x = d.data(x.value.shape)
    return d.node(Operand("condition", condition, changes=False), x, y)


def _operand(d: Draw, shape: list[int]) -> Operand:
    return d.constant(shape) if d.chance(0.35) else d.data(shape)
