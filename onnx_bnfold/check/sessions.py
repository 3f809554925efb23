"""onnxruntime sessions; the only module of the check that loads onnxruntime."""

import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnx_bnfold.arrays import Array as Array  # for the modules of the check, too
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.interrupts import held_back

Feed: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class InputSpec:
    """An input as onnxruntime declares it.

    Attributes:
        name: of the input.
        type: such as "tensor(float)".
        shape: a size, a symbol or None for each axis.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy element type.

        Raises:
            UsageError: the check has no values for the type.
        """
        try:
            return np.dtype(_DTYPES[self.type])
        except KeyError:
            raise UsageError(f"input {self.name!r} has type {self.type}, not a number") from None


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
    **{
        f"tensor({sign}int{bits})": f"{sign}int{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


# What onnxruntime says of an index that is too large, as of Gather and its relatives.
_INDICES = re.compile(r"out of .*(?:bounds|range).*\[-?\d+, ?(\d+)\]")


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a type is a float type; numpy itself does not know bfloat16 as one."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


class Stopwatch:
    """Adds up the time spent inside ``with`` blocks.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start


class Session:
    """An onnxruntime session on the CPU.

    Args:
        model: the model file.
        optimised: enable all of onnxruntime's graph optimisations, or none.
        threads: threads within an operator; 0 is onnxruntime's choice.
        prepack: let onnxruntime keep copies of the weights in the layout of its kernels.
        weights: initializers to replace, by name, with arrays of the same shape and type. Without
            ``prepack``, later changes of the arrays take effect.
        rewritten: a model to load instead of the file, with its large tensors in files.
        extra_outputs: further tensors to return.
        watch: measures the time spent in onnxruntime.

    Attributes:
        inputs: of the model.
        overridable: names of initializers that an input can override.
        outputs: names of the model's outputs.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: CheckedModel,
        *,
        optimised: bool = False,
        threads: int = 0,
        prepack: bool = True,
        weights: Mapping[str, Array] | None = None,
        rewritten: onnx.ModelProto | None = None,
        extra_outputs: Sequence[str] = (),
        watch: Stopwatch | None = None,
    ) -> None:
        ort = _onnxruntime()

        self._label = model.label
        self._watch = watch or Stopwatch()
        options = session_options(optimised=optimised, threads=threads, custom_ops=model.custom_ops)
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        # onnxruntime does not copy these, so the session has to keep them alive.
        self._weights = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (weights or {}).items()
        }
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        source: str | bytes = str(model.path)
        if extra_outputs or rewritten is not None:
            source = with_outputs(model, rewritten, extra_outputs).SerializeToString()
            folder = str(model.path.resolve().parent)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
        try:
            with self._watch:
                self._session = ort.InferenceSession(
                    source, options, providers=["CPUExecutionProvider"]
                )
        except Exception as error:  # onnxruntime's errors share no base class
            kind = NoKernelError if _lacks_kernel(error) else ModelError
            raise kind(f"onnxruntime cannot load {self._label}: {_message(error)}") from error
        self.inputs = tuple(
            InputSpec(i.name, i.type, tuple(i.shape)) for i in self._session.get_inputs()
        )
        self.overridable = tuple(i.name for i in self._session.get_overridable_initializers())
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(self, feed: Feed, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once.

        Args:
            feed: input name → array; names that are not inputs of the model are ignored.
            names: the outputs to compute; all by default.

        Returns:
            Output name → array; elements of a sequence are named ``name[i]``.

        Raises:
            ModelError: onnxruntime cannot run the model on the feed.
        """
        names = self.outputs if names is None else names
        feed = {spec.name: feed[spec.name] for spec in self.inputs}
        try:
            with self._watch:
                values = self._session.run(names, feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            message = _message(error)
            raise ModelError(
                f"onnxruntime cannot run {self._label} on {shapes}: {message}; "
                f"{_other_inputs(message, feed)}"
            ) from error
        return named(names, values)


def _other_inputs(message: str, feed: Feed) -> str:
    """Return how to give inputs that a model may take, which it has not those of a feed."""
    limits = _INDICES.search(message)
    if limits and any(array.dtype.kind in "iu" for array in feed.values()):
        return f"give indices that exist with --range 0,{limits[1]} or --inputs"
    return "set the shapes with --shape or give --inputs"


class NoKernelError(ModelError):
    """The model may be valid, but onnxruntime has no kernel for some node of it."""


def _lacks_kernel(error: Exception) -> bool:
    words = ("NOT_IMPLEMENTED", "tensor(bfloat16)", "ValidateOpsetForDomain", "IR version")
    return any(word in str(error) for word in words)


def join(results: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the outputs of several input sets, each joined along its first axis if it has one."""
    collected: dict[str, list[Array]] = {}
    for result in results:
        for name, array in result.items():
            collected.setdefault(name, []).append(array)
    return {name: _joined(arrays) for name, arrays in collected.items()}


def _joined(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    if all(a.ndim and a.shape[1:] == arrays[0].shape[1:] for a in arrays):
        return np.concatenate(arrays)
    return np.concatenate([a.reshape(-1) for a in arrays])


def session_options(
    *, optimised: bool, threads: int = 0, custom_ops: Sequence[str | os.PathLike[str]] = ()
) -> Any:
    """Return SessionOptions of onnxruntime, without log messages.

    Args:
        optimised: see ``Session``.
        threads: see ``Session``.
        custom_ops: libraries with custom operators.

    Raises:
        UsageError: a library with custom operators cannot be loaded.
    """
    ort = _onnxruntime()

    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Threads that keep spinning after a run would slow down the next run of another session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for library in custom_ops:
        try:
            options.register_custom_ops_library(os.fspath(library))
        except Exception as error:
            raise UsageError(
                f"onnxruntime cannot load custom operators from {os.fspath(library)}: "
                f"{_message(error)}"
            ) from error
    return options


def optimised_graph(model: CheckedModel) -> onnx.ModelProto:
    """Return the model after onnxruntime's own optimisations, except hardware-specific layouts.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    ort = _onnxruntime()

    options = session_options(optimised=True, custom_ops=model.custom_ops)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    weights = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(weights + "file_name", "weights.bin")
    options.add_session_config_entry(weights + "min_size_in_bytes", "1024")
    with tempfile.TemporaryDirectory(prefix="onnx_bnfold-") as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"onnxruntime cannot load {model.label}: {_message(error)}") from error
        return CheckedModel(path, model.label).skeleton


def with_outputs(
    model: CheckedModel, rewritten: onnx.ModelProto | None, names: Sequence[str]
) -> onnx.ModelProto:
    """Return the model with further tensors as outputs; onnxruntime infers their types."""
    if rewritten is None:
        proto = onnx.load(model.path, load_external_data=False)
    else:
        proto = onnx.ModelProto()
        proto.CopyFrom(rewritten)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return proto


def onnxruntime_version() -> str:
    """Return the version of the installed onnxruntime."""
    ort = _onnxruntime()

    return str(ort.__version__)


def named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Array]:
    """Return output name → array; elements of a sequence are named ``name[i]``."""
    return dict(_named(names, values))


def _named(names: Sequence[str], values: Sequence[Any]) -> Iterator[tuple[str, Array]]:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, (list, tuple)):
            yield from _named([f"{name}[{i}]" for i in range(len(value))], value)
        elif isinstance(value, dict):
            yield from _named([f"{name}[{key!r}]" for key in value], list(value.values()))
        else:
            yield name, np.asarray(value)


def _message(error: Exception) -> str:
    """Return the first line of an onnxruntime error, without its code."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" : ", 3)[-1].strip().rstrip(".")


def _onnxruntime() -> Any:
    """Return the module onnxruntime, which is imported when first needed."""
    with held_back():
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    return onnxruntime
