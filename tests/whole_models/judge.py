"""Judges a fold: is the result the same function, a sound model, and what the report says of it?"""

import difflib
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, printer

import onnx_bnfold

from .compare import difference, suspect
from .engine import (
    Emulation,
    Engine,
    NoKernel,
    NotRunnable,
    Runtime,
    attempt,
    engine_of,
    every_node,
    every_tensor,
    holds_type,
)
from .floats import PERMITTED
from .interpreter import Tensor
from .models import Case
from .storage import fold

_SLOW = 2.0
_LIES = 16  # times


@dataclass(frozen=True)
class Verdict:
    """What was found out about a case.

    Attributes:
        skipped: why it could not be judged, or None.
        kind: of the finding, or None if nothing is wrong; ``detail`` says more.
        norms, folded: how many BatchNormalizations there were, and how many went.
        affine: how many nodes that are none went.
        reasons: the codes of those that stay.
        suspects: whether float64 had to decide.
    """

    kind: str | None = None
    detail: str = ""
    skipped: str | None = None
    norms: int = 0
    folded: int = 0
    affine: int = 0
    reasons: tuple[str, ...] = ()
    suspects: int = 0
    seconds: float = 0.0
    model: ModelProto | None = field(default=None, repr=False)


class _Finding(Exception):
    """Something is wrong: its kind, and what."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def judge(case: Case) -> Verdict:
    """Fold a case and judge what comes out."""
    known: dict = {}
    try:
        original = engine_of(case.model)
        first, *others = case.feeds
        expected = [original.run(first), *(attempt(original, feed) for feed in others)]
    except NotRunnable as error:
        known["skipped"] = str(error)
        expected, original = [], None
    if not isinstance(original, Runtime) or (case.measured and not _shows_all(case.model)):
        case = replace(case, measured=False)
    try:  # the worst first, lest a lesser finding hide it
        folded, report = _folded(case, known)
        _signatures(case, folded)
        if original is not None:
            _values(case, folded, original, expected, known)
            _rounded(case, folded, original, known)
            _annotations(case, folded)
        _counts(case, folded, report)
        _validity(case, folded, loads=original is not None)
        _again(case, folded)
    except _Finding as finding:
        return Verdict(finding.kind, finding.detail, **known)
    return Verdict(**known)


def _shows_all(model: ModelProto) -> bool:
    """Whether onnxruntime, which is what measures ranges, can say every tensor of a model.

    It refuses some nodes of functions only when it inlines them for that.
    """
    open_ = ModelProto()
    open_.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    names = [n for node in model.graph.node for n in node.output if n and n not in known]
    open_.graph.output.extend(ValueInfoProto(name=name) for name in names)
    try:
        Runtime(open_)
    except Exception:
        return False
    return True


def _folded(case: Case, known: dict) -> tuple[ModelProto, onnx_bnfold.Report]:
    before = _bytes(case.model)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        started = time.process_time()
        try:
            folded, report = fold(case, case.model)
        except onnx_bnfold.BnFoldError as error:
            raise _Finding("refused", str(error)) from error
        except Exception as error:
            raise _Finding(f"exception {type(error).__name__}", traceback.format_exc()) from error
        known["seconds"] = time.process_time() - started
    known["model"] = folded
    known["norms"], known["folded"] = len(report.norms), len(report.folded)
    known["affine"] = sum(not r.is_norm for r in report.records if r.folded)
    known["reasons"] = tuple(r.refusal.reason.value for r in report.kept if r.refusal)
    _require(not warned, "warning", lambda: str(warned[0].message))
    _require(known["seconds"] < _SLOW, "slow", lambda: f"{known['seconds']:.1f} s")
    _require(before == _bytes(case.model), "input model modified", lambda: "")
    return folded, report


def _counts(case: Case, folded: ModelProto, report: onnx_bnfold.Report) -> None:
    """See that what the report says is true, and that calls are inlined for BNs that go by it."""
    before, after = _executed(case.model), _executed(folded)
    fewer = after < before if report.inlined_calls else after <= before
    _require(fewer, "more norms", lambda: f"{before} executed, then {after}")
    before, after = _norms(case.model), _norms(folded)
    told = len(report.folded) + len(report.kept)
    if not report.inlined_calls:  # each call has BNs of its own then
        _require(after <= before, "more norms", lambda: f"{before}, then {after}")
        _require(told == before, "report", lambda: f"{told} told of, {before} there")
    if not case.options.forms:
        kept = len(report.kept)
        _require(kept == after, "report", lambda: f"{kept} kept, {after} there")


def _signatures(case: Case, folded: ModelProto) -> None:
    one, other = (_signature(m, case.options.freeze_initializers) for m in (case.model, folded))
    _require(one == other, "signature", lambda: f"{one} became {other}")


def _validity(case: Case, folded: ModelProto, *, loads: bool) -> None:
    """See that the folded model is valid if the original is.

    Args:
        case, folded: as everywhere here.
        loads: whether onnxruntime loads the original. What it has refused by inference the checker
            may pass only as long as it knows less of the sizes.
    """
    if _complaint(case.model, infers=loads) is None:
        complaint = _complaint(folded, infers=loads)
        _require(complaint is None, "invalid", lambda: str(complaint))


def _again(case: Case, folded: ModelProto) -> None:
    """See that a second fold changes nothing, and, of some, that the first comes out the same.

    What was folded from file to file is folded in memory, too.
    """
    if case.storage != "memory" and not case.measured:
        other, _ = onnx_bnfold.fold(case.model, case.options)
        _require(_bytes(folded) == _bytes(other), "another in memory", lambda: "")
    if len(_bytes(case.model)) % 5 == 0:
        other, _ = fold(case, case.model)
        _require(_bytes(folded) == _bytes(other), "not deterministic", lambda: "")
    if case.measured and not _shows_all(folded):
        return
    try:
        second, twice = fold(case, folded)
    except Exception as error:
        raise _Finding("second fold fails", str(error)) from error
    if _bytes(folded) != _bytes(second):
        raise _Finding(_changed(twice), _changes(folded, second, twice))


def _values(
    case: Case,
    folded: ModelProto,
    original: Engine,
    expected: Sequence[list[np.ndarray] | None],
    known: dict,
) -> None:
    try:
        engine = engine_of(folded, like=original)
    except NoKernel:
        # onnxruntime has no float64 Conv: whoever asks for one gets it.
        _require("conv" in case.options.forms, "no kernel", lambda: "")
        engine = Emulation(folded)
    except NotRunnable as error:
        if case.options.freeze_initializers and _fails_frozen(case.model):
            return
        raise _Finding("unloadable", str(error)) from error
    for feed, wanted in zip(case.feeds, expected, strict=True):
        if wanted is None:
            continue
        try:
            found = engine.run(feed)
        except NotRunnable as error:
            if "conv" in case.options.forms and not all(a.size for a in wanted):
                continue  # a Conv of empty pictures, whose size nobody knew
            if "re-use buffer" in str(error):
                continue  # planned by sizes that onnxruntime misreads, as of a Slice of opset 10
            raise _Finding("fails at run time", str(error)) from error
        for name, a, b in zip(_outputs(case.model), wanted, found, strict=True):
            _require(
                a.dtype == b.dtype and a.shape == b.shape,
                "type or shape",
                lambda: f"{name}: {a.dtype} {a.shape} became {b.dtype} {b.shape}",  # noqa: B023
            )
        if any(suspect(a, b) for a, b in zip(wanted, found, strict=True)):
            known["suspects"] = known.get("suspects", 0) + 1
            _decided(case, folded, feed, wanted, found)


def _fails_frozen(model: ModelProto) -> bool:
    """Whether onnxruntime refuses a model whose initializers nobody may override, and no other.

    It infers more of one, and where it misreads that it does not load it.
    """
    frozen, given = ModelProto(), {t.name for t in model.graph.initializer}
    frozen.CopyFrom(model)
    inputs = [i for i in model.graph.input if i.name not in given]
    del frozen.graph.input[:]
    frozen.graph.input.extend(inputs)
    try:
        engine_of(frozen)
    except NotRunnable:
        return True
    return False


def _rounded(case: Case, folded: ModelProto, original: Engine, known: dict) -> None:
    """Judge float16 once more where it is rounded after every node.

    onnxruntime has few kernels for it, and computes several nodes in a row in float32.
    """
    if not isinstance(original, Emulation) and holds_type(case.model, TensorProto.FLOAT16):
        original = Emulation(case.model)
        expected = [attempt(original, feed) for feed in case.feeds]
        _values(case, folded, original, expected, known)


def _annotations(case: Case, folded: ModelProto) -> None:
    """See that what is said of a tensor's quantisation still fits its values."""
    told = {a.tensor_name: a for a in folded.graph.quantization_annotation}
    if not told:
        return
    one, other = (every_tensor(m, case.feeds[0]) for m in (case.model, folded))
    for name, annotation in told.items():
        scale = {p.key: p.value for p in annotation.quant_parameter_tensor_names}["SCALE_TENSOR"]
        _require(name in other and scale in other, "annotation of nothing", lambda: name)  # noqa: B023
        a, b = (env[name].array / env[scale].array for env in (one, other))
        peak = np.abs(a).max(initial=0, where=np.isfinite(a))
        if peak == 0:  # whatever it was measured on, a rounding error is many of its steps
            continue
        step = max(1, 0.02 * peak)
        holds = a.shape == b.shape and (
            np.allclose(a, b, rtol=0.02, atol=step, equal_nan=True)
            or _is_rounding(case, name, one[name].array, other[name].array)
        )
        _require(holds, "stale annotation", lambda: name)  # noqa: B023


def _is_rounding(case: Case, name: str, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two results of a tensor differ by no more than its rounding errors may grow to."""
    exact, *draws = (
        every_tensor(case.model, case.feeds[0], double=True, noise=noise)[name]
        for noise in (None, *map(np.random.default_rng, range(6)))
    )
    spread = max(float(np.abs(each.array - exact.array).max()) for each in draws)
    off = np.abs(np.float64(one) - np.float64(other)).max()
    return bool(off <= 2 * PERMITTED[exact.dtype] * spread)  # of each of them


def _decided(case, folded, feed, wanted, found) -> None:
    try:
        doubt = difference(case.model, folded, feed, wanted, found)
    except Exception as error:
        if feed is not case.feeds[0]:
            return  # of other sizes it is ill-formed, which onnxruntime did not notice
        raise _Finding("not decided", traceback.format_exc()) from error
    excusable = doubt is not None and doubt.kind in ("precision", "overflow")
    if excusable and statistics_lie(case.model, feed):
        return  # by what they say, the original's error would be as large, or there was room
    if doubt is not None:
        raise _Finding(doubt.kind, f"output {_outputs(case.model)[doubt.output]}: {doubt.detail}")


def statistics_lie(model: ModelProto, feed: Mapping[str, np.ndarray]) -> bool:
    """Whether a BatchNormalization says that its data are of another size than they are.

    What it says of its input is far off, or its output is far smaller: a shift would dwarf it.
    """
    env = every_tensor(model, feed)
    norms = (n for n in model.graph.node if n.op_type == "BatchNormalization" and not n.domain)
    return any(_lies(norm, env) for norm in norms if all(name in env for name in norm.input))


def _lies(norm: NodeProto, env: Mapping[str, Tensor]) -> bool:
    x, scale, bias, mean, variance = (np.float64(env[name].array) for name in norm.input)
    if x.ndim < 2 or not x.size:
        return False
    deviation = np.sqrt(variance)
    with np.errstate(all="ignore"):
        out = np.abs(scale) * deviation / np.sqrt(variance + _epsilon(norm))
        into = (np.abs(mean) + deviation) / _sizes(x)
        behind = (np.abs(bias) + out) / _sizes(env[norm.output[0]].array)
    return bool(((into > _LIES) | (into < 1 / _LIES) | (behind > _LIES)).any())


def _epsilon(norm: NodeProto) -> float:
    return next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)


def _sizes(array: np.ndarray) -> np.ndarray:
    """Return the largest value of each channel."""
    return np.abs(np.moveaxis(np.float64(array), 1, 0).reshape(array.shape[1], -1)).max(axis=1)


def _require(holds: bool, kind: str, detail) -> None:
    if not holds:
        raise _Finding(kind, detail())


def _bytes(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _outputs(model: ModelProto) -> list[str]:
    return [o.name for o in model.graph.output]


def _changed(report: onnx_bnfold.Report) -> str:
    """Return the kind of what a second fold did."""
    if report.folded:
        return "second fold folds a norm"
    folds = any(r.folded for r in report.records)
    return "second fold folds an affine node" if folds else "second fold changes it"


def _changes(one: ModelProto, other: ModelProto, report: onnx_bnfold.Report) -> str:
    """Say what a second fold did."""
    told = "; ".join(r.sentence() for r in report.records if r.folded)
    texts = [printer.to_text(m).splitlines() for m in (one, other)]
    lines = difflib.unified_diff(*texts, "folded once", "folded twice", n=0, lineterm="")
    return told + "\n" + "\n".join(line[:300] for line in lines)


def _signature(model: ModelProto, freeze: bool) -> tuple:
    given = {t.name for t in model.graph.initializer}
    optional = [] if freeze else [i for i in model.graph.input if i.name in given]
    inputs = [i for i in model.graph.input if i.name not in given]
    needed = [i.SerializeToString() for i in inputs]
    # Below IR version 4 every initializer is listed among the inputs: a fold may change which.
    overridable = sorted(i.name for i in optional) if model.ir_version >= 4 else []
    return needed, overridable, [o.SerializeToString() for o in model.graph.output]


def _complaint(model: ModelProto, *, infers: bool) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=infers)
    except Exception as error:
        return str(error)
    return None


def _executed(model: ModelProto) -> int:
    """Count the BatchNormalizations of a run: those of a function once for each call."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}

    def count(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += node.op_type == "BatchNormalization" and not node.domain
            total += sum(count(a.g.node) for a in node.attribute)
            total += count(bodies.get((node.domain, node.op_type), ()))
        return total

    return count(model.graph.node)


def _norms(model: ModelProto) -> int:
    return Counter(n.op_type for n in every_node(model) if not n.domain)["BatchNormalization"]
