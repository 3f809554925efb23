"""Inputs for the numerics: seeded random ones, or the user's .npz or .npy."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import InputUsed
from onnx_bnfold.check.sessions import Array, Feed, InputSpec, is_float
from onnx_bnfold.errors import UsageError

# Sizes of dynamic axes. A batch of two shows if examples are mixed up, and 64 pixels suffice for
# the five halvings of a usual image network.
_BATCH, _SPATIAL, _OTHER = 2, 64, 8
_MAGIC = (b"PK", b"\x93NUMPY")  # first bytes of an .npz and of an .npy


def make_feeds(
    specs: Sequence[InputSpec], options: CheckOptions, *, batch: int = _BATCH
) -> list[Feed]:
    """Return the input sets of a check.

    Args:
        specs: the model's inputs.
        options: ``inputs``, or else ``shapes``, ``value_range``, ``seed`` and ``sets``.
        batch: size of a dynamic first axis that ``shapes`` does not set.

    Returns:
        One feed per set; a file is one set.

    Raises:
        UsageError: the file does not fit the inputs, or a random value cannot be made.
    """
    if options.inputs is not None:
        return [read_feed(Path(options.inputs), specs)]
    shapes = resolve_shapes(specs, options.shapes, batch=batch)
    generators = [np.random.default_rng([options.seed, i]) for i in range(options.sets)]
    return [
        {spec.name: _random(spec, shapes[spec.name], rng, options.value_range) for spec in specs}
        for rng in generators
    ]


def resolve_shapes(
    specs: Sequence[InputSpec], given: Mapping[str, tuple[int, ...]], *, batch: int = _BATCH
) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every input; axes with the same symbol get the same size.

    Args:
        specs: the model's inputs.
        given: name of an input → shape, or symbol → tuple of one size.
        batch: size of a dynamic first axis that ``given`` does not set.

    Raises:
        UsageError: a name in ``given`` is unknown, or its shape does not fit the input.
    """
    symbols = {d for spec in specs for d in spec.shape if isinstance(d, str)}
    names = {spec.name for spec in specs}
    sizes = {name: shape[0] for name, shape in given.items() if name in symbols - names}
    for name, shape in given.items():
        if name not in names | symbols:
            known = ", ".join(sorted(names | symbols))
            raise UsageError(f"there is no input or dimension {name!r}; the model has {known}")
        if name not in names and len(shape) != 1:
            raise UsageError(f"dimension {name!r} takes one size, not {list(shape)}")
    for spec in specs:
        if spec.name in given:
            sizes |= _symbol_sizes(spec, given[spec.name])
    return {spec.name: given.get(spec.name) or _default_shape(spec, sizes, batch) for spec in specs}


def read_feed(path: Path, specs: Sequence[InputSpec]) -> Feed:
    """Read one input set from an .npz with arrays named like the inputs, or from an .npy.

    Raises:
        UsageError: the file cannot be read, or an array is missing or does not fit.
    """
    try:
        with path.open("rb") as file:
            if not file.read(6).startswith(_MAGIC):  # numpy would advise to trust it
                raise ValueError("it is neither .npz nor .npy; write it with numpy.savez")
        loaded = np.load(path, allow_pickle=False)
        arrays = {specs[0].name: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"cannot read inputs from {path}: {why}") from error
    if isinstance(loaded, np.ndarray) and len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(f"{path} holds one array but the model has inputs {names}; use an .npz")
    if missing := [spec.name for spec in specs if spec.name not in arrays]:
        raise UsageError(f"{path} has no array {missing[0]!r}; it has {', '.join(arrays)}")
    return {spec.name: convert(arrays[spec.name], spec, path) for spec in specs}


def convert(array: Array, spec: InputSpec, origin: str | os.PathLike[str]) -> Array:
    """Return an array in the element type of an input of the same kind (float64 to float32, ...).

    Args:
        array: the array.
        spec: the input.
        origin: of the array, for messages.

    Raises:
        UsageError: the array is of another kind, or its shape does not fit.
    """
    if spec.type == "tensor(string)":
        return array.astype(object)
    if not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
        raise UsageError(
            f"{os.fspath(origin)}: array {spec.name!r} is {array.dtype}, the input {spec.dtype}"
        )
    if spec.shape and not _fits(array.shape, spec):
        raise UsageError(
            f"{os.fspath(origin)}: array {spec.name!r} has shape {list(array.shape)}, "
            f"the input {written(spec)}"
        )
    return np.ascontiguousarray(array, dtype=spec.dtype)


def describe(feed: Feed, options: CheckOptions) -> tuple[InputUsed, ...]:
    """Return the record of a feed made from the options."""
    source = "random" if options.inputs is None else os.fspath(options.inputs)
    return tuple(
        InputUsed(name, str(array.dtype), array.shape, source) for name, array in feed.items()
    )


def _symbol_sizes(spec: InputSpec, shape: tuple[int, ...]) -> dict[str, int]:
    if spec.shape and not _fits(shape, spec):
        raise UsageError(f"shape {list(shape)} does not fit input {spec.name!r}: {written(spec)}")
    return {dim: size for dim, size in zip(spec.shape, shape, strict=False) if isinstance(dim, str)}


def _default_shape(spec: InputSpec, sizes: Mapping[str, int], batch: int) -> tuple[int, ...]:
    def size(axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int):
            return dim
        if dim is not None and dim in sizes:
            return sizes[dim]
        if axis == 0:
            return batch
        return _SPATIAL if len(spec.shape) >= 4 and axis >= 2 else _OTHER

    return tuple(size(axis, dim) for axis, dim in enumerate(spec.shape))


def _fits(shape: tuple[int, ...], spec: InputSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, shape, strict=True)
    )


def written(spec: InputSpec) -> str:
    """Return the shape of an input as text."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in spec.shape) + "]"


def _random(
    spec: InputSpec,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    value_range: tuple[float, float] | None,
) -> Array:
    dtype = spec.dtype
    if dtype.kind == "O":
        raise UsageError(f"input {spec.name!r} takes strings; give them with --inputs file.npz")
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if is_float(dtype):
        if value_range is None:
            return np.asarray(rng.standard_normal(shape)).astype(dtype)
        return np.asarray(rng.uniform(*value_range, shape)).astype(dtype)
    low, high = (0, 9) if value_range is None else (int(value_range[0]), int(value_range[1]))
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max:
        raise UsageError(f"the range {low},{high} does not fit input {spec.name!r} ({dtype})")
    return rng.integers(low, high, shape, dtype=dtype, endpoint=True)
