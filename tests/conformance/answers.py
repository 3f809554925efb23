"""Generators of the operators whose answer a change leaves as it is."""

from __future__ import annotations

from .cases import Case, Draw, generator

# Beside numbers of this size no shift that is drawn makes elements equal that were not.
LARGE = 1e3


@generator("ArgMax", "ArgMin")
def argument(d: Draw) -> Case:
    shape = d.shape(1, 5)
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    return d.node(
        d.data(shape),
        axis=d.pick(None, axis, axis),
        keepdims=d.pick(None, 0, 1),
        select_last_index=d.pick(None, 0, 1),
        magnitude=LARGE,
    )


@generator("Hardmax", "LogSoftmax", "Softmax")
def softmax(d: Draw) -> Case:
    shape = d.shape(1, 5)
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    magnitude = LARGE if d.op == "Hardmax" else 1.0
    return d.node(d.data(shape), axis=d.pick(None, axis, axis), magnitude=magnitude)


@generator("TopK")
def topk(d: Draw) -> Case:
    shape = d.shape(1, 4)
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    last = axis % len(shape) == len(shape) - 1
    k = d.integer(min(1, shape[axis]), shape[axis])
    return d.node(
        d.data(shape),
        outputs=d.pick(1, 2, 2),
        k=k,
        K=[k],
        axis=d.pick(None, axis) if last else axis,
        largest=d.pick(None, 0, 1),
        sorted=d.pick(None, 1, 1, 0),
        magnitude=LARGE,
    )
